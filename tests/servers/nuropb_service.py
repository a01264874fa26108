"""A NuroPb service, hosted by nuropb's own RMQAPI: ``nuropb_service.py --url amqp://... --service NAME``.

It configures the mesh, prints READY when it consumes its queue, and ends on SIGTERM or when its standard
input closes. It runs on Python 3.11 with nuropb 0.1.8 and imports nothing of the gateway. Annotations must be
real types here: nuropb's describe fails on the strings that ``from __future__ import annotations`` makes of
them.
"""

import argparse
import asyncio
import contextlib
import functools
import logging
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar, cast
from uuid import uuid4

from cryptography.hazmat.primitives.asymmetric import rsa
from nuropb.contexts.context_manager import NuropbContextManager
from nuropb.contexts.context_manager_decorator import nuropb_context
from nuropb.contexts.describe import publish_to_mesh
from nuropb.interface import (
    NuropbAuthenticationError,
    NuropbAuthorizationError,
    NuropbCallAgain,
    NuropbDeprecatedError,
    NuropbSuccess,
    NuropbValidationError,
)
from nuropb.rmq_api import RMQAPI
from nuropb.rmq_lib import configure_nuropb_rmq
from nuropb.testing.stubs import ServiceExample

Method = TypeVar("Method", bound=Callable[..., Any])


def counted(method: Method) -> Method:
    """Count the calls of a method, before it can fail."""

    @functools.wraps(method)
    def counting(self: "EchoService", *args: Any, **kwargs: Any) -> Any:
        self._calls[method.__name__] += 1
        return method(self, *args, **kwargs)

    return cast("Method", counting)


def with_context(method: Method) -> Method:
    """nuropb's own decorator, with a type."""
    return cast("Method", nuropb_context(method))


def encrypted(method: Method) -> Method:
    """A method that is described as one to be called encrypted only. nuropb 0.1.8 does not enforce it."""
    return cast("Method", publish_to_mesh(method, requires_encryption=True))


def undescribed(method: Method) -> Method:
    """A method that is left out of the description. nuropb 0.1.8 lets everybody call it all the same."""
    return cast("Method", publish_to_mesh(method, hide_method=True))


class EchoService:
    """Answers with what it was given, and fails in every way that a NuroPb service knows."""

    _version = "1.2.3"

    def __init__(self, service_name: str, instance_id: str) -> None:
        self._service_name = service_name
        self._instance_id = instance_id
        self._private_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._api: Any = None
        self._calls: Counter[str] = Counter()
        self._again: set[str] = set()
        self._recorded: list[dict[str, Any]] = []
        self._events: list[dict[str, Any]] = []

    def _handle_event_(self, topic: str, event: Any, target: Any, context: dict[str, Any]) -> None:
        self._events.append({"topic": topic, "event": event, "target": target, "context": context})

    # What answers

    @counted
    def echo(self, **kwargs: Any) -> dict[str, Any]:
        """The parameters themselves."""
        return kwargs

    @counted
    def add(self, a: int, b: int) -> int:
        """The sum of two numbers."""
        return a + b

    @counted
    async def slow(self, seconds: float) -> float:
        """Answers after that time; with a prefetch of 1 nobody else is served in it."""
        await asyncio.sleep(seconds)
        return seconds

    @counted
    def big(self, size: int) -> str:
        """A text of that many characters."""
        return "x" * size

    @counted
    def nan(self) -> float:
        """What is not JSON, and is sent all the same."""
        return float("nan")

    @with_context
    @counted
    def whoami(self, ctx: NuropbContextManager) -> dict[str, Any]:
        """The context that the call came with."""
        return cast("dict[str, Any]", ctx.context)

    @encrypted
    @counted
    def secret(self, value: str) -> str:
        """To be called encrypted."""
        return f"kept {value}"

    @undescribed
    @counted
    def hidden(self) -> str:
        """Not in the description."""
        return "found"

    # What fails

    @counted
    def fail_value(self) -> None:
        """An exception whose text is nobody's business."""
        raise ValueError("no route to db.internal:5432, password=hunter2")

    @counted
    async def fail_async(self) -> None:
        """The same from a coroutine, which nuropb reports differently."""
        raise ValueError("no route to db.internal:5432, password=hunter2")

    @counted
    def fail_validation(self) -> None:
        """One of NuroPb's own errors."""
        raise NuropbValidationError("the quantity must be positive")

    @counted
    def fail_authorization(self) -> None:
        """One of NuroPb's own errors."""
        raise NuropbAuthorizationError("only managers may do that")

    @counted
    def fail_authentication(self) -> None:
        """One of NuroPb's own errors."""
        raise NuropbAuthenticationError("the token has been revoked")

    @counted
    def fail_deprecated(self) -> None:
        """One of NuroPb's own errors."""
        raise NuropbDeprecatedError("use add")

    @counted
    def success(self) -> None:
        """A result that is raised."""
        raise NuropbSuccess(result={"raised": True})

    @counted
    def call_again(self, key: str = "") -> str:
        """Asks to be called again the first time, and answers the second; ``key`` keeps tests apart."""
        if key not in self._again:
            self._again.add(key)
            raise NuropbCallAgain("not yet")
        self._again.remove(key)
        return "at last"

    @counted
    def call_again_forever(self) -> None:
        """Asks to be called again every time; nuropb allows it once."""
        raise NuropbCallAgain("not yet")

    def exit_hard(self) -> None:
        """End the process with the message unacknowledged: the next instance that gets it ends, too."""
        os._exit(1)

    # What the service has seen

    @counted
    def emit(self, topic: str, event: Any, target: Any = None) -> None:
        """Publish an event."""
        if target is None:
            self._api.publish_event(topic=topic, event=event, context={"service": self._service_name})
            return
        # A target is part of the wire format, but publish_event cannot set one.
        payload = {
            "tag": "event",
            "topic": topic,
            "event": event,
            "context": {"service": self._service_name},
            "trace_id": None,
            "correlation_id": uuid4().hex,
            "target": target,
        }
        self._api.transport.send_message(payload=payload)

    @counted
    def record(self, **kwargs: Any) -> None:
        """Keep the parameters: what a command can be seen by."""
        self._recorded.append(kwargs)

    def recorded(self) -> list[dict[str, Any]]:
        """The parameters of every ``record`` so far."""
        return self._recorded

    def events(self) -> list[dict[str, Any]]:
        """Every event so far."""
        return self._events

    def count(self, method: str = "") -> int:
        """How often a method, or every method, has been called; what only looks is not counted."""
        return self._calls[method] if method else self._calls.total()


async def serve(options: argparse.Namespace) -> int:
    exchanges = {"rpc_exchange": "nuropb-rpc-exchange", "events_exchange": "nuropb-events-exchange"}
    dead_letters = {
        "dl_exchange": "nuropb-dl-exchange",
        "dl_queue": options.dl_queue or f"nuropb-{options.service}-dl",
    }
    configure_nuropb_rmq(rmq_url=options.url, **exchanges, **dead_letters)

    instance_id = uuid4().hex
    kind = EchoService if options.kind == "echo" else ServiceExample
    instance = kind(options.service, instance_id)
    api = RMQAPI(
        amqp_url=options.url,
        service_name=options.service,
        instance_id=instance_id,
        service_instance=instance,
        **exchanges,
        transport_settings={
            **dead_letters,
            "prefetch_count": options.prefetch,
            "rpc_bindings": [options.service],
            "event_bindings": options.events,
        },
    )
    if isinstance(instance, EchoService):
        instance._api = api

    stopped = asyncio.Event()

    def on_stdin() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            stopped.set()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    with contextlib.suppress(PermissionError):  # not something that can be waited for: a file, or /dev/null
        loop.add_reader(0, on_stdin)

    await asyncio.wait_for(api.connect(), 20)
    if not api.connected:  # connect() logs what is wrong and returns
        return 1
    print("READY", flush=True)
    await stopped.wait()
    with contextlib.suppress(TimeoutError):  # when the broker is gone, nuropb waits for its answer
        await asyncio.wait_for(api.disconnect(), 2)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description="A NuroPb service for tests.")
    parser.add_argument("--url", required=True)
    parser.add_argument("--service", required=True)
    parser.add_argument("--kind", choices=["echo", "stub"], default="echo")
    parser.add_argument("--prefetch", type=int, default=1)
    parser.add_argument("--dl-queue")
    parser.add_argument("--events", action="append", default=[], metavar="PATTERN", help="a topic to take; repeatable")
    logging.basicConfig(level=logging.WARNING)
    return asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
