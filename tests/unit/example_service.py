"""A service with a method for each case, and classes with the names and attributes of nuropb's own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from nuropb_gateway_asgi.wire.services import (
    Outcome,
    call_service,
)

__all__ = [
    "NuropbCallAgain",
    "NuropbException",
    "NuropbSuccess",
    "NuropbValidationError",
    "OurValidationError",
    "Service",
    "Unspeakable",
    "call",
    "circular",
    "deep",
    "marked",
]


class NuropbException(Exception):
    def __init__(self, description: str | None = None, exception: Exception | None = None) -> None:
        super().__init__(description)
        self.description = description
        self.exception = exception


class NuropbValidationError(NuropbException):
    """One that services raise on purpose."""


class OurValidationError(NuropbValidationError):
    """One that a service made of it."""


class NuropbCallAgain(NuropbException):
    """Once more, please."""


class NuropbSuccess(NuropbException):
    def __init__(self, result: Any, events: list[dict[str, Any]] | None = None) -> None:
        super().__init__()
        self.result = result
        self.events = events or []


def marked(**attributes: Any) -> Callable[[Any], Any]:
    def mark(function: Any) -> Any:
        for name, value in attributes.items():
            setattr(function, f"__nuropb_{name}__", value)
        return function

    return mark


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Service:
    """A service."""

    _service_name = "orders"
    _version = "1.2.3"
    number = 7

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.callback: Callable[..., Any] | None = None

    @property
    def size(self) -> int:
        return 7

    def echo(self, **params: Any) -> Any:
        return params

    async def echo_later(self, **params: Any) -> Any:
        await asyncio.sleep(0)
        return params

    def future(self) -> Awaitable[str]:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        future.set_result("from a future")
        return future

    def add(self, a: int, b: int = 2) -> int:
        return a + b

    @marked(context=True, context_arg="ctx")
    def whoami(self, ctx: dict[str, Any], **params: Any) -> Any:
        ctx["seen"] = True
        return [ctx, params]

    @marked(context=False)
    def undecorated(self, **params: Any) -> Any:
        return params

    @staticmethod
    def static(a: int) -> int:
        return a

    @classmethod
    def by_class(cls, a: int) -> str:
        return f"{cls.__name__} {a}"

    def raises(self, error: BaseException) -> None:
        raise error

    async def raises_later(self, error: BaseException) -> None:
        await asyncio.sleep(0)
        raise error

    def _private(self) -> str:
        return "private"

    def returns(self, value: Any) -> Any:
        return value


async def call(method: str, instance: object = None, *, redelivered: bool = False, **params: Any) -> Outcome:
    return await call_service(
        instance or Service(),
        service="orders",
        method=method,
        params=params,
        context={"user_id": "alice"},
        redelivered=redelivered,
    )


def circular() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def deep(levels: int) -> Any:
    value: Any = None
    for _ in range(levels):
        value = [value]
    return value
