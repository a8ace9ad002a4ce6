"""Writes `docs/parameters.md` from the parameters' fields: ``python -m star.config.document``."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from star.config.explain import ANY_NAME, all_keys
from star.config.params import Params
from star.config.yaml_file import read_values

PAGE = Path("docs/parameters.md")
LONGEST_DEFAULT = 60  # characters
TOP = """# Parameters

Every key of `params.yaml`, with its default there. The fields of `star/config/params.py` say all of
this; `python -m star.config.document` writes this page from them.
"""


def page(defaults: Path = Path("params.yaml")) -> str:
    """Return the page: a table for each section, a row for each key."""
    values, keys = read_values(defaults), all_keys(Params)
    lines = [TOP]
    for path, key in keys.items():
        if key.is_section:
            title = ".".join(path) or "The whole file"
            lines += [f"\n## {title}\n\n{key.description}\n"]
            lines += ["| key | default | what it is | allowed |\n|---|---|---|---|"]
        elif ANY_NAME not in path and key.description != keys[path[:-1]].description:
            cells = f"`{'.'.join(path)}`", _default(values, path), key.description, key.allowed
            lines += [f"| {' | '.join(cells)} |"]
    return "\n".join(lines) + "\n"


def _default(values: Any, path: Sequence[str]) -> str:
    for part in path:
        if values is None:
            return ""
        values = values[part]
    text = json.dumps(values)
    return f"`{text}`" if len(text) <= LONGEST_DEFAULT else "see `params.yaml`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
