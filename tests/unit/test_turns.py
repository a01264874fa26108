"""The turn that large frames share: those of one moment do not add up to one long wait for everybody else."""

from __future__ import annotations

import asyncio

from nuropb_gateway_asgi.limits.turns import FRAMES_PER_TURN, TURNS_OF_OTHERS, LargeFrames


async def iterations_until_taken(frames: LargeFrames, units: int) -> int:
    """Ask for a turn in each iteration of the event loop; return how often it was refused."""
    count = 0
    while not frames.take(units):
        count += 1
        await asyncio.sleep(0)
    return count


async def test_frames_share_the_units_of_a_turn() -> None:
    frames = LargeFrames()
    assert [frames.take(FRAMES_PER_TURN // 2) for _ in range(3)] == [True, True, False]


async def test_a_frame_of_more_than_a_turn_has_one_for_itself() -> None:
    frames = LargeFrames()
    assert frames.take(2 * FRAMES_PER_TURN)
    assert not frames.take(2)


async def test_others_have_some_iterations_between_two_turns() -> None:
    frames = LargeFrames()
    frames.take(FRAMES_PER_TURN)
    assert await iterations_until_taken(frames, FRAMES_PER_TURN) > TURNS_OF_OTHERS
    assert await iterations_until_taken(frames, FRAMES_PER_TURN) > TURNS_OF_OTHERS


async def test_those_who_wait_go_in_their_order_one_in_each_turn() -> None:
    frames, order = LargeFrames(), list[int]()

    async def wait(number: int) -> None:
        await frames.wait(FRAMES_PER_TURN)
        order.append(number)

    async with asyncio.TaskGroup() as tasks:
        for number in range(5):
            tasks.create_task(wait(number))
        for _ in range(TURNS_OF_OTHERS):
            await asyncio.sleep(0)
            assert order == [0]
    assert order == [0, 1, 2, 3, 4]


async def test_small_frames_never_wait() -> None:
    frames = LargeFrames()
    frames.take(FRAMES_PER_TURN)
    waiting = frames.wait(1)
    try:
        waiting.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits")


def test_a_turn_that_another_event_loop_began_does_not_stay() -> None:
    frames = LargeFrames()

    async def take() -> bool:
        return frames.take(FRAMES_PER_TURN)

    assert asyncio.run(take())
    assert asyncio.run(take())
