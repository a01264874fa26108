from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import signal
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from nuropb_gateway_asgi.authentication import Identity
from nuropb_gateway_asgi.authorization import policy_file
from nuropb_gateway_asgi.authorization.policy_file import MAX_FILE_SIZE, PolicyFile, Signature, read_signature
from nuropb_gateway_asgi.exceptions import PolicyError, SettingsError

from .fakes import until

ALICE = Identity(user_id="alice", username="Alice", token="t")


def rules(*methods: str) -> str:
    return "".join(f'[[rule]]\nallow = "call"\nmethods = ["{method}"]\n' for method in methods)


def allowed(file: PolicyFile) -> list[str]:
    return [name for name in ("a", "b", "c") if file.policy.may_call(ALICE, "orders", name)]


def write(path: Path, text: str) -> None:
    """Write a file beside the old one, and then move it into its place."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_file, "POLL_INTERVAL", 0.005)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(rules("orders.a"), encoding="utf-8")
    return path


class Looks:
    """A reader of signatures that counts its calls. ``answer`` gives the result, by default the real signature."""

    def __init__(self, answer: Callable[[str], Signature] = read_signature) -> None:
        self.answer = answer
        self.count = 0

    def __call__(self, path: str) -> Signature:
        self.count += 1
        return self.answer(path)


class Watched:
    """A watched file, and the number of times that new rules came into force."""

    def __init__(self, path: Path | str, answer: Callable[[str], Signature] = read_signature) -> None:
        self.look = Looks(answer)
        self.file = PolicyFile(str(path), look=self.look)
        self.changes = 0

    async def on_change(self) -> None:
        self.changes += 1

    async def reloads(self, **counts: int) -> None:
        await until(lambda: dict(self.file.reloads) == counts)

    async def looks(self, count: int = 4) -> None:
        """Wait until the file has been checked ``count`` more times."""
        enough = self.look.count + count
        await until(lambda: self.look.count >= enough)


@contextlib.asynccontextmanager
async def watching(path: Path | str, answer: Callable[[str], Signature] = read_signature) -> AsyncIterator[Watched]:
    watched = Watched(path, answer)
    task = asyncio.create_task(watched.file.watch(watched.on_change))
    try:
        await asyncio.sleep(0)
        yield watched
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


# --- at the start ---------------------------------------------------------------------------------------


def test_a_file_is_a_policy(path: Path) -> None:
    file = PolicyFile(str(path), own_service="orders")
    assert allowed(file) == ["a"]
    assert file.policy.rules[0].where == f"{path}:1"
    assert file.problem is None
    assert not file.policy.may_call(ALICE, "gateway", "x")
    path.write_text(rules("*.*"))
    assert allowed(PolicyFile(str(path))) == ["a", "b", "c"]
    assert allowed(PolicyFile(str(path), own_service="orders")) == []


def test_a_mistake_in_the_file_stops_the_start(path: Path) -> None:
    path.write_text(rules("orders.a") + "allow\n")
    with pytest.raises(PolicyError, match=rf"^{re.escape(str(path))}:4: .*; expected TOML$"):
        PolicyFile(str(path))


def test_a_file_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    big = tmp_path / "big"
    big.write_bytes(b"#" * (MAX_FILE_SIZE + 1))
    for name, wrong in (
        (tmp_path / "missing.toml", "the file cannot be read (FileNotFoundError)"),
        (tmp_path / "missing" / "policy.toml", "the file cannot be read (FileNotFoundError)"),
        (big / "policy.toml", "the file cannot be read (NotADirectoryError)"),
        ("a\0b", "the file cannot be read (ValueError)"),
        (tmp_path, "not a regular file"),
        (pipe, "not a regular file"),
        (big, f"the file is larger than {MAX_FILE_SIZE} bytes"),
    ):
        with pytest.raises(SettingsError) as caught:
            PolicyFile(str(name))
        expected = "expected the name of a readable TOML file"
        assert str(caught.value) == f"NUROPB_GATEWAY_POLICY: {wrong}; {expected}"


# --- when it changes ------------------------------------------------------------------------------------


async def test_a_file_that_was_replaced_is_read_again(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with watching(path) as watched:
        write(path, rules("orders.b", "orders.c"))
        await watched.reloads(ok=1)
        await until(lambda: watched.changes == 1)
        assert allowed(watched.file) == ["b", "c"]
        assert f"{path}: policy reloaded, 2 rules are in force" in caplog.text
        await watched.looks()
        assert (dict(watched.file.reloads), watched.changes) == ({"ok": 1}, 1)


async def test_a_file_that_was_written_over_is_read_again(path: Path) -> None:
    async with watching(path) as watched:
        path.write_text(rules("orders.b"))  # of the same length
        await watched.reloads(ok=1)
        assert allowed(watched.file) == ["b"]


async def test_a_change_that_keeps_size_and_time_is_seen(path: Path) -> None:
    before = path.stat()
    async with watching(path) as watched:
        path.write_text(rules("orders.b"))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        await until(lambda: allowed(watched.file) == ["b"])


async def test_a_link_that_leads_elsewhere_is_followed_as_kubernetes_changes_it(tmp_path: Path) -> None:
    for number, method in enumerate("ab"):
        (tmp_path / f"..{number}").mkdir()
        (tmp_path / f"..{number}" / "policy.toml").write_text(rules(f"orders.{method}"))
    data, path = tmp_path / "..data", tmp_path / "policy.toml"
    data.symlink_to("..0")
    path.symlink_to("..data/policy.toml")
    async with watching(path) as watched:
        assert allowed(watched.file) == ["a"]
        (tmp_path / "..data_tmp").symlink_to("..1")
        (tmp_path / "..data_tmp").replace(data)
        await watched.reloads(ok=1)
        assert allowed(watched.file) == ["b"]


async def test_a_change_between_the_start_and_the_first_look_is_seen(path: Path) -> None:
    watched = Watched(path)
    write(path, rules("orders.b"))
    task = asyncio.create_task(watched.file.watch(watched.on_change))
    await watched.reloads(ok=1)
    assert allowed(watched.file) == ["b"]
    task.cancel()


async def test_a_file_is_not_read_while_it_is_being_written(path: Path) -> None:
    times, writing = itertools.count(), True

    def answer(path: str) -> Signature:
        found = read_signature(path)
        return (*found[:4], next(times)) if writing and found is not None else found

    async with watching(path, answer) as watched:
        write(path, rules("orders.b"))
        await watched.looks(10)  # each with a different result
        assert allowed(watched.file) == ["a"]
        writing = False
        await watched.reloads(ok=1)
        assert allowed(watched.file) == ["b"]


BROKEN = [
    rules("orders.b") + "allow\n",
    rules("orders.b") + '[[rule]]\nallow = "read"\n',
    "",
    "\n# nothing\n",
    "\ufffd",
]


@pytest.mark.parametrize("text", BROKEN)
async def test_a_broken_file_leaves_the_old_rules_and_says_so_once(
    path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with watching(path) as watched:
        write(path, text)
        await watched.reloads(failed=1)
        assert allowed(watched.file) == ["a"]
        assert watched.file.problem is not None
        assert re.fullmatch(rf"{re.escape(str(path))}:\d+: .+; expected .+", watched.file.problem)
        await watched.looks()
        errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert errors == [f"policy reload failed; keeping the previous policy: {watched.file.problem}"]
        assert watched.changes == 0
        write(path, rules("orders.b"))
        await watched.reloads(failed=1, ok=1)
        assert allowed(watched.file) == ["b"]
        assert watched.file.problem is None


async def test_a_file_that_is_gone_leaves_the_old_rules_until_it_is_back(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with watching(path) as watched:
        beside = path.with_name("elsewhere")
        path.rename(beside)
        await watched.reloads(failed=1)
        assert allowed(watched.file) == ["a"]
        assert watched.file.problem is not None
        assert "cannot be read (FileNotFoundError)" in watched.file.problem
        await watched.looks()
        assert caplog.text.count("keeping the previous policy") == 1
        beside.rename(path)
        await watched.reloads(failed=1, ok=1)
        assert watched.file.problem is None
        assert allowed(watched.file) == ["a"]


async def test_whatever_fails_the_file_is_looked_at_again(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    failures = iter([RuntimeError("can't start new thread"), KeyError()])

    def answer(path: str) -> Signature:
        for error in failures:
            raise error
        return read_signature(path)

    async with watching(path, answer) as watched:
        write(path, rules("orders.b"))
        await watched.reloads(ok=1)
    assert "can't start new thread" in caplog.text


async def test_the_disk_is_not_waited_for_at_the_end(path: Path) -> None:
    hangs, gone = threading.Event(), threading.Event()

    def hang(path: str) -> Signature:
        hangs.set()
        gone.wait(10)
        return None

    try:
        async with watching(path, hang):
            await until(hangs.is_set)
    finally:
        gone.set()


# --- when it is asked for -------------------------------------------------------------------------------


async def test_a_hangup_signal_reads_the_file_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_file, "POLL_INTERVAL", 60.0)
    async with watching(path) as watched:
        path.write_text(rules("orders.b"))
        os.kill(os.getpid(), signal.SIGHUP)
        await watched.reloads(ok=1)
        assert allowed(watched.file) == ["b"]
        os.kill(os.getpid(), signal.SIGHUP)  # without a change, too
        await watched.reloads(ok=2)
        path.write_text("nonsense")
        os.kill(os.getpid(), signal.SIGHUP)
        await watched.reloads(ok=2, failed=1)
        assert allowed(watched.file) == ["b"]


async def test_a_hangup_signal_still_does_what_it_did_before(path: Path) -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, frame: received.append(number))
    mine = signal.getsignal(signal.SIGHUP)
    try:
        async with watching(path) as watched:
            os.kill(os.getpid(), signal.SIGHUP)
            await watched.reloads(ok=1)
            assert received == [signal.SIGHUP]
        assert signal.getsignal(signal.SIGHUP) is mine
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("default", [signal.SIG_DFL, signal.SIG_IGN])
async def test_what_a_hangup_signal_did_by_default_comes_back_at_the_end(path: Path, default: signal.Handlers) -> None:
    before = signal.signal(signal.SIGHUP, default)
    try:
        async with watching(path) as watched:
            os.kill(os.getpid(), signal.SIGHUP)
            await watched.reloads(ok=1)
        assert signal.getsignal(signal.SIGHUP) == default
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_who_took_the_signal_since_keeps_it(path: Path) -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        async with watching(path):
            later = signal.signal(signal.SIGHUP, signal.SIG_IGN)
            assert callable(later)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_of_the_main_thread_there_are_no_signals_and_the_file_is_looked_at_all_the_same(path: Path) -> None:
    before = signal.getsignal(signal.SIGHUP)
    found: list[Any] = []

    async def watch() -> None:
        async with watching(path) as watched:
            found.append(signal.getsignal(signal.SIGHUP))
            write(path, rules("orders.b"))
            await watched.reloads(ok=1)
            found.append(allowed(watched.file))

    thread = threading.Thread(target=lambda: asyncio.run(watch()))
    thread.start()
    thread.join(20)
    assert found == [before, ["b"]]


def test_a_file_may_be_watched_again_in_another_event_loop(path: Path) -> None:
    watched = Watched(path)

    async def watch(method: str) -> None:
        task = asyncio.create_task(watched.file.watch(watched.on_change))
        write(path, rules(f"orders.{method}"))
        await until(lambda: allowed(watched.file) == [method])
        task.cancel()

    for method in "bc":
        asyncio.run(watch(method))
