"""The table and the pictures of docs/scale.md, made from measured figures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

__all__ = ["kept", "table", "write"]

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
    return _rows(HEAD, CELLS, results)


COST_HEAD: Final = (
    "members",
    "start, s",
    "records that a start reads",
    "declarations and bindings/s",
    "broker's CPU at rest, ms/s",
    "a member's CPU at rest, ms/s",
    "records of a revocation",
    "messages of a death",
    "a death is known after, s",
)
COST_CELLS: Final[Sequence[Callable[[Found], str]]] = (
    lambda found: f"{found['members']:,}",
    lambda found: f"{found['start']['seconds']:,.0f}",
    lambda found: f"{found['start']['records']:,.0f}",
    lambda found: f"{found['rest']['declares'] + found['rest']['binds']:,.1f}",
    lambda found: f"{1000 * found['rest']['broker']:,.0f}",
    lambda found: f"{1000 * found['rest']['cpu'] / found['members']:,.1f}",
    lambda found: f"{found['questions']['revoke a token']['records']:,.0f}",
    lambda found: f"{found['death']['delivered']:,.0f}",
    lambda found: f"{found['death']['seconds'] / found['slow']:,.0f}",
)
USERS_HEAD: Final = ("table", "members", "users in it", "bytes for each", "µs to take one in")
USERS_CELLS: Final[Sequence[Callable[[Found], str]]] = (
    lambda found: str(found["table"]),
    lambda found: f"{found['members']:,}",
    lambda found: f"{found['users']:,}",
    lambda found: f"{found['bytes'] / found['users']:,.0f}",
    lambda found: f"{1e6 * found['seconds'] / found['users']:,.1f}",
)


def _rows(head: Sequence[str], cells: Sequence[Callable[[Found], str]], results: Sequence[Found]) -> str:
    rows = [head, tuple("---" for _ in head), *(tuple(cell(each) for cell in cells) for each in results)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def cost_table(results: Sequence[Found]) -> str:
    """Make a table of the costs on a broker, one row for each fleet that was on one."""
    return _rows(COST_HEAD, COST_CELLS, [each for each in results if each["broker"] and "death" in each])


def users_table(users: Sequence[Found]) -> str:
    """Make a table of the memory for users."""
    return _rows(USERS_HEAD, USERS_CELLS, users)


def draw(results: Sequence[Found], before: Sequence[Found], greeted: Sequence[Found]) -> None:
    """Draw the curves of both designs; those of starts before are of ``greeted``."""
    from matplotlib.figure import Figure  # only the pictures need it

    figure = Figure(figsize=(9, 2.9), layout="constrained")
    panels: Sequence[tuple[str, Callable[[Found], float]]] = (
        ("messages a second at rest", lambda found: found["rest"]["delivered"]),
        ("messages of one send_to_users", lambda found: question(found, "send_to_users, 1 user")),
        ("messages of a start of all", lambda found: found["start"]["delivered"]),
    )
    for axes, (title, value) in zip(figure.subplots(1, 3), panels, strict=True):
        for name, each, colour in (("every process hears all", before, "#d9822b"), ("now", results, "#1f5fa8")):
            fleets = greeted if each is before and title.endswith("start of all") else each
            if each is results:  # both, as far as there are both, are the same within a line's width
                fleets = [found for found in each if not found["broker"]] or each
            axes.plot([found["members"] for found in fleets], [value(found) for found in fleets], "o-", color=colour)
            axes.lines[-1].set(label=name, markersize=4)
        axes.set(xscale="log", yscale="log", xlabel="members")
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(color="#dddddd", linewidth=0.5)
    figure.axes[0].legend(frameon=False, fontsize=8)
    # Without the library's version in the file, equal figures give equal files.
    figure.savefig(PICTURE, dpi=110, metadata={"Software": None})


def kept(name: str) -> list[dict[str, Any]]:
    """Return figures of an earlier run, or none."""
    found: list[dict[str, Any]] = json.loads(FIGURES.read_text()).get(name, []) if FIGURES.exists() else []
    return found


def write(results: Sequence[Found], before: Sequence[Found], users: Sequence[Found], *, into_docs: bool) -> str:
    """Return the tables; ``into_docs`` puts them, the figures and the pictures into the documents."""
    text = table(results)
    if any(each["broker"] for each in results):
        text += f"\nOn RabbitMQ, beside the messages:\n\n{cost_table(results)}"
    if users:
        text += f"\nThe tables of a process in a gateway with {1_000_000:,} users:\n\n{users_table(users)}"
    if before:
        text += f"\nWith signs of life and questions for everybody, as they were before:\n\n{table(before)}"
    if into_docs:
        greeted = kept("greeted")
        figures = {"now": list(results), "users": list(users), "greeted": greeted, "before": list(before)}
        FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
        draw(results, before, greeted)
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(BLOCK.sub(lambda found: f"{found[1]}\n{text}\n{found[2]}", page), encoding="utf-8")
    return text
