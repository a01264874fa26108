"""The file of a recording, made by a command."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..mocks.recording import Recording

__all__ = ["opened"]


@contextlib.contextmanager
def opened(recording: Recording) -> Iterator[None]:
    """Make the file, and close it at the end. Raises UsageError with a remedy if it cannot be made."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(recording.opened())
        except FileExistsError:
            raise click.UsageError(f"{recording.path}: the file exists; expected a new one") from None
        except OSError as error:
            raise click.UsageError(f"{recording.path}: {error.strerror}; expected a place for a new file") from None
        yield
