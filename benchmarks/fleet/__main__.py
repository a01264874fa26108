"""The command line: ``python -m benchmarks.fleet``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.fleet.report import write
from benchmarks.fleet.run import FULL, QUICK, Plan, measure


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the cost of a fleet of 2 to 1,000 processes.")
    parser.add_argument("--full", action="store_true", help=f"sizes {FULL} in the place of {QUICK}")
    parser.add_argument("--sizes", help="other sizes, separated by commas")
    parser.add_argument("--slow", help="multiply all intervals, by default by 1 up to 100 members and then by more")
    parser.add_argument("--memory", action="store_true", help="count messages, without a broker")
    parser.add_argument("--raw", type=Path, help="write the figures into this file")
    parser.add_argument("--from", dest="source", type=Path, help="measure nothing, report on such a file")
    parser.add_argument("--before", type=Path, help="such a file of an earlier design, to compare with")
    parser.add_argument("--write", action="store_true", help="put figures and pictures into docs/scale.md")
    options = parser.parse_args()
    if options.source is not None:
        results = json.loads(options.source.read_text())
    else:
        sizes = [int(each) for each in options.sizes.split(",")] if options.sizes else FULL if options.full else QUICK

        def slow(size: int) -> float:
            return float(options.slow) if options.slow else max(1.0, float(round(size / 100)))

        results = []
        for found in measure(Plan(sizes, slow, options.memory)):
            results.append(found)
            print(f"{found['members']} members: measured", file=sys.stderr)
            if options.raw is not None:
                options.raw.write_text(json.dumps(results, indent=1))
    before = json.loads(options.before.read_text()) if options.before is not None else None
    print(write(results, before, into_docs=options.write))


if __name__ == "__main__":
    main()
