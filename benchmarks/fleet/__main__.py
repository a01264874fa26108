"""The command line: ``python -m benchmarks.fleet``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.fleet.report import kept, write
from benchmarks.fleet.run import FULL, QUICK, SIMULATED, Broker, Plan, measure
from benchmarks.fleet.users import measure_users


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the cost of a fleet of 2 to 1,000 processes.")
    parser.add_argument("--full", action="store_true", help=f"sizes {FULL} on a broker, {SIMULATED} by simulation")
    parser.add_argument("--sizes", help="other sizes, separated by commas")
    parser.add_argument("--slow", type=float, help="multiply all intervals, by default by a fiftieth of the members")
    parser.add_argument("--simulate", action="store_true", help="count messages, without a broker")
    parser.add_argument("--users", action="store_true", help="measure the memory for a million users anew")
    parser.add_argument("--url", help="use this broker, and do not measure its CPU time")
    parser.add_argument("--raw", type=Path, help="write the figures into this file")
    parser.add_argument("--from", dest="sources", type=Path, nargs="+", help="measure nothing, report on such files")
    parser.add_argument("--before", type=Path, nargs="+", help="such files of an earlier design")
    parser.add_argument("--write", action="store_true", help="put figures and pictures into docs/scale.md")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    if options.sources is not None:
        results = read(options.sources)
    else:
        for plan in plans(options):
            for found in measure(plan):
                results.append(found)
                print(f"{found['members']} members: measured", file=sys.stderr)
                if options.raw is not None:
                    options.raw.write_text(json.dumps(results, indent=1))
    users = kept("users") if not (options.users or options.full) else list(measure_users())
    before = kept("before") if options.before is None else read(options.before)
    print(write(results, before, users, into_docs=options.write))


def plans(options: argparse.Namespace) -> list[Plan]:
    def slow(size: int) -> float:
        return float(options.slow or max(1.0, size / 50))

    broker = Broker(options.url) if options.url else None
    if options.full:
        return [Plan(FULL, slow, broker), Plan(SIMULATED, slow, simulated=True)]
    sizes = [int(each) for each in options.sizes.split(",")] if options.sizes else None
    if options.simulate:
        return [Plan(sizes or SIMULATED, slow, simulated=True)]
    return [Plan(sizes or QUICK, slow, broker)]


def read(paths: list[Path]) -> list[dict[str, Any]]:
    """Read the figures of several files, the sizes in their order."""
    found = [each for path in paths for each in json.loads(path.read_text())]
    return sorted(found, key=lambda each: (each["members"], not each["broker"]))


if __name__ == "__main__":
    main()
