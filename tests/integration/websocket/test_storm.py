"""Random frames of all kinds: every frame gets exactly one answer."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from typing import Any

import pytest

from tests.integration.websocket.conftest import LONG
from tests.integration.websocket.test_malformed import MALFORMED
from tests.kit.clients import Frame, connect
from tests.kit.gateways import eventually, run_gateway


class Storm:
    """Random frames, and the expected number of answers: by id, by trace_id, or in total for frames without either."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.due: Counter[tuple[str, str]] = Counter()
        self._failures = self._malformed = self._made = self._wrong_tokens = 0

    def frame(self) -> str:
        make = self.random.choice(
            [self.call, self.call, self.call, self.failing_call, self.other, self.ping, self.silent, self.malformed]
        )
        text = make()
        self._malformed = self._malformed + 1 if make == self.malformed else 0
        return text

    def call(self) -> str:
        name, params = self.random.choice(
            [
                ("echo", {"text": "ü" * self.random.randrange(200)}),
                ("add", {"a": 1, "b": 2}),
                ("slow", {"seconds": self.random.random() / 20}),
                ("publish", {"topic": "demo.storm", "event": self.random.random()}),
                ("whoami", {}),
            ]
        )
        payload = {"service": "demo", "method": name, "params": params}
        return self._expecting(self.random.choice(["request", "request", "command"]), payload)

    def failing_call(self) -> str:
        if self._failures == 30:  # after more failures the gateway would refuse this user's calls
            return self.ping()
        self._failures += 1
        payload: dict[str, Any] = self.random.choice(
            [
                {"service": "demo", "method": "fail", "params": {"how": "bug"}},
                {"service": "demo", "method": "nothing"},
                {"service": "demo", "method": "add", "params": {"c": 1}},
                {"service": "nobody", "method": "at_all"},
                {"service": "closed", "method": "to_you"},
                {"service": "demo", "method": "slow", "params": LONG, "timeout": 0.02},
            ]
        )
        return self._expecting("request", payload)

    def other(self) -> str:
        choices: list[tuple[str, dict[str, Any]]] = [
            ("describe", {}),
            ("describe", {"service": "demo"}),
            ("describe", {"service": "closed"}),
            ("subscribe", {"topics": ["demo.storm"]}),
            ("subscribe", {"topics": ["demo.storm", "closed"]}),
            ("unsubscribe", {"topics": ["demo.storm"]}),
            ("authorize", {"token": "alice:2"}),
            ("authorize", {"token": "bad"}),
            ("authorize", {"token": "bob"}),
        ]
        type_, payload = self.random.choice(choices)
        if payload.get("token") in ("bad", "bob"):
            if self._wrong_tokens == 5:  # a sixth within a minute closes the connection
                return self.ping()
            self._wrong_tokens += 1
        return self._expecting(type_, payload)

    def ping(self) -> str:
        self._made += 1
        self.due["pong", str(self._made)] += 1
        return json.dumps({"type": "ping", "payload": str(self._made)})

    def silent(self) -> str:
        if self.random.random() < 0.3:
            return '{"type":"pong"}'
        return json.dumps({"type": "cancel", "payload": {"id": self._id(again=True)}})

    def malformed(self) -> str:
        if self._malformed == 9:
            return self.ping()
        if self.random.random() < 0.5:
            return self._expecting("request", {"service": "demo", "method": "_private"})
        self.due["error", ""] += 1
        return self.random.choice([text for text in MALFORMED if len(text) < 1000])

    def _expecting(self, type_: str, payload: dict[str, Any]) -> str:
        roll = self.random.random()
        if roll < 0.7:
            payload["id"] = self._id(again=self.random.random() < 0.1)
            self.due["id", payload["id"]] += 1
        elif roll < 0.9:
            payload["trace_id"] = f"t-{self._id()}"
            self.due["trace_id", payload["trace_id"]] += 1
        else:
            self.due["error", ""] += 1
        return json.dumps({"type": type_, "payload": payload})

    def _id(self, *, again: bool = False) -> str:
        if again:
            return str(self.random.randrange(self._made + 1))
        self._made += 1
        return str(self._made)

    def kind_of(self, frame: Frame) -> tuple[str, str] | None:
        """Return the key of the expected answer that a frame is."""
        payload = frame.get("payload")
        if frame["type"] == "event":
            return None
        if frame["type"] == "pong":
            return "pong", str(payload)
        if frame["type"] == "response" and isinstance(payload, dict):
            if "id" in payload:
                return "id", payload["id"]
            if str(payload.get("trace_id", "")).startswith("t-"):
                return "trace_id", payload["trace_id"]
        return "error", ""


@pytest.mark.parametrize("seed", range(6))
async def test_every_frame_of_a_storm_is_answered_once(seed: int) -> None:
    storm = Storm(seed)
    answers: Counter[tuple[str, str]] = Counter()
    async with run_gateway(expose=["demo.*", "nobody.*"], max_in_flight=20) as running:
        async with connect(running.url, "alice") as client:

            async def rage() -> None:
                for _ in range(400):
                    await client.send_text(storm.frame())

            def count(frame: Frame) -> None:
                kind = storm.kind_of(frame)
                if kind is not None:
                    answers[kind] += 1

            raging = asyncio.create_task(rage())
            while not raging.done() or answers.total() < storm.due.total():
                count(await client.next())
            await raging
            await eventually(lambda: running.occupancy == (1, 1, 0))
            for frame in await client.settled():
                count(frame)
        assert answers == storm.due


async def test_storms_over_each_other() -> None:
    """Run storms of several clients at once; some clients disconnect in the middle."""
    async with run_gateway(expose=["demo.*", "nobody.*"]) as running:

        async def one(seed: int) -> None:
            storm = Storm(seed)
            async with connect(running.url, f"user{seed}") as client:
                for _ in range(150):
                    await client.send_text(storm.frame())
                if seed % 2:
                    client.abort()
                    return
                answers: Counter[tuple[str, str]] = Counter()
                while answers.total() < storm.due.total():
                    kind = storm.kind_of(await client.next())
                    if kind is not None:
                        answers[kind] += 1
                assert answers == storm.due

        await asyncio.gather(*(one(seed) for seed in range(100, 108)))
        await running.is_empty()
