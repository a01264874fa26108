"""The policy file on its disk: read at the start, and again when it changes or the operator says so."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import stat
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType
from typing import Final, NamedTuple, TypeAlias

import anyio
import anyio.to_thread

from ..exceptions import SettingsError
from ..settings import ENV_PREFIX
from .patterns import Rule
from .rule_policy import RulePolicy
from .syntax import parse_policy

__all__ = ["PolicyFile"]

logger = logging.getLogger(__name__)

#: Seconds between two looks at the file. A change is taken up by the second look that finds it the same.
POLL_INTERVAL: Final = 0.5
#: Bytes. A file of this size has some ten thousand rules, or is not the one that was meant.
MAX_SIZE: Final = 1 << 20

#: What tells one state of the file from another: device, inode, size and both times; None if there is no file. A file
#: that was moved into the place of another has another inode, and so has one that a symbolic link now leads to.
_Signature: TypeAlias = tuple[int, int, int, int, int] | None


class _Loaded(NamedTuple):
    signature: _Signature
    rules: tuple[Rule, ...] = ()
    error: SettingsError | None = None


class PolicyFile:
    """A policy file, and the policy that it holds.

    Raises PolicyError for a mistake in the file, and SettingsError if it cannot be read. Later on it raises neither:
    the last rules that were good stay in force, and ``problem`` says why.
    """

    def __init__(self, path: str, *, own_service: str = "") -> None:
        self._path = path
        loaded = _load(path)
        if loaded.error is not None:
            raise loaded.error
        self._signature = loaded.signature
        self.policy: Final = RulePolicy(loaded.rules, own_service=own_service)
        #: Why the file, as it is now, is not in force; one line, or None when it is.
        self.problem: str | None = None
        #: How often it was loaded since the start: ``ok`` and ``failed``.
        self.reloads: Counter[str] = Counter()
        self._asked = asyncio.Event()

    async def watch(self, on_change: Callable[[], Awaitable[None]]) -> None:
        """Load the file again when it has changed, or on a hangup signal, until cancelled.

        ``on_change`` is awaited when new rules are in force. The disk is read in a thread, which nobody waits for when
        this is cancelled: it may be a network's that is gone.
        """
        self._asked = asyncio.Event()  # it belongs to the event loop in which it is waited for
        limiter = anyio.CapacityLimiter(1)
        before = self._signature
        with self._asking_on_hangup():
            while True:
                with anyio.move_on_after(POLL_INTERVAL):
                    await self._asked.wait()
                asked = self._asked.is_set()
                self._asked.clear()
                try:
                    now = await anyio.to_thread.run_sync(_look, self._path, limiter=limiter, abandon_on_cancel=True)
                    # The same for two looks, or somebody may still be writing it.
                    if asked or (now != self._signature and now == before):
                        loaded = await anyio.to_thread.run_sync(
                            _load, self._path, limiter=limiter, abandon_on_cancel=True
                        )
                        if self._take(loaded):
                            await on_change()
                    before = now
                except Exception:  # no more threads, or a mistake here: nothing that should end the gateway
                    logger.exception("the policy stays as it was")

    def _take(self, loaded: _Loaded) -> bool:
        """Put new rules into force, or say why not; whether that has happened."""
        self._signature = loaded.signature
        if loaded.error is not None:
            self.reloads["failed"] += 1
            self.problem = str(loaded.error)
            logger.error("the policy stays as it was: %s", loaded.error)
            return False
        self.reloads["ok"] += 1
        self.problem = None
        self.policy.replace(loaded.rules)
        logger.info("%s: %d rules are in force", self._path, len(loaded.rules))
        return True

    @contextlib.contextmanager
    def _asking_on_hangup(self) -> Iterator[None]:
        """Have SIGHUP load the file, and then do what it did before; what it does by default is to end the process."""
        number = getattr(signal, "SIGHUP", None)  # Windows has none
        if number is None or threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        saved = signal.getsignal(number) or signal.SIG_DFL  # None: it was not set by Python

        def on_signal(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._asked.set)
            if callable(saved):
                saved(number, frame)

        signal.signal(number, on_signal)
        try:
            yield
        finally:
            if signal.getsignal(number) is on_signal:
                signal.signal(number, saved)


def _look(path: str) -> _Signature:
    with contextlib.suppress(OSError, ValueError):
        return _signature(os.stat(path))
    return None


def _signature(status: os.stat_result) -> _Signature:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _load(path: str) -> _Loaded:
    try:
        status = os.stat(path)
        signature = _signature(status)
        if not stat.S_ISREG(status.st_mode):  # to open a pipe could take for ever
            return _Loaded(signature, error=_unreadable("it is not a file"))
        if status.st_size > MAX_SIZE:
            return _Loaded(signature, error=_unreadable(f"it has more than {MAX_SIZE} bytes"))
        with open(path, "rb") as file:
            signature = _signature(os.fstat(file.fileno()))
            data = file.read(MAX_SIZE)
        return _Loaded(signature, parse_policy(data, path))
    except SettingsError as error:
        return _Loaded(signature, error=error)
    except (OSError, ValueError) as error:  # the second: a name that no file can have
        return _Loaded(_look(path), error=_unreadable(f"the file cannot be read ({type(error).__name__})"))


def _unreadable(wrong: str) -> SettingsError:
    return SettingsError(f"{ENV_PREFIX}POLICY: {wrong}; allowed is the name of a readable TOML file")
