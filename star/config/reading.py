"""Reads `params.yaml`, or refuses it in a line: the key, its value and what is allowed."""

import functools
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from star.config.consistency import broken_rules
from star.config.explain import refusal
from star.config.params import Params
from star.config.yaml_file import read_values
from star.system.errors import StarError


def load_params(path: Path) -> Params:
    """Read and check a parameter file.

    Raises:
        StarError: unreadable file, YAML error, unknown or missing key, wrong type, value out of
            range, or keys that do not fit together; the message names the key, its value and what
            is allowed.
    """
    values = read_values(path)
    try:
        params = _reader().validate_python(values)
    except ValidationError as error:
        raise StarError(f"{path}: {refusal(Params, values, error)}") from None
    for broken in broken_rules(params):
        raise StarError(f"{path}: {broken}")
    return params


@functools.cache
def _reader() -> TypeAdapter[Params]:
    return TypeAdapter(Params)
