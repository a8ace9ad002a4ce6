"""The schema of `params.yaml`, and what its refusals say in one line: the key, its value and what
is allowed."""

import difflib
import functools
import math
import re
from collections.abc import Iterable, Iterator
from importlib import resources
from typing import Any

import yaml

from star.system.errors import SHOWN, StarError, shown


@functools.cache
def schema() -> dict:
    """The JSON schema of `params.yaml`, read once; not to be changed."""
    return yaml.safe_load(
        resources.files("star.config").joinpath("params.schema.yaml").read_text(encoding="utf-8")
    )


def check_schema(values: Any, where: str) -> None:
    """Raise `StarError` for the first key that the schema refuses."""
    import jsonschema

    _check_texts(values, where)
    validator = jsonschema.Draft202012Validator(schema())
    error = jsonschema.exceptions.best_match(validator.iter_errors(values))
    if error is not None:
        raise StarError(f"{where}: {_dotted(error.absolute_path)}: {_refusal(error)}")
    for key, value in _leaves(values):
        if isinstance(value, float) and not math.isfinite(value):  # compares as inside any range
            raise StarError(
                f"{where}: {_dotted(key)}: {value} is not a finite number; {_description(key)}"
            )


def _leaves(
    values: Any, where: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Everything in a parsed YAML value that holds nothing else, with the path to it."""
    if isinstance(values, dict | list):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from _leaves(value, (*where, key))
    else:
        yield where, values


def _check_texts(values: Any, where: str) -> None:
    """Refuse texts, keys among them, that no file and no path can hold."""
    for path, value in _leaves(values):
        for text in (*path, value):
            if isinstance(text, str) and (
                "\0" in text or text != text.encode("utf-8", "ignore").decode("utf-8")
            ):
                character = "NUL" if "\0" in text else "half a surrogate pair"
                raise StarError(
                    f"{where}: {_dotted(path)}: {shown(text)} has {character} in it; remove that character"
                )


def _refusal(error: Any) -> str:
    """What is wrong and what is allowed, of an error of jsonschema, whose own messages quote whole
    values."""
    if error.validator == "required":
        return error.message
    if error.validator == "additionalProperties":
        return _unknown_key(error.instance, list(error.schema["properties"]))
    value, message = shown(error.instance), error.message
    if error.validator in (
        "oneOf",
        "pattern",
        "const",
    ):  # these say a regular expression, or nothing
        message = f"{value} is not allowed"
    allowed = _description(error.absolute_path)
    if "propertyNames" in error.absolute_schema_path:
        message, allowed = f"the name {message}", schema()["$defs"]["method_name"]["description"]
    return f"{message.replace(repr(error.instance), value, 1)}; {allowed}"


def _unknown_key(section: dict, known: list[str]) -> str:
    key = next(key for key in section if key not in known)
    near = difflib.get_close_matches(key[:SHOWN], known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown key {shown(key)}; {hint}known: {', '.join(known)}"


def _description(path: Iterable[str | int]) -> str:
    """What the schema says of a key, or of the nearest one above it of which it says something."""
    node, said = schema(), schema()["description"]
    for part in path:
        inner = node.get("properties", {}).get(part) or node.get("additionalProperties") or {}
        node = {
            **schema()["$defs"].get(inner.get("$ref", "").removeprefix("#/$defs/"), {}),
            **inner,
        }
        said = node.get("description", said)
    return said


def _dotted(path: Iterable[str | int]) -> str:
    parts = [str(part) if re.fullmatch(r"[\w-]{1,64}", str(part)) else shown(part) for part in path]
    return ".".join(parts) or "top level"
