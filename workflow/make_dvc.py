"""Writes dvc.yaml from dvc.stages.yaml and the table that the rules read: `python -m
workflow.make_dvc`."""

from pathlib import Path
from typing import Any

import yaml

from workflow.dependencies import RULES

ROOT = Path(__file__).resolve().parents[1]

COMMAND = "snakemake --cores all --allowed-rules {} -- {}"
HEADER = """\
# Written by `python -m workflow.make_dvc` from workflow/dvc.stages.yaml and
# workflow/dependencies.py: edit those. A stage runs its Snakemake rule and nothing else.
# `dvc repro` and `dvc exp run -S key=value` work.

"""


def dvc_yaml() -> str:
    """Return the text of dvc.yaml."""
    text = (ROOT / "workflow/dvc.stages.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    stages = {name: _complete(dict(stage)) for name, stage in content["stages"].items()}
    # Every stage in full: an alias would stand for whatever is equal by chance.
    dumper = type("InFull", (yaml.SafeDumper,), {"ignore_aliases": lambda *_: True})
    whole = content | {"stages": stages}
    return HEADER + yaml.dump(whole, Dumper=dumper, sort_keys=False, width=100)


def _complete(stage: dict[str, Any]) -> dict[str, Any]:
    """Return a stage with the command, code and parameters of its rule."""
    name = stage.pop("rule")
    rule = RULES[name]
    stage["cmd"] = COMMAND.format(name, stage["outs"][0])
    stage["deps"] = [*stage["deps"], f"workflow/rules/{rule.file}", *rule.packages]
    if rule.sections:
        stage["params"] = [key.replace("{", "${item.") for key in rule.sections]
    return stage


if __name__ == "__main__":
    (ROOT / "dvc.yaml").write_text(dvc_yaml(), encoding="utf-8")
