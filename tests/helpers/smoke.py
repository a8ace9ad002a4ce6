"""Parameters of the smallest whole pipeline."""

from pathlib import Path

from star.config.yaml_file import read_values

ROOT = Path(__file__).resolve().parents[2]


def smoke_values() -> dict:
    """tests/smoke/params.yaml with the models where they are."""
    values = read_values(ROOT / "tests/smoke/params.yaml")
    for section in (values["model"], values["rewards"]["preference"]):
        section["path"] = str((ROOT / "tests/smoke" / section["path"]).resolve())
    return values
