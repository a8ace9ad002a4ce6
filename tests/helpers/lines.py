"""Reads JSON lines."""

import json
from pathlib import Path


def read_lines(path: Path) -> list[dict]:
    """Return the values of a file's lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
