"""Progress of long work: a bar in a terminal, elsewhere a line now and then."""

import sys
from typing import Any

from tqdm import tqdm

LINE_SECONDS = 10.0  # at least so long between two lines of a loop
_LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class Progress(tqdm):
    """tqdm, which writes whole lines in place of a bar where standard error is no terminal."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        if not sys.stderr.isatty():
            options |= {"file": _Lines(), "bar_format": _LINE}
            options |= {"mininterval": LINE_SECONDS, "leave": True}
        super().__init__(*arguments, **options)


class _Lines:
    """Standard error, without what moves a terminal's cursor."""

    def write(self, text: str) -> None:
        if line := text.replace("\x1b[A", "").strip():
            sys.stderr.write(line + "\n")
