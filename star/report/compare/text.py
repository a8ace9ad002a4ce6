"""A comparison as text for a terminal, by ``table.txt.j2``."""

from collections.abc import Mapping, Sequence
from itertools import groupby

from star.report.html import environment

LONGEST = 40  # characters of a parameter's value
COLUMN = " ¦ "  # between the columns of the template's tables


def show(names: Mapping[str, str], values: Mapping[str, object]) -> str:
    """Return the whole text; what a terminal might obey in a file is a question mark.

    Args:
        names: of the tasks.
        values: what the template needs.
    """
    made = environment(names, finalize=_printable)
    made.filters["short"] = lambda v: v if len(v) <= LONGEST else f"{v[: LONGEST - 3]}..."
    lines = made.get_template("report/compare/table.txt.j2").render(values).strip("\n").split("\n")
    text: list[str] = []
    for has_columns, block in groupby(lines, key=lambda line: COLUMN in line):
        rows = [line.split(COLUMN) for line in block]
        text += _aligned(rows) if has_columns else (line for (line,) in rows)
    return "\n".join(text).replace("\u2212", "-")


def _printable(value: object) -> str:
    return "".join(c if c.isprintable() and c not in COLUMN.strip() else "?" for c in str(value))


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Put columns two spaces apart; short rows end early."""
    widths = [max(len(row[k]) for row in rows if k < len(row)) for k in range(max(map(len, rows)))]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=False)).rstrip()
        for row in rows
    ]
