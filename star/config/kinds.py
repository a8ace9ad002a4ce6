"""The kinds of value that a parameter can have, on which `star.config.params` is built."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    Strict,
    TypeAdapter,
)
from pydantic_core import CoreSchema, core_schema

LONGEST_NAME = 255  # bytes of a file's name, on Linux


class Section:
    """What the sections of a parameter file have in common: how pydantic reads them."""

    __pydantic_config__ = ConfigDict(extra="forbid", use_attribute_docstrings=True)


def _whole(value: Any) -> Any:
    """Return 8 for 8.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _each_once(values: list) -> list:
    if len(set(values)) < len(values):
        raise ValueError("a value comes twice")
    return values


def _names_fit(path: str) -> str:
    if any(len(name.encode()) > LONGEST_NAME for name in path.split("/")):
        raise ValueError("a name is too long")
    return path


# YAML's types are kept apart: True is no number, "8" is no integer, 1 is not true.
Whole = Annotated[int, Strict(), BeforeValidator(_whole)]
Number = Annotated[float, Strict()]  # to be given a range, which also refuses nan and inf
Flag = Annotated[bool, Strict()]
Text = Annotated[str, Strict()]

Count = Annotated[Whole, Field(ge=1, le=1_000_000)]
Batch = Annotated[Whole, Field(ge=1, le=4096)]
Steps = Annotated[Whole, Field(ge=1, le=1000)]
Side = Annotated[Whole, Field(ge=32, le=4096)]
Share = Annotated[Number, Field(ge=0, le=1)]
Factor = Annotated[Number, Field(ge=0, le=1000)]
Divisor = Annotated[Number, Field(gt=0, le=1000)]
Rate = Annotated[Number, Field(gt=0, le=1)]
Index = Annotated[Whole, Field(ge=0, le=1000)]
Name = Annotated[
    Text,
    Field(pattern="^[a-z0-9_]+$", max_length=64),
    Field(title="a name of at most 64 lower-case letters, digits and _"),
]
PathOrId = Annotated[
    Text,
    Field(pattern=r"^[^\s~$][^\n$]*$", max_length=1024),
    Field(
        title="a path or hub id, in full: without a space or ~ in front and without $, its names "
        f"at most {LONGEST_NAME} bytes"
    ),
    AfterValidator(_names_fit),
]
Revision = Annotated[
    Text,
    Field(pattern="^[A-Za-z0-9._/-]+$", max_length=128),
    Field(title="a commit, tag or branch of at most 128 characters"),
]
EachOnce = AfterValidator(_each_once)


@dataclass(frozen=True)
class Keys:
    """A dictionary's keys, with the annotated type of each value; no others are allowed."""

    kinds: Mapping[str, Any]
    required: bool = True

    def __get_pydantic_core_schema__(self, _: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        fields = {
            key: core_schema.typed_dict_field(handler.generate_schema(kind), required=self.required)
            for key, kind in self.kinds.items()
        }
        return core_schema.typed_dict_schema(fields, extra_behavior="forbid")


def fields_of(section: Any) -> dict[str, Any]:
    """Return the annotated type of each field of a section, its description within."""
    said = TypeAdapter(section).json_schema()["properties"]
    return {
        name: Annotated[kind, Field(description=said[name].get("description"))]
        for name, kind in get_type_hints(section, include_extras=True).items()
    }
