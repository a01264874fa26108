"""Logging by an operator's file: what it logs is filtered, and what is wrong with it is one line."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nuropb_gateway_asgi import Settings, SettingsError
from nuropb_gateway_asgi.exceptions import MeshUnavailable
from nuropb_gateway_asgi.observability.log_files import handlers
from nuropb_gateway_asgi.observability.logs import configure_logging

#: Loggers that a configuration may change.
LOGGERS = ("", "nuropb_gateway_asgi", "uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi", "asyncio", "other")


@pytest.fixture(autouse=True)
def unchanged() -> Iterator[None]:
    """Give the loggers back as they were."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    filtered = {each: list(each.filters) for each in handlers()}  # pytest's own among them
    before = [(each, list(each.handlers), list(each.filters), each.level, each.propagate) for each in loggers]
    yield
    for logger, its_handlers, filters, level, propagate in before:
        logger.handlers, logger.filters, logger.propagate = its_handlers, filters, propagate
        logger.setLevel(level)
    for handler, filters in filtered.items():
        handler.filters = filters


class Verbose(logging.Formatter):
    """A formatter with a way of its own to write exceptions."""

    def format(self, record: logging.LogRecord) -> str:
        raised = "" if record.exc_info is None else repr(record.exc_info[1])
        return f"{record.name} {record.levelname} {record.getMessage()} {raised}{record.exc_text or ''}"


def configure(
    directory: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any] | None = None, /, **more: Any
) -> io.StringIO:
    """Configure logging by a file, and return what it prints."""
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    config = {
        "version": 1,
        "formatters": {"verbose": {"()": f"{__name__}.Verbose"}},
        "handlers": {"out": {"class": "logging.StreamHandler", "formatter": "verbose", "stream": "ext://sys.stdout"}},
        "root": {"level": "INFO", "handlers": ["out"]},
    }
    file = directory / "logging.json"
    file.write_text(json.dumps(config | more))
    configure_logging(Settings(log_config=str(file), **(settings or {})))
    return out


@pytest.mark.parametrize("disable", [True, False])
def test_no_logger_is_silenced_that_the_file_does_not_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disable: bool
) -> None:
    out = configure(tmp_path, monkeypatch, disable_existing_loggers=disable)
    names = ("nuropb_gateway_asgi.gateway", "uvicorn.error", "other")
    for name in names:
        logging.getLogger(name).info("told")
    assert [line.split()[0] for line in out.getvalue().splitlines()] == list(names)


def test_the_messages_of_exceptions_reach_no_formatter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = configure(tmp_path, monkeypatch)
    for name in ("nuropb_gateway_asgi.gateway", "uvicorn.error", "asyncio", "other"):
        for error in (ValueError("a token"), MeshUnavailable("not connected")):
            logging.getLogger(name).error("it failed", exc_info=error)
    assert "a token" not in out.getvalue()
    assert out.getvalue().count("MeshUnavailable: not connected") == 4
    assert out.getvalue().count("ValueError") == 4


def test_control_characters_and_length_are_bounded_for_every_logger_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = {"class": "logging.StreamHandler", "formatter": "verbose", "stream": "ext://sys.stdout"}
    out = configure(tmp_path, monkeypatch, loggers={"uvicorn": {"handlers": ["out"]}}, handlers={"out": second})
    logging.getLogger("uvicorn.access").info('%s - "%s %s HTTP/%s" %d', "a", "GET", "/\n" + "x" * 300, "1.1", 404)
    logging.getLogger("other").info("%s", "\n" + "x" * 5000)
    of_server, again, of_other = [line for line in out.getvalue().splitlines() if "characters" in line]
    assert of_server == again  # by both handlers
    assert rf"/\x0a{'x' * 254}... (302 characters)" in of_server
    assert rf"\x0a{'x' * 4095}... (5001 characters)" in of_other


@pytest.mark.parametrize(("level", "told"), [("info", True), ("warning", False)])
def test_the_levels_of_the_file_hold_unless_another_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str, told: bool
) -> None:
    out = configure(tmp_path, monkeypatch, {"log_level": level})
    for name in ("nuropb_gateway_asgi.gateway", "uvicorn.error"):
        logging.getLogger(name).info("told")
    assert bool(out.getvalue()) is told


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", None, "No such file or directory"),
        ("a.yaml", None, "No such file or directory"),
        ("a.ini", None, "No such file or directory"),
        ("a.json", "{", "Expecting property name enclosed in double quotes"),
        ("a.json", "[]", "expected an object"),
        ("a.json", "{}", "dictionary doesn't specify a version"),
        ("a.json", '{"version": 1, "handlers": {"x": {"class": "no.such"}}}', "handler 'x': Cannot resolve 'no.such'"),
        ("a.ini", "", ""),
        ("a.ini", "[loggers", ""),
        ("a.json", "\xff", ""),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    file = tmp_path / name
    if text is not None:
        file.write_bytes(text.encode("latin-1"))
    with pytest.raises(SettingsError) as caught:
        configure_logging(Settings(log_config=str(file)))
    line = str(caught.value)
    assert line.startswith(f"NUROPB_GATEWAY_LOG_CONFIG: {file}: ")
    assert said in line
    assert "\n" not in line


def test_yaml_without_its_package_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    file = tmp_path / "a.yml"
    file.write_text("version: 1")
    with pytest.raises(SettingsError, match="YAML needs the package PyYAML; install it"):
        configure_logging(Settings(log_config=str(file)))
