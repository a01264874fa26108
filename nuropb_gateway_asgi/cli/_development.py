"""The key of development, for commands that run a gateway or make tokens: see ``authentication/development_key.py``."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Final

from ..exceptions import SettingsError
from ..settings import ENV_PREFIX, Settings
from ._output import printable, say

__all__ = ["KEY_FILE", "share_key", "with_kept_key"]

#: Below the folder that a command is run in.
KEY_FILE: Final = Path(".nuropb-gateway") / "development.key"


def with_kept_key(settings: Settings, *, make: bool) -> Settings:
    """Return ``settings`` with DEVELOPMENT_KEY_FILE, where a gateway with them would make up a key for one run.

    With ``make`` the file is made if it is missing; otherwise a missing file leaves ``settings`` as they are. A file
    that cannot be used or made does so, too, with a line on standard error: development goes on without it.
    """
    if settings.development_key_file or not settings.makes_key:
        return settings
    from ..authentication.development_key import kept_secret

    if not make and not KEY_FILE.exists():
        return settings
    try:
        kept_secret(KEY_FILE)
    except SettingsError as error:
        say(f"the key of this run is not kept, so its tokens end with it: {printable(str(error))}")
        return settings
    return dataclasses.replace(settings, development_key_file=str(KEY_FILE.absolute()))


def share_key(settings: Settings) -> None:
    """Let child processes with this environment use the key of ``settings``, too."""
    if settings.development_key_file:
        os.environ[f"{ENV_PREFIX}DEVELOPMENT_KEY_FILE"] = settings.development_key_file
