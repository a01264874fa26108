"""A service made of answers, called and described by the same rules as a service object."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias

from ..protocol import is_method
from ..wire.errors import NuropbHandlingError

__all__ = ["Answer", "MockMethod", "MockService", "in_order"]

#: The answer of a mocked method: a JSON value; an exception, which is raised; or a function of the parameters. The
#: function may be a coroutine function, and gets the context first if ``with_context`` marks it.
Answer: TypeAlias = Any

_ANY: Final = inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)


def in_order(*answers: Answer) -> Callable[..., Any]:
    """Return an answer that gives these answers, one at each call; the last one is given from then on."""
    if not answers:
        raise TypeError("in_order() needs at least one answer")
    number = 0

    def answer(**params: Any) -> Any:
        nonlocal number
        number += 1
        return resolve(answers[min(number, len(answers)) - 1], params)

    return answer


def resolve(answer: Answer, params: Mapping[str, Any]) -> Any:
    """Return the value of an answer, or an awaitable of it. Raises the answer if it is an exception."""
    if isinstance(answer, BaseException) or (isinstance(answer, type) and issubclass(answer, BaseException)):
        raise answer
    if callable(answer):
        return answer(**params)
    return copy.deepcopy(answer)


class MockMethod:
    """A method of a mocked service: its answer, and its description.

    ``parameters`` maps names to Python types as NuroPb writes them ("str", "int", "" for any). ``required`` names those
    without a default. Without ``parameters``, the method takes any.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        description: str = "",
        parameters: Mapping[str, str] | None = None,
        required: Iterable[str] = (),
    ) -> None:
        self.answer = answer
        self.__doc__ = description or None
        self.__name__ = self.__qualname__ = "mock"
        self.__nuropb_context__ = getattr(answer, "__nuropb_context__", False)
        self.__nuropb_context_arg__ = getattr(answer, "__nuropb_context_arg__", "ctx")
        self.__nuropb_description__ = description or None
        self.__signature__ = _signature(answer, parameters, frozenset(required))

    def __call__(self, *args: Any, **params: Any) -> Any:
        """Answer a call; ``args`` holds its context, if the answer is a function that gets it."""
        if self.__nuropb_context__:
            return self.answer(*args, **params)
        return resolve(self.answer, params)


def _signature(answer: Answer, parameters: Mapping[str, str] | None, required: frozenset[str]) -> inspect.Signature:
    if parameters is None:
        if inspect.isfunction(answer) or inspect.ismethod(answer):
            return inspect.signature(answer)
        return inspect.Signature([_ANY])
    found = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if name in required else None,
            annotation=type_ or inspect.Parameter.empty,
        )
        for name, type_ in parameters.items()
    ]
    if getattr(answer, "__nuropb_context__", False):
        name = answer.__nuropb_context_arg__  # which descriptions leave out
        found.insert(0, inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY))
    return inspect.Signature(found)


class MockService:
    """A service whose methods are :class:`MockMethod` objects; other answers are made into such.

    ``description`` and ``version`` are for descriptions. A call of another method fails with a text that lists the
    methods. Raises ValueError for a name that no client can call.
    """

    def __init__(
        self,
        name: str,
        methods: Mapping[str, Answer | MockMethod],
        *,
        version: str | None = "mock",
        description: str = "",
    ) -> None:
        self.__doc__ = description or None
        self._service_name = name
        self._version = version
        self._methods: dict[str, MockMethod] = {}
        for method, answer in methods.items():
            self._set(method, answer)

    def _set(self, name: str, answer: Answer | MockMethod) -> None:
        if not is_method(name) or name.startswith("_"):
            raise ValueError(f"{self._service_name}.{name}: not a method that clients can call")
        method = answer if isinstance(answer, MockMethod) else MockMethod(answer)
        self._methods[name] = method
        setattr(self, name, method)  # where calls and descriptions look for methods

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)

        def unknown(**params: Any) -> Any:
            known = ", ".join(sorted(self._methods)) or "none"
            raise NuropbHandlingError(f"Unknown method {name}: the mock of {self._service_name} has {known}")

        return unknown
