"""The content of a parameter file: YAML 1.2 of bounded size, each key a text that comes once."""

import re
from pathlib import Path
from typing import Any

import yaml

from star.system.errors import StarError, cut, shown

LARGEST = 1_000_000  # bytes of a parameter file
MOST_DIGITS = 100
MOST_VALUES = 100_000  # of a parameter file, its aliases written out


def read_values(path: Path) -> Any:
    """The unchecked content of a parameter file, as YAML 1.2 reads it.

    Raises:
        StarError: a file that cannot be read or is larger than `LARGEST`, broken YAML, a key twice,
            an alias for what it is in.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise StarError(f"{path}: larger than {LARGEST} bytes; give a parameter file")
        return yaml.load(content.decode("utf-8"), Loader=_Loader)
    except StarError:
        raise
    except Exception as error:  # the library also raises IndexError, KeyError, AttributeError for tags that do not fit
        raise StarError(
            f"{path}: not a YAML file of parameters ({cut(' '.join(str(error).split()), 300)})"
        ) from error


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain values, as DVC reads them, where PyYAML has those of 1.1; keys are texts and
    come once."""

    def compose_document(self) -> yaml.Node | None:
        node = super().compose_document()
        if node is not None and _written_out(node, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"more than {MOST_VALUES} values once its aliases are written out")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            line, key = key_node.start_mark.line + 1, self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.YAMLError(
                    f"line {line}: key {shown(key)} is not a text; put it in quotes"
                )
            if key in seen:
                raise yaml.YAMLError(f"line {line}: key {shown(key)} appears twice")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        return int(
            self._digits(node), {"0b": 2, "0o": 8, "0x": 16}.get(node.value.lstrip("+-")[:2], 10)
        )

    def construct_number(self, node: yaml.ScalarNode) -> float:
        digits = self._digits(node).lower()
        return float(digits.replace(".inf", "inf").replace(".nan", "nan"))

    def _digits(self, node: yaml.ScalarNode) -> str:
        if len(node.value) > MOST_DIGITS:
            line = node.start_mark.line + 1
            raise yaml.YAMLError(
                f"line {line}: {shown(node.value)} has more than {MOST_DIGITS} digits"
            )
        return self.construct_scalar(node).replace("_", "")


def _written_out(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """Values below a node, counted as if every alias were written out: a few lines of aliases can
    stand for billions.

    Args:
        known: the counts so far; 0 while a node is being counted.
    """
    if node not in known:
        known[node] = 0
        pairs = isinstance(node, yaml.MappingNode)
        inner = [part for pair in node.value for part in pair] if pairs else node.value
        known[node] = 1 + (
            0
            if isinstance(node, yaml.ScalarNode)
            else sum(_written_out(part, known) for part in inner)
        )
    if not known[node]:
        raise yaml.YAMLError(f"line {node.start_mark.line + 1}: an alias for what it is in")
    return known[node]


# PyYAML takes no, 010, 1:30 and 1e-3 for false, 8, 90 and a text. `dvc exp run -S` drops the quotes
# of "no".
_PLAIN = {
    "bool": ("tTfF", "true|True|TRUE|false|False|FALSE"),
    "int": ("-+0123456789", "[-+]?(0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)"),
    "float": (
        "-+.0123456789",
        r"[-+]?([0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9][0-9_]*([eE][-+]?[0-9]+)?"
        r"|\.(inf|Inf|INF))|\.(nan|NaN|NAN)",
    ),
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rsplit(":", 1)[1] not in _PLAIN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _name, (_first, _pattern) in _PLAIN.items():
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_name}", re.compile(f"^({_pattern})$"), list(_first)
    )
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)
