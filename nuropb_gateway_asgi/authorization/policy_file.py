"""The policy file on disk: loaded at the start, and again when it changes or on SIGHUP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, TypeAlias

import anyio
import anyio.to_thread

from ..exceptions import SettingsError
from ..settings import ENV_PREFIX
from ..tasks import on_hangup
from .rule_policy import RulePolicy
from .syntax import PolicyDocument, parse_document

__all__ = ["MAX_FILE_SIZE", "PolicyFile", "Signature", "read_signature"]

logger = logging.getLogger(__name__)

#: Seconds between two checks of the file. A check that finds a change is followed by one after half the time, which
#: loads the file if it is the same: within a second of the change.
POLL_INTERVAL: Final = 0.5
#: Bytes: some ten thousand rules. A larger file is most likely the wrong one.
MAX_FILE_SIZE: Final = 1 << 20

#: Device, inode, size and both times of a state of the file; None if there is no file. The inode changes when another
#: file is moved into its place, or a symbolic link leads elsewhere.
Signature: TypeAlias = tuple[int, int, int, int, int] | None


class _Loaded(NamedTuple):
    signature: Signature
    document: PolicyDocument = PolicyDocument(())
    error: SettingsError | None = None


def read_signature(path: str) -> Signature:
    """Return the signature of the file's present state."""
    with contextlib.suppress(OSError, ValueError):
        return _signature(os.stat(path))
    return None


class PolicyFile:
    """A policy file, and the policy with its rules.

    Raises PolicyError for a mistake in the file, and SettingsError if it cannot be read. After the start it raises
    neither: the last valid rules stay in force, and ``problem`` has the reason. ``look`` reads the signature.
    """

    def __init__(self, path: str, *, own_service: str = "", look: Callable[[str], Signature] = read_signature) -> None:
        self._path = path
        self._look = look
        loaded = _load(path)
        if loaded.error is not None:
            raise loaded.error
        self._signature = loaded.signature
        self.policy: Final = RulePolicy(loaded.document.rules, own_service=own_service)
        #: The topics whose events are kept, as of the start.
        self.history: Final = loaded.document.history
        #: The reason why the present content of the file is not in force, in one line; None if it is in force.
        self.problem: str | None = None
        #: The number of reloads since the start: ``ok`` and ``failed``.
        self.reloads: Counter[str] = Counter()
        self._asked = asyncio.Event()

    def reload(self) -> None:
        """Have :meth:`watch` reload the file now."""
        self._asked.set()

    async def watch(self, on_change: Callable[[], Awaitable[None]]) -> None:
        """Reload the file after each change, and on each SIGHUP, until cancelled.

        ``on_change`` is awaited once new rules are in force. The disk is read in a thread. Cancellation does not wait
        for this thread, because the file may be on a network disk that has gone away.
        """
        self._asked = asyncio.Event()  # it belongs to the event loop that first waits for it
        limiter = anyio.CapacityLimiter(1)
        before = self._signature
        with on_hangup(self._asked.set):
            while True:
                with anyio.move_on_after(POLL_INTERVAL if before == self._signature else POLL_INTERVAL / 2):
                    await self._asked.wait()
                asked = self._asked.is_set()
                self._asked.clear()
                try:
                    now = await anyio.to_thread.run_sync(
                        self._look, self._path, limiter=limiter, abandon_on_cancel=True
                    )
                    # A file that differs between two checks may still be being written.
                    if asked or (now != self._signature and now == before):
                        loaded = await anyio.to_thread.run_sync(
                            _load, self._path, limiter=limiter, abandon_on_cancel=True
                        )
                        if self._take(loaded):
                            await on_change()
                    before = now
                except Exception:  # no more threads, or a defect here: no reason to stop the gateway
                    logger.exception("policy reload failed; keeping the previous policy")

    def _take(self, loaded: _Loaded) -> bool:
        """Put valid rules into force, or log why they are not valid. Return whether they are in force."""
        self._signature = loaded.signature
        if loaded.error is not None:
            self.reloads["failed"] += 1
            self.problem = str(loaded.error)
            logger.error("policy reload failed; keeping the previous policy: %s", loaded.error)
            return False
        self.reloads["ok"] += 1
        self.problem = None
        rules, history = loaded.document
        self.policy.replace(rules)
        logger.info("%s: policy reloaded, %d rules are in force", self._path, len(rules))
        if history != self.history:
            logger.warning("%s: history has changed; the change takes effect when the gateway starts again", self._path)
        return True


def _signature(status: os.stat_result) -> Signature:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _load(path: str) -> _Loaded:
    try:
        status = os.stat(path)
        signature = _signature(status)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe could block forever
            return _Loaded(signature, error=_unreadable("not a regular file"))
        if status.st_size > MAX_FILE_SIZE:
            return _Loaded(signature, error=_unreadable(f"the file is larger than {MAX_FILE_SIZE} bytes"))
        with open(path, "rb") as file:
            signature = _signature(os.fstat(file.fileno()))
            data = file.read(MAX_FILE_SIZE)
        return _Loaded(signature, parse_document(data, path))
    except SettingsError as error:
        return _Loaded(signature, error=error)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        return _Loaded(read_signature(path), error=_unreadable(f"the file cannot be read ({type(error).__name__})"))


def _unreadable(wrong: str) -> SettingsError:
    return SettingsError(f"{ENV_PREFIX}POLICY: {wrong}; expected the name of a readable TOML file")
