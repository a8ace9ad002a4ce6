"""The content of a parameter file: YAML 1.2 of bounded size, each key a text that comes once."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from star.system.errors import StarError, cut, shown

LARGEST = 1_000_000  # bytes of a parameter file
MOST_VALUES = 100_000  # its aliases written out: a few lines of them can stand for billions
DEEPEST = 20  # levels; an alias for what it is in has no end
LARGEST_NUMBER = 10**100


def read_values(path: Path) -> Any:
    """Return the content of a parameter file, with no check of its keys, as DVC reads it.

    Raises:
        StarError: a file that cannot be read or is larger than `LARGEST`, broken YAML, a key twice,
            or content that no parameter can have; names the line or the key.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise StarError(f"{path}: larger than {LARGEST} bytes; give a parameter file")
        values = YAML(typ="safe", pure=True).load(content.decode("utf-8"))
    except StarError:
        raise
    except Exception as error:  # the library also raises others, for tags that do not fit
        said = " ".join(str(error).split())
        if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
            said = f"line {error.problem_mark.line + 1}: {error.problem}"
        raise StarError(f"{path}: not a YAML file of parameters ({cut(said, 300)})") from error
    for number, (key, value) in enumerate(_everything(values)):
        fault = _fault(value)
        if len(key) > DEEPEST or number >= MOST_VALUES:
            key = key[:1]
            fault = f"more than {DEEPEST} levels or {MOST_VALUES} values, its aliases written out"
        if fault:
            raise StarError(f"{path}: {dotted(key)}: {fault}")
    return values


def dotted(key: Iterable[str]) -> str:
    """Return the parts of a key as one name; odd or long ones as Python writes them, cut."""
    parts = [part if re.fullmatch(r"[\w-]{1,64}", part) else shown(part) for part in key]
    return ".".join(parts) or "top level"


def _everything(values: Any, key: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every value with its key; an alias as often as it is used."""
    yield key, values
    if isinstance(values, dict | list):
        for part, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from _everything(value, (*key, str(part)))


def _fault(value: Any) -> str | None:
    """Return why no parameter can have this value, or this dictionary's keys."""
    match value:
        case dict():
            for key in value:
                if fault := _fault(key):
                    return fault
                if not isinstance(key, str):
                    return f"key {shown(key)} is not a text; put it in quotes"
        case int() if abs(value) >= LARGEST_NUMBER:
            return "a number of more than 100 digits"
        case str() if "\0" in value:
            return f"{shown(value)} has NUL in it; remove that character"
        case str() if value != value.encode("utf-8", "ignore").decode("utf-8"):
            return f"{shown(value)} has half a surrogate pair in it; remove that character"
    return None
