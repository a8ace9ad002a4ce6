"""JSON files of a run, checked against dataclasses; a refusal names file, key and fix."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from star.prompts.records import parse_object, read_lines
from star.system.errors import StarError, shown

T = TypeVar("T")


def read_object(path: Path) -> dict:
    """Read a file that must be one JSON object; `StarError` if it cannot be read or is not one."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StarError(f"{path}: cannot be read ({error}); make it again") from error
    return parse_object(text, str(path))


def read_objects(path: Path) -> Iterator[tuple[dict, str]]:
    """Read the objects of a JSON-lines file, each with its ``file:line``; `StarError` as above."""
    for number, line in read_lines(path):
        yield parse_object(line, f"{path}:{number}"), f"{path}:{number}"


def checked(kind: type[T], value: object, where: str, mend: str, folder: Path | None = None) -> T:
    """Return ``value``, as JSON has it, as a ``kind``: a dataclass or a type of its fields.

    Args:
        where: file, and line or key, at the start of a message; ``mend`` is its end.
        folder: of the file, for fields that name other files.

    Raises:
        StarError: a missing key or a wrong value; the message names the first of them.
    """
    try:
        return _adapter(kind).validate_python(value, context=folder)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        steps = (f"[{k}]" if isinstance(k, int) else f".{k}" for k in first["loc"])
        key = "".join(steps).lstrip(".")
        found = "" if first["type"] == "missing" else f", found {shown(first['input'])}"
        said = f"{key}: {first['msg']}" if key else first["msg"]
        raise StarError(f"{where}: {said}{found}; {mend}") from error


@cache
def _adapter(kind: Any) -> TypeAdapter:
    return TypeAdapter(kind)
