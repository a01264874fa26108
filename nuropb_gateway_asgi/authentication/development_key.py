"""A key for development that outlives the process: a file of the project, for its owner alone, and out of git.

``nuropb-gateway serve`` (so `make run`, too) and ``nuropb-gateway dev`` keep their key here while the settings name no
other one: they copy their settings by ``with_kept_key`` of ``cli/_development.py``, which sets DEVELOPMENT_KEY_FILE.
A command that runs the gateway in a child process also puts that setting into the environment of the child. A token
that one of them made is then valid for all later runs in the same folder, and
`nuropb-gateway token` makes further ones.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from ..exceptions import SettingsError
from .keys import new_secret

__all__ = ["kept_secret"]

#: Bytes of a file that is read; a key has 43.
_LONGEST = 4096
_LEAST = 32


def kept_secret(path: Path) -> str:
    """Return the secret in the file ``path``. The first call makes the file, with mode 600.

    If the folder of ``path`` is made, too, it gets a ``.gitignore`` for all that is in it. Processes that call this at
    the same time get the same secret. Raises SettingsError for a file that another user of this machine could have
    written or can read, for one without a key, and for one that can neither be read nor be made.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            return _read(path)
        return _make(path)
    except OSError as error:
        raise _refusal(path, error.strerror or type(error).__name__) from error


def _make(path: Path) -> str:
    _make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(f"{new_secret()}\n")
        with contextlib.suppress(FileExistsError):  # another process was first
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return _read(path)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        return
    (folder / ".gitignore").write_text("*\n", encoding="ascii")


def _read(path: Path) -> str:
    # Not through a symbolic link: in a folder that others may write to, it could name a file of theirs.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _refusal(path, "not a file")
        if os.name == "posix" and (status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077):
            raise _refusal(path, "other users of this machine can read or change it")
        content = file.read(_LONGEST + 1)
    secret = content.decode("ascii", "replace").strip()
    if len(content) > _LONGEST or len(secret) < _LEAST or not secret.isascii() or not secret.isprintable():
        raise _refusal(path, "no key is in it")
    return secret


def _refusal(path: Path, fact: str) -> SettingsError:
    return SettingsError(
        f"DEVELOPMENT_KEY_FILE: {path}: {fact}; expected a file of mode 600, or none, in a folder that this user may "
        "write to: the next start makes it"
    )
