"""The table and the pictures of docs/scale.md, made from measured figures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

__all__ = ["table", "write"]

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
PAGE: Final = DOCS / "scale.md"
PICTURE: Final = DOCS / "performance" / "fleet.png"
FIGURES: Final = DOCS / "performance" / "fleet.json"
BLOCK: Final = re.compile(r"(<!-- fleet: begin -->\n).*?(<!-- fleet: end -->)", re.DOTALL)

Found = Mapping[str, Any]
HEAD: Final = (
    "members",
    "broker",
    "messages/s at rest",
    "KB/s at rest",
    "messages of a start of all",
    "`count`",
    "`send_to_users`, 1 user",
    "10 users in 2 processes",
    "a user comes or leaves",
)


def question(found: Found, name: str) -> float:
    """Return the messages of a question and of its answers that were delivered."""
    return float(found["questions"][name]["delivered"])


CELLS: Final[Sequence[Callable[[Found], str]]] = (
    lambda found: f"{found['members']:,}",
    lambda found: "RabbitMQ" if found["broker"] else "simulated",
    lambda found: f"{found['rest']['delivered']:,.0f}",
    lambda found: f"{found['rest']['delivered bytes'] / 1000:,.1f}",
    lambda found: f"{found['start']['delivered']:,.0f}",
    lambda found: f"{question(found, 'count'):,.0f}",
    lambda found: f"{question(found, 'send_to_users, 1 user'):,.0f}",
    lambda found: f"{question(found, 'send_to_users, 10 users'):,.0f}",
    lambda found: f"{max(0.0, found['change of a user']['delivered']):.1f}",
)


def table(results: Sequence[Found]) -> str:
    """Make a table of fleets, one row for each."""
    rows = [HEAD, tuple("---" for _ in HEAD), *(tuple(cell(each) for cell in CELLS) for each in results)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def draw(results: Sequence[Found], before: Sequence[Found]) -> None:
    """Draw the curves of both designs."""
    from matplotlib.figure import Figure  # only the pictures need it

    figure = Figure(figsize=(9, 2.9), layout="constrained")
    panels: Sequence[tuple[str, Callable[[Found], float]]] = (
        ("messages a second at rest", lambda found: found["rest"]["delivered"]),
        ("messages of one send_to_users", lambda found: question(found, "send_to_users, 1 user")),
        ("messages of a start of all", lambda found: found["start"]["delivered"]),
    )
    for axes, (title, value) in zip(figure.subplots(1, 3), panels, strict=True):
        for name, each, colour in (("every process hears all", before, "#d9822b"), ("now", results, "#1f5fa8")):
            axes.plot([found["members"] for found in each], [value(found) for found in each], "o-", color=colour)
            axes.lines[-1].set(label=name, markersize=4)
        axes.set(xscale="log", yscale="log", xlabel="members")
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(color="#dddddd", linewidth=0.5)
    figure.axes[0].legend(frameon=False, fontsize=8)
    # Without the library's version in the file, equal figures give equal files.
    figure.savefig(PICTURE, dpi=110, metadata={"Software": None})


def write(results: Sequence[Found], before: Sequence[Found], *, into_docs: bool) -> str:
    """Return the tables; ``into_docs`` puts them, the figures and the pictures into the documents."""
    text = table(results)
    if before:
        text += f"\nWith signs of life and questions for everybody, as they were before:\n\n{table(before)}"
    if into_docs:
        FIGURES.write_text(json.dumps({"now": list(results), "before": list(before)}, indent=1) + "\n")
        draw(results, before)
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(BLOCK.sub(lambda found: f"{found[1]}\n{text}\n{found[2]}", page), encoding="utf-8")
    return text
