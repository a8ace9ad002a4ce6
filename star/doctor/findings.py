"""A line of either doctor, and what a check of the full one returns."""

import textwrap
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """``mend`` says what to do, if anything; ``needed``: what the parameters ask fails without."""

    what: str
    value: str
    mend: str = ""
    needed: bool = True

    def __str__(self) -> str:
        mark = "ok" if not self.mend else "MEND" if self.needed else "-"
        start = f"{mark:5}{self.what:11}"
        text = f"{self.value}: {self.mend}" if self.mend else self.value
        indent = " " * len(start)
        return textwrap.fill(
            text, 100, initial_indent=start, subsequent_indent=indent, break_on_hyphens=False
        )


Result = tuple[list[Finding], dict[str, Any]]  # lines, and figures for the JSON file
