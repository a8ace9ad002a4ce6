"""Parameters of the smallest whole pipeline, and edits of a parameter file."""

from pathlib import Path

import yaml

from star.config.yaml_file import read_values

ROOT = Path(__file__).resolve().parents[2]


def smoke_values() -> dict:
    """Return tests/smoke/params.yaml with the models where they are."""
    values = read_values(ROOT / "tests/smoke/params.yaml")
    for section in (values["model"], values["rewards"]["preference"]):
        section["path"] = str((ROOT / "tests/smoke" / section["path"]).resolve())
    return values


def write_values(path: Path, values: dict) -> None:
    """Write a parameter file, its keys in the order given."""
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def set_values(path: Path, changes: dict[str, object]) -> None:
    """Set dotted keys of a parameter file."""
    values = read_values(path)
    for key, value in changes.items():
        *parents, last = key.split(".")
        node = values
        for part in parents:
            node = node[part]
        node[last] = value
    write_values(path, values)
