"""Progress of long work: a bar in a terminal, a line now and then where standard error is a file or
a pipe."""

import sys
from typing import Any

from tqdm import tqdm

LINE_SECONDS = 10.0  # at least so long between two lines of a loop
_LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class Progress(tqdm):
    """tqdm with its arguments; where standard error is no terminal, it writes whole lines in place
    of a bar."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        if not sys.stderr.isatty():
            options |= {
                "file": _Lines(),
                "mininterval": LINE_SECONDS,
                "bar_format": _LINE,
                "leave": True,
            }
        super().__init__(*arguments, **options)


class _Lines:
    """Standard error, without what moves a terminal's cursor."""

    encoding = "utf-8"

    def write(self, text: str) -> None:
        if line := text.replace("\x1b[A", "").strip():
            sys.stderr.write(line + "\n")

    def flush(self) -> None:
        sys.stderr.flush()
