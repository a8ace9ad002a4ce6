"""What the rules share: parameters checked once, the sections and the code that each rule depends
on, one lock.

`SECTIONS` and `ENTRY` are the only lists of dependencies; dvc.yaml repeats them but for the rules
of the study (`NOT_IN_DVC`), and the contract test (tests/workflow/test_contract.py) compares the
two."""

import ast
import copy
import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from star.config.differences import differences
from star.config.params import TASKS, load_params
from star.config.values import read_values
from star.prompts.published import FETCHED
from star.system.errors import StarError

ROOT = Path(__file__).resolve().parents[1]

# Dotted keys of params.yaml that change what a rule makes; {wildcards} are filled in.
SECTIONS = {
    "prepare_prompts": ("seed", "prompts.world", "prompts.{task}"),
    "extract_core": (),
    "train_policy": (
        "seed",
        "model",
        "core",
        "rollout",
        "allocation",
        "methods.{method}",
        "train",
        "rewards.timeout",
        "rewards.{task}",
    ),
    "evaluate_checkpoint": ("seed", "model", "rewards", "evaluate"),
    "write_report": (
        "seed",
        "runs",
        "model.path",
        "rewards.geneval.detector",
        "rewards.geneval.path",
        "rewards.preference.path",
        "evaluate.bootstrap",
        "evaluate.second_reader",
        "report",
    ),
    "study_run": (
        "seed",
        "model",
        "core",
        "rollout",
        "allocation",
        "study.methods.{method}",
        "study.epochs",
        "study.evaluate_every",
        "study.second_reader",
        "train",
        "rewards",
        "evaluate",
    ),
    # `runs` and `evaluate.second_reader` are of the main report, with which the study's shares
    # modules.
    "study_report": (
        "seed",
        "runs",
        "model",
        "rewards.geneval.detector",
        "rewards.geneval.path",
        "rewards.preference.path",
        "allocation",
        "train.prompts_per_epoch",
        "train.group_size",
        "evaluate.bootstrap",
        "evaluate.second_reader",
        "report",
        "study",
    ),
}

# The module whose imports, followed to the end, are the code of a rule.
ENTRY = {
    "prepare_prompts": "star.prompts.prepare",
    "extract_core": "star.prompts.core_content",
    "train_policy": "star.training.loop",
    "evaluate_checkpoint": "star.evaluation.evaluate",
    "write_report": "star.report.page",
    "study_run": "star.study.run",
    "study_report": "star.study.page",
}

# The study is asked for by name: hours of training whose tables go into Git by hand (docs/study).
# As stages its runs, each of a (task, method, seed, rate), would make `dvc repro` and `dvc status`
# ask for those hours too.
NOT_IN_DVC = ("study_run", "study_report")

# They check parameters, carry messages and lock, and make no results; what is read reaches a rule
# through SECTIONS.
NOT_RESULTS = (
    "star/cli.py",
    "star/config/consistency.py",
    "star/config/differences.py",
    "star/system/errors.py",
    "star/system/faults.py",
    "star/system/memory.py",
    "star/system/signals.py",
    "star/system/locks.py",
    "star/config/params.schema.yaml",
    "star/system/runtime.py",
    "star/config/schema.py",
    "star/config/values.py",
)

# Files of a model directory that decide what it draws; its card and training log do not.
MODEL_SUFFIXES = (".safetensors", ".json", ".txt", ".model")

PROMPT_FOLDER = Path("data/prompts")


def checked_values(config: dict, path: Path) -> dict:
    """The values of the parameter file, refused where the file is wrong or the command line
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
            f"--config {key}: disagrees with {path}, from which every stage reads; edit the file, or use "
            f"`dvc exp run -S {key}=...`"
        )
    for task in TASKS:
        prompt_files(values, task)
    return values


def prefer_code_in(folder: str) -> None:
    """Let stages run the code in a folder, not the installed one: `dvc exp run --temp` has a folder
    of its own."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))


def sections(values: dict, rule: str, **wildcards: str) -> str:
    """The parameters that a rule depends on, as canonical JSON."""
    keys = [key.format(**wildcards) for key in SECTIONS[rule]]
    return json.dumps({key: lookup(values, key) for key in keys}, sort_keys=True)


def lookup(values: dict, key: str) -> Any:
    """The value of a dotted key."""
    for part in key.split("."):
        values = values[part]
    return values


def code_files(rule: str, root: Path = ROOT) -> list[str]:
    """Files, relative to ``root``, of the code that a rule runs: the modules that its entry
    imports, and their data.

    Imports inside functions count. Data are the files beside a module of a subpackage (word lists,
    style sheets)."""
    seen: set[Path] = set()
    waiting = [root / _module_file(ENTRY[rule], root)]
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += [root / name for name in _imports(module, root)]
    data = {
        file
        for folder in {module.parent for module in seen if module.parent != root / "star"}
        for file in folder.iterdir()
        if file.is_file() and file.suffix not in (".py", ".pyc")
    }
    names = (file.relative_to(root).as_posix() for file in seen | data)
    return sorted(name for name in names if name not in NOT_RESULTS)


def code_digest(rule: str) -> str:
    """Sixteen hex digits that change with the code that a rule runs."""
    return digest([ROOT / name for name in code_files(rule)])


def digest(files: list[Path]) -> str:
    """Sixteen hex digits of names and contents."""
    state = hashlib.sha256()
    for file in files:
        state.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return state.hexdigest()[:16]


def recorded_digest() -> str:
    """Changes with anything that `dvc status` looks at besides the outputs, so that a run records
    it anew."""
    stages = sorted(
        file for file in (ROOT / "workflow/rules").glob("*.smk") if file.name != "study.smk"
    )
    code = "".join(code_digest(rule) for rule in ENTRY if rule not in NOT_IN_DVC)
    return digest([ROOT / "dvc.yaml", Path("params.yaml"), *stages]) + code


def runs(values: dict) -> list[str]:
    """Names of the trainings, `{task}-{method}`, in the order of the file."""
    return [f"{task}-{method}" for task in TASKS for method in values["runs"][task]]


def model_files(path: str) -> list[str]:
    """The files of a model directory that decide what it draws; none for a hub id."""
    return sorted(str(file) for file in Path(path).rglob("*") if file.suffix in MODEL_SUFFIXES)


def reward_model_files(values: dict, *tasks: str) -> list[str]:
    """The files of the model directories that judge the given tasks; none for hub ids."""
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


def prompt_files(values: dict, task: str) -> list[str]:
    """The prompt files of one's own that a task names; a fetched one is known by its checksum, a
    parameter.

    Raises:
        StarError: a file outside the folder that DVC watches.
    """
    files = {key: values["prompts"][task][key] for key in ("train_file", "test_file")}
    names = {key: name for key, name in files.items() if isinstance(name, str)}
    for key, name in names.items():
        folders = Path(os.path.normpath(name)).parents
        if PROMPT_FOLDER not in folders or FETCHED in folders:
            raise StarError(
                f"params.yaml: prompts.{task}.{key}: {name!r} is not below {PROMPT_FOLDER} (or in {FETCHED}, "
                f"which DVC ignores); put it there, where Snakemake and DVC both see it change"
            )
    return list(names.values())


def visible_gpus() -> int:
    """Number of NVIDIA devices of this machine (torch would take seconds to say it)."""
    return len([file for file in Path("/dev").glob("nvidia[0-9]*") if file.name[6:].isdigit()])


def _module_file(name: str, root: Path) -> str:
    """File of a dotted module name."""
    path = root.joinpath(*name.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return file.relative_to(root).as_posix()


def _imports(module: Path, root: Path) -> list[str]:
    """Files of the star modules that a module imports, the packages on the way included."""
    files = {
        _module_file(name, root) for name in _imported_names(module.read_text(encoding="utf-8"))
    }
    return [file for file in files if (root / file).exists()]


@functools.cache  # most modules belong to several rules; without it a fourth of Snakemake's start goes into parsing
def _imported_names(source: str) -> frozenset[str]:
    """Dotted names below `star` that a module's source may import, the packages on the way
    included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    prefixes = {
        ".".join(name.split(".")[:end]) for name in names for end in range(1, name.count(".") + 2)
    }
    return frozenset(name for name in prefixes if name == "star" or name.startswith("star."))
