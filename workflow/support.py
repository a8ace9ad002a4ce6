"""What the rules share: parameters checked once, digests of the code and sections that each rule
depends on, input files."""

import copy
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from star.config.differences import differences
from star.config.params import TASKS
from star.config.reading import load_params
from star.config.yaml_file import read_values
from star.prompts.published import FETCHED
from star.system.errors import StarError
from star.system.gpus import visible_gpus as visible_gpus  # for the rules
from workflow.dependencies import RULES

ROOT = Path(__file__).resolve().parents[1]

# Files of a model directory that decide what it draws; its card and training log do not.
MODEL_SUFFIXES = (".safetensors", ".json", ".txt", ".model")

# The folders that DVC watches.
PROMPT_FOLDER, MODEL_FOLDER = Path("data/prompts"), Path("models")


def checked_values(config: dict, path: Path) -> dict:
    """Return the values of the parameter file; refuse a wrong file, and a command line that
    disagrees with it.

    Args:
        config: what Snakemake made of `--config`.

    Raises:
        StarError: naming the key.
    """
    from snakemake.utils import update_config

    load_params(path)
    values = read_values(path)
    asked = copy.deepcopy(values)
    update_config(asked, config)
    for key, *_ in differences(asked, values):
        raise StarError(
            f"--config {key}: disagrees with {path}, from which every stage reads; edit the file, "
            f"or use `dvc exp run -S {key}=...`"
        )
    for task in TASKS:
        prompt_files(values, task)
    for methods in (values["methods"], values["study"]["methods"]):
        for changes in methods.values():
            initial_adapter_files(values, changes)
    return values


def prefer_code_in(folder: str) -> None:
    """Let stages run the code in a folder, not the installed one: `dvc exp run --temp` has a folder
    of its own."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))


def sections(values: dict, rule: str, **wildcards: str) -> str:
    """Return the parameters that a rule depends on, as canonical JSON."""
    keys = [key.format(**wildcards) for key in RULES[rule].sections]
    return json.dumps({key: lookup(values, key) for key in keys}, sort_keys=True)


def lookup(values: dict, key: str) -> Any:
    """Return the value of a dotted key."""
    for part in key.split("."):
        values = values[part]
    return values


def code_files(rule: str) -> list[str]:
    """Return the files of a rule's packages, relative to the repository, but for those that
    .dvcignore names."""
    ignored = (ROOT / ".dvcignore").read_text(encoding="utf-8").splitlines()
    paths = [ROOT / package for package in RULES[rule].packages]
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])]
    names = [file.relative_to(ROOT).as_posix() for file in files if file.is_file()]
    return sorted(name for name in names if name not in ignored and "__pycache__" not in name)


def code_digest(rule: str) -> str:
    """Return sixteen hex digits that change with the code that a rule runs."""
    return digest([ROOT / name for name in code_files(rule)])


def digest(files: list[Path]) -> str:
    """Return sixteen hex digits of names and contents."""
    state = hashlib.sha256()
    for file in files:
        state.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return state.hexdigest()[:16]


def recorded_digest() -> str:
    """Return what changes with anything that `dvc status` looks at besides the outputs, so that a
    run records it anew."""
    staged = [rule for rule in RULES if RULES[rule].in_dvc]
    files = [ROOT / "workflow/rules" / RULES[rule].file for rule in staged]
    return digest([ROOT / "dvc.yaml", Path("params.yaml"), *files]) + "".join(
        map(code_digest, staged)
    )


def runs(values: dict) -> list[str]:
    """Return the names of the trainings, `{task}-{method}`, in the order of the file."""
    return [f"{task}-{method}" for task in TASKS for method in values["runs"][task]]


def announcement(values: dict) -> str:
    """Return what a whole run makes, in a line."""
    trained = "; ".join(f"{task}: {', '.join(methods)}" for task, methods in values["runs"].items())
    count = len(runs(values))
    tested = sum(values["prompts"][task]["test"] for task in TASKS)
    images = 0
    for method in (name for methods in values["runs"].values() for name in methods):
        train = values["train"] | values["methods"][method]
        images += train["epochs"] * train["prompts_per_epoch"] * train["group_size"]
    return (
        f"A whole run: {count} trainings ({trained}) of {images:,} images in all, {count + 1} "
        f"checkpoints on {tested} test prompts each, the report. A training says after its first "
        "epoch how long all takes."
    )


def model_files(path: str) -> list[str]:
    """Return the files of a model directory that decide what it draws; none for a hub id."""
    return sorted(str(file) for file in Path(path).rglob("*") if file.suffix in MODEL_SUFFIXES)


def reward_model_files(values: dict, *tasks: str) -> list[str]:
    """Return the files of the model directories that judge the tasks; none for hub ids."""
    geneval, preference = values["rewards"]["geneval"], values["rewards"]["preference"]
    paths = {
        "geneval": (geneval["path"], geneval["color_path"]),
        "ocr": (),
        "preference": (preference["path"],),
    }
    return [
        file
        for task in tasks
        for path in paths[task]
        if path is not None
        for file in model_files(path)
    ]


def initial_adapter_files(values: dict, changes: dict) -> list[str]:
    """Return the files of the adapter from which a method's training starts; none for a fresh one.

    Args:
        changes: the keys that the method overrides.

    Raises:
        StarError: a folder outside the one that DVC watches.
    """
    folder = (values["train"] | changes)["init_adapter"]
    if folder is None:
        return []
    if MODEL_FOLDER not in Path(os.path.normpath(folder)).parents:
        raise StarError(
            f"params.yaml: train.init_adapter: {folder!r} is not below {MODEL_FOLDER}; copy it "
            "there, where Snakemake and DVC both see it change"
        )
    return model_files(folder)


def prompt_files(values: dict, task: str) -> list[str]:
    """Return the prompt files of one's own that the sets of a task are made from: its training
    file, and the test files of all tasks, whose prompts it leaves out.

    A fetched one is known by its checksum, which is a parameter.

    Raises:
        StarError: a file outside the folder that DVC watches.
    """
    keys = [f"{task}.train_file", *(f"{each}.test_file" for each in TASKS)]
    files = {key: lookup(values["prompts"], key) for key in keys}
    names = {key: name for key, name in files.items() if isinstance(name, str)}
    for key, name in names.items():
        folders = Path(os.path.normpath(name)).parents
        if PROMPT_FOLDER not in folders or FETCHED in folders:
            raise StarError(
                f"params.yaml: prompts.{key}: {name!r} is not below {PROMPT_FOLDER} (or in "
                f"{FETCHED}, which DVC ignores); put it there, where Snakemake and DVC both see it "
                f"change, and give {PROMPT_FOLDER / Path(name).name}"
            )
    return list(names.values())
