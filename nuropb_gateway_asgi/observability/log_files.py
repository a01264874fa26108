"""Logging configuration files of operators, as uvicorn's ``--log-config`` takes them: JSON, YAML or ini."""

from __future__ import annotations

import importlib
import json
import logging
import logging.config
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..exceptions import SettingsError
from ..settings import ENV_PREFIX

__all__ = ["handlers", "load_log_config"]


def load_log_config(path: str) -> None:
    """Configure logging by a file: ``.json``, ``.yaml`` or ``.yml`` for a dictionary, any other name for an ini file.

    ``disable_existing_loggers`` has no effect: it is on by default, and would silence every logger that the file does
    not name. Raises SettingsError.
    """
    try:
        suffix = Path(path).suffix
        if suffix == ".json":
            _configure(json.loads(Path(path).read_bytes()))
        elif suffix in (".yaml", ".yml"):
            yaml = importlib.import_module("yaml")
            _configure(yaml.safe_load(Path(path).read_bytes()))
        else:
            with open(path) as file:  # fileConfig() ignores a file that it cannot read on some versions of Python
                logging.config.fileConfig(file, disable_existing_loggers=False)
    except ModuleNotFoundError as error:
        if error.name != "yaml":
            raise _refusal(path, error) from error
        raise SettingsError(f"{ENV_PREFIX}LOG_CONFIG: {path}: YAML needs the package PyYAML; install it") from error
    except Exception as error:  # those of the parsers, and of every class that the file names
        raise _refusal(path, error) from error


def _configure(config: Any) -> None:
    if not isinstance(config, dict):
        raise TypeError("expected an object, as logging.config.dictConfig takes it")
    logging.config.dictConfig(config | {"disable_existing_loggers": False})


def _refusal(path: str, error: BaseException) -> SettingsError:
    """Return the error with its causes on one line: logging names a handler, and its cause the reason."""
    texts: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        text = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
        texts.append(" ".join((text or type(cause).__name__).split()))
        cause = cause.__cause__
    return SettingsError(f"{ENV_PREFIX}LOG_CONFIG: {path}: {': '.join(texts)}")


def handlers() -> Iterator[logging.Handler]:
    """Return the handlers of all loggers, and the one that Python falls back to. A handler may come several times."""
    for logger in (logging.getLogger(), *logging.Logger.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            yield from logger.handlers
    if logging.lastResort is not None:
        yield logging.lastResort
