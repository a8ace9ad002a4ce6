"""Where nested dictionaries differ."""

from collections.abc import Iterator
from typing import Any

MISSING = object()  # the value of a key that one of them lacks


def differences(*trees: Any, where: str = "") -> Iterator[tuple[Any, ...]]:
    """Yield dotted keys with the value of each of two or more trees; ``MISSING`` for none."""
    if all(isinstance(tree, dict) for tree in trees):
        for key in sorted(set().union(*trees), key=str):
            values = (tree.get(key, MISSING) for tree in trees)
            yield from differences(*values, where=f"{where}.{key}".lstrip("."))
    elif any(tree != trees[0] for tree in trees):
        yield where, *trees


def described(theirs: Any, ours: Any) -> str:
    """Return ``key theirs -> ours`` for each difference."""
    found = (f"{key} {_short(a)} -> {_short(b)}" for key, a, b in differences(theirs, ours))
    return ", ".join(found)


def _short(value: Any) -> str:
    text = "nothing" if value is MISSING else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
