"""Where two nested dictionaries differ."""

from collections.abc import Iterator
from typing import Any

MISSING = object()  # the value of a key that one of the two lacks


def differences(left: Any, right: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys with both values; ``MISSING`` where there is none."""
    if isinstance(left, dict) and isinstance(right, dict):
        for key in sorted(left.keys() | right.keys(), key=str):
            yield from differences(left.get(key, MISSING), right.get(key, MISSING), f"{where}.{key}".lstrip("."))
    elif left != right:
        yield where, left, right


def described(theirs: Any, ours: Any) -> str:
    """``key theirs -> ours`` for each difference."""
    found = (f"{key} {_short(a)} -> {_short(b)}" for key, a, b in differences(theirs, ours))
    return ", ".join(found)


def _short(value: Any) -> str:
    text = "nothing" if value is MISSING else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
