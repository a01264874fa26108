"""Command line of the benchmark: ``python -m benchmarks.run``; see README.md.

Prints Markdown to standard output and progress to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.contenders import CONTENDERS, LIMIT, MOLECULER, MOLECULER_DIRECTORY, NUROPB_GW, ROOT, Contender
from benchmarks.parts import PARTS
from benchmarks.plan import FULL, QUICK, SPARE_FILES, Plan, within
from benchmarks.report import numbers, replaced, report
from benchmarks.stage import BenchmarkError, Stage
from benchmarks.versions import machine, python_with
from tests.servers.rabbitmq import RabbitMQError

DOCUMENT: Final = ROOT / "docs" / "performance.md"
PICTURES: Final = ROOT / "docs" / "performance"
README: Final = ROOT / "README.md"

PACKAGES: Final = (
    *("nuropb-gateway-asgi", "uvicorn", "starlette", "websockets", "uvloop", "msgspec", "aio-pika", "aiormq", "pamqp"),
    *("python-jose", "cryptography", "prometheus-client", "fastapi", "sse-starlette"),
)
PACKAGES_OF_NUROPB_GW: Final = ("nuropb-gw", "tornado", "nuropb", "pika", "python-jose")
PACKAGES_OF_MOLECULER: Final = ("moleculer", "moleculer-io", "moleculer-web", "socket.io", "amqplib", "jsonwebtoken")


#: Remedy for too few open files.
RAISE: Final = "ulimit -Hn shows the limit; root may raise it"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(plan: Plan, size: int, names: Sequence[str], command: str) -> dict[str, Any]:
    """Measure the named parts; return their results with the circumstances of the run, ready for JSON."""
    began = time.monotonic()
    files = open_files(plan.most_connections + SPARE_FILES)
    try:
        plan, too_many = within(plan, files)
    except ValueError as error:
        raise BenchmarkError(f"{error} ({RAISE})") from None
    for count in too_many:
        say(f"{count} connections are left out: a process may open {files} files only ({RAISE})")
    is_full = plan.name == FULL.name
    contenders = [each for each in CONTENDERS if is_full or not each.only_full]
    left_out = [each for each in contenders if each.needs is not None and not each.needs.exists()]
    contenders = [each for each in contenders if each not in left_out]
    with contextlib.ExitStack() as stack:
        say("starting RabbitMQ")
        stage = Stage(stack, size)
        parts = {}
        for name in names:
            started = time.monotonic()
            parts[name] = PARTS[name](stage, plan, [each for each in contenders if name in each.parts], say)
            say(f"{name}: {time.monotonic() - started:.0f} s")
        broker = stage.broker_version
    return {
        "parts": parts,
        "titles": {contender.name: contender.title for contender in contenders},
        "left_out": {contender.title: contender.otherwise for contender in left_out}
        | {f"{count} connections": f"a process may open {files} files only" for count in too_many},
        "command": command,
        "took": time.monotonic() - began,
        "turns": plan.turns,
        "other_turns": plan.other_turns,
        "seconds": plan.seconds,
        "size": size,
        "cpus": os.cpu_count() or 1,
        "machine": machine(),
        "versions": list(versions(contenders, broker)),
    }


def open_files(wanted: int) -> int:
    """Raise the limit of open files, which child processes inherit, to ``wanted`` if possible; return the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited or soft >= wanted:
        return wanted
    # No higher than needed: Erlang reserves memory for every file that it may open.
    limit = wanted if hard == unlimited else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit


# --- versions -----------------------------------------------------------------------------------------------------


def versions(contenders: Sequence[Contender], broker: str) -> Iterator[str]:
    """Yield the versions of all participants."""
    yield f"RabbitMQ {broker}"
    yield python_with(PACKAGES)
    if NUROPB_GW in contenders:
        yield said_by(NUROPB_GW.command[0], "-m", "benchmarks.versions", *PACKAGES_OF_NUROPB_GW)
    if MOLECULER in contenders:
        modules = MOLECULER_DIRECTORY / "node_modules"
        files = {name: json.loads((modules / name / "package.json").read_text()) for name in PACKAGES_OF_MOLECULER}
        found = [f"{name} {file['version']}" for name, file in files.items()]
        node = said_by(MOLECULER.command[0], "--version").removeprefix("v")
        yield f"Node.js {node}: {', '.join(found)}"
    if LIMIT in contenders:
        yield said_by("cc", "--version").splitlines()[0]


def said_by(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


# --- output -------------------------------------------------------------------------------------------------------


def write(results: dict[str, Any]) -> None:
    """Replace the results and pictures in the documents."""
    from benchmarks.pictures import draw

    draw(results, PICTURES)
    lines = list(report(results, PICTURES.name))
    DOCUMENT.write_text(replaced(DOCUMENT.read_text(encoding="utf-8"), "results", lines), encoding="utf-8")
    table = list(numbers(results))
    README.write_text(replaced(README.read_text(encoding="utf-8"), "numbers", table), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare the cost of requests, connections and events.")
    parser.add_argument("--full", action="store_true", help="longer, with up to 10000 connections (25 minutes)")
    parser.add_argument(
        "--only", metavar="PART,...", default=",".join(PARTS), help=f"only these parts, of {', '.join(PARTS)}"
    )
    parser.add_argument("--size", type=int, default=64, help="characters of text in each request (64)")
    parser.add_argument("--raw", type=Path, metavar="FILE", help="write all measurements to this file, as JSON")
    parser.add_argument(
        "--from", type=Path, metavar="FILE", dest="source", help="measure nothing: report on a file from --raw"
    )
    parser.add_argument(
        "--write", action="store_true", help="put the results and pictures into docs/performance.md and README.md"
    )
    options = parser.parse_args()
    names = [name for name in PARTS if name in options.only.split(",")]
    if len(names) != len(options.only.split(",")):
        parser.error(f"--only: the parts are {', '.join(PARTS)}")
    if options.write and len(names) < len(PARTS):
        parser.error("--write: the documents need the results of one run with all parts; leave out --only")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if options.source is not None:
        results = json.loads(options.source.read_text())
    else:
        # Without --raw and --write: the report shows this command, and should not show paths of this machine.
        said = {"--full": options.full, f"--only {options.only}": len(names) < len(PARTS)}
        said[f"--size {options.size}"] = options.size != parser.get_default("size")
        arguments = " ".join(each for each, is_said in said.items() if is_said)
        command = f'make bench BENCH="{arguments}"' if arguments else "make bench"
        try:
            results = measure(FULL if options.full else QUICK, options.size, names, command)
        except (BenchmarkError, RabbitMQError) as error:
            print(f"benchmark: {error}", file=sys.stderr)
            return 1
    if options.raw is not None:
        options.raw.parent.mkdir(parents=True, exist_ok=True)
        options.raw.write_text(json.dumps(results))
    print("\n".join(report(results)))
    if options.write:
        write(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
