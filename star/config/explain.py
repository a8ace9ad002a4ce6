"""What a key of `params.yaml` may be, in words, read off its field: for refusals and the
documentation."""

import dataclasses
import difflib
import functools
from collections.abc import Iterable, Iterator, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from star.config.kinds import EachOnce, Keys, Name, fields_of
from star.config.yaml_file import dotted
from star.system.errors import SHOWN, shown

ANY_NAME = "<name>"  # in place of a key that the user chooses
MANY, MOST = 12, 30  # keys that a message lists: of a section, and of what may stand at a place
TYPES: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
}
LIMITS = {  # by the name that pydantic gives them
    "ge": "at least {:,}",
    "gt": "above {:,}",
    "le": "at most {:,}",
    "lt": "below {:,}",
    "multiple_of": "a multiple of {:,}",
    "min_length": "at least {:,} long",
    "max_length": "at most {:,} long",
}
UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")  # pydantic's names of this error


class Key(NamedTuple):
    """One key: what is allowed, what it is, the keys below it, whether it is a section."""

    allowed: str
    description: str
    names: list[str]
    is_section: bool


def allowed(hint: Any) -> str:
    """Return in words what a value of an annotated type may be."""
    field = FieldInfo.from_annotation(hint)
    kind, arguments = field.annotation, get_args(field.annotation)
    if field.title or kind in (None, NoneType):
        return field.title or "null"
    limits = [
        text.format(getattr(rule, name))
        for rule in field.metadata
        for name, text in LIMITS.items()
        if getattr(rule, name, None) is not None
    ]
    if get_origin(kind) is Literal:
        return f"one of {', '.join(arguments)}" if len(arguments) > 1 else arguments[0]
    if get_origin(kind) in (Union, UnionType):
        return ", or ".join(map(allowed, arguments))
    if get_origin(kind) is list:
        once = ["none twice"] if EachOnce in field.metadata else []
        return f"{', '.join(['a list', *limits, *once])}, each {allowed(arguments[0])}"
    if inside := _inside(field):
        texts = set(map(allowed, inside.values()))
        each = f", each {texts.pop()}" if len(texts) == 1 else ""
        names = [*inside]
        return f"a section with {_listed(names, MANY)}{each}"
    return ", ".join([TYPES[kind], *limits])


def _inside(field: FieldInfo) -> Mapping[str, Any]:
    """Return the annotated types of the keys below a key."""
    arguments = get_args(field.annotation)
    for rule in field.metadata:
        if isinstance(rule, Keys):
            return rule.kinds
    if get_origin(field.annotation) is dict:
        return {ANY_NAME: arguments[1]}
    sections = filter(dataclasses.is_dataclass, arguments or [field.annotation])
    return next(map(fields_of, sections), {})


@functools.cache
def all_keys(section: Any) -> dict[tuple[str, ...], Key]:
    """Return every key of a section and below, in the order of the fields; itself under ``()``."""

    def walk(path: tuple[str, ...], hint: Any, said: str) -> Iterator[tuple[tuple[str, ...], Key]]:
        field = FieldInfo.from_annotation(hint)
        is_section = dataclasses.is_dataclass(field.annotation)
        said = field.description or (str(field.annotation.__doc__) if is_section else said)
        description = " ".join(said.split())
        inside = _inside(field)
        yield path, Key(allowed(hint), description, list(inside), is_section)
        for name, kind in inside.items():
            yield from walk((*path, name), kind, description)

    return dict(walk((), section, ""))


def refusal(section: Any, values: Any, error: ValidationError) -> str:
    """Return one line on the worst of pydantic's errors: the key, its value and what is allowed.

    Args:
        section: the dataclass that refused.
        values: what it was to be made of, as the file has it.
    """

    def rank(place: tuple[str, list[str], Any, Any, str]) -> tuple[bool, int]:
        # An unknown key may be why another one is missing. Of the ways in which a value can be
        # written, the one in which pydantic came deepest is meant.
        kind, path, *_ = place
        return kind in UNKNOWN, len(path) + (kind == "missing")

    known = all_keys(section)
    places = [
        (fault["type"], *_place(known, values, fault["loc"]), str((None, *fault["loc"])[-1]))
        for fault in error.errors(include_url=False, include_input=False)
    ]
    kind, path, at, value, last = max(places, key=rank)
    if kind in UNKNOWN:
        return f"{dotted(path)}: {_unknown(last, known[at].names)}"
    if kind == "missing":
        missing = known[*at, last]
        return f"{dotted([*path, last])} is missing; give {missing.allowed}. {missing.description}"
    if last == "[key]":  # pydantic says so of a key that is wrong itself
        return f"{dotted(path[:-1])}: {shown(path[-1])} is not allowed; use {allowed(Name)}"
    key = known[at]
    return f"{dotted(path)}: {shown(value)} is not allowed; use {key.allowed}. {key.description}"


def _place(
    known: Mapping[tuple[str, ...], Key], values: Any, loc: Iterable[Any]
) -> tuple[list[str], tuple[str, ...], Any]:
    """Return what an error of pydantic is about: path in the file, path in ``known``, value.

    Its ``loc`` also names list indices and the ways in which a value can be written.
    """
    path: list[str] = []
    at: tuple[str, ...] = ()
    for part in loc:
        inner = (*at, part) if (*at, part) in known else (*at, ANY_NAME)
        if isinstance(values, dict) and part in values and inner in known:
            path, at, values = [*path, part], inner, values[part]
    return path, at, values


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name[:SHOWN], known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown key {shown(name)}; {hint}known: {_listed(known, MOST)}"


def _listed(names: list[str], most: int) -> str:
    more = [f"{len(names) - most} more (docs/parameters.md)"] if len(names) > most else []
    return ", ".join([*names[:most], *more])
