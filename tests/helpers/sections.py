"""Which keys of params.yaml code reads, by the names and types of its variables."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import get_type_hints

from star.config.params import Params
from star.config.yaml_file import read_values

ROOT = Path(__file__).resolve().parents[2]
Variables = dict[str, set[str]]  # name -> dotted keys of what it may hold; "": all of params.yaml


def keys_read(package: Path, code: Iterable[Path]) -> set[str]:
    """Return the dotted keys that the code reads as attributes.

    What is read of a variable with a section's type counts where that section comes from: where the
    code takes it out of `params`, or the package that does the rule's work is given it."""
    given, read = set[str](), list[tuple[str, str]]()
    for file in code:
        variables, found = _of(file)
        read += found
        given |= set().union(*variables.values()) if file.parent == package else set()
    given |= {key for held, key in read if not held}
    return {
        key
        for held, key in read
        if not held or any(f"{held}.".startswith(f"{section}.") for section in given - {""})
    }


@cache
def _of(file: Path) -> tuple[Variables, list[tuple[str, str]]]:
    """Return what a file's variables hold, and what it reads of them."""
    module = ast.parse(file.read_text(encoding="utf-8"))
    variables = _variables(module)
    return variables, list(_reads(module, variables))


def _variables(module: ast.Module) -> Variables:
    """Return what the variables and arguments hold, by their types or by what they are set to."""
    sections = list(_sections())
    variables: Variables = defaultdict(set, params={""})
    for node in ast.walk(module):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation:
            name = node.arg if isinstance(node, ast.arg) else ast.unparse(node.target)
            kinds = re.findall(r"\w+", ast.unparse(node.annotation))
            variables[name] |= {key for kind, key in sections if kind in kinds}
    for node in ast.walk(module):
        if isinstance(node, ast.Assign):
            pairs = ast.unparse(node.targets[0]).split(", "), ast.unparse(node.value).split(", ")
            for name, value in zip(*pairs, strict=False):  # `a, b = params.a, params.b` among them
                held = {key for _, key in _resolved(value, variables)}
                variables[name] |= held & {key for _, key in sections}
    return variables


def _reads(module: ast.Module, variables: Variables) -> Iterator[tuple[str, str]]:
    """Yield each key that is read, after the key of what its variable holds."""
    keys = set(all_keys(read_values(ROOT / "params.yaml")))
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute):
            yield from (pair for pair in _resolved(ast.unparse(node), variables) if pair[1] in keys)


def _resolved(expression: str, variables: Variables) -> Iterator[tuple[str, str]]:
    names = expression.split(".")
    for end, name in enumerate(names[:-1], 1):
        for held in variables.get(name, ()):
            yield held, ".".join(filter(None, (held, *names[end:])))


def all_keys(values: dict, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of nested values, those of sections among them."""
    for key, value in values.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from all_keys(value, f"{prefix}{key}.")


def _sections(kind: type = Params, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the class names of the sections of params.yaml, and their dotted keys."""
    yield kind.__name__, prefix
    for name, hint in get_type_hints(kind).items():
        if isinstance(hint, type) and hint.__module__.startswith("star.config"):
            yield from _sections(hint, f"{prefix}.{name}".removeprefix("."))
