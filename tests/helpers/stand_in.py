"""A stand-in for the `star` program: the stages' files within milliseconds, for tests of who runs
which stage when.

It takes the rules' own command lines. What a stage writes is a digest of what that stage reads
(`READS`, and the files that its options name), so changed inputs give changed outputs and equal
inputs give equal ones. Each stage appends its name to the file `STAR_JOURNAL`, and waits while the
file `STAR_HOLD` exists."""

import argparse
import csv
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import yaml

HOLD_SECONDS = 100  # a test that was killed leaves no process behind for longer
TASKS = ("geneval", "ocr", "preference")

# Stage -> keys of params.yaml and files that it reads, written down a second time: the rules' own
# lists are under test.
READS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "prompts": (("seed", "prompts.world", "prompts.{task}"), ("star/prompts/words.py",)),
    "core": ((), ("star/prompts/core_tokens.py", "star/prompts/words.py")),
    "train": (
        (
            "seed",
            "model",
            "core",
            "rollout",
            "allocation",
            "methods.{method}",
            "train",
            "rewards.{task}",
        ),
        (
            "star/training/trainer.py",
            "star/prompts/core_tokens.py",
            "models/miniature/**/*.safetensors",
        ),
    ),
    "evaluate": (
        ("seed", "model", "rewards", "evaluate"),
        ("star/evaluation/evaluate.py", "models/**/*.safetensors"),
    ),
    "report": (("runs", "report"), ("star/report/page.py",)),
}


def main(arguments: list[str]) -> None:
    """Run one stage, as `star STAGE ...` and `star launch ... -- STAGE ...`."""
    if arguments[0] == "launch":
        arguments = arguments[arguments.index("--") + 1 :]
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", choices=READS)
    for name in (
        "params",
        "train",
        "test",
        "prompts",
        "prompts-dir",
        "results",
        "adapter",
        "output",
    ):
        parser.add_argument(f"--{name}", type=Path)
    for name in ("task", "method", "checkpoint"):
        parser.add_argument(f"--{name}")
    options = parser.parse_args(arguments)
    # An experiment's folder has code of its own, which is to run there.
    assert Path(os.environ["PYTHONPATH"].split(os.pathsep)[0]) == Path.cwd()
    with open(os.environ["STAR_JOURNAL"], "a", encoding="utf-8") as journal:
        journal.write(stage_name(options) + "\n")
    end = time.monotonic() + HOLD_SECONDS
    while Path(os.environ["STAR_HOLD"]).exists():
        if time.monotonic() > end:
            sys.exit(f"held for {HOLD_SECONDS} s")
        time.sleep(0.05)
    values = yaml.safe_load(options.params.read_text(encoding="utf-8"))
    globals()[f"_{options.stage}"](options, values, digest(options, values))


def stage_name(options: argparse.Namespace) -> str:
    """The stage's name in dvc.yaml."""
    match options.stage:
        case "prompts":
            return f"prompts@{options.task}"
        case "core":
            return f"core@{options.prompts.parent.name}-{options.prompts.stem}"
        case "train":
            return f"train_{options.task}@{options.task}-{options.method}"
        case "evaluate" if options.checkpoint != "base":
            return f"evaluate_{options.checkpoint.partition('-')[0]}@{options.checkpoint}"
        case "evaluate":
            return "evaluate_base"
    return options.stage


def digest(options: argparse.Namespace, values: dict) -> str:
    """Of the parameters, code and files that the stage reads."""
    state = hashlib.sha256()
    keys, patterns = READS[options.stage]
    for key in keys:
        node: Any = values
        for part in key.format(**vars(options)).split("."):
            node = node[part]
        state.update(json.dumps(node, sort_keys=True).encode())
    files = [file for pattern in patterns for file in sorted(Path().glob(pattern))]
    if options.stage == "prompts":
        names = (values["prompts"][options.task][key] for key in ("train_file", "test_file"))
        files += [Path(name) for name in names if name]
    for given in (options.prompts, options.prompts_dir, options.adapter, options.results):
        if given is not None:
            files += sorted(file for file in _below(given) if _is_input(file, options))
    for file in files:
        state.update(file.as_posix().encode() + file.read_bytes())
    return state.hexdigest()


def _below(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]


def _is_input(file: Path, options: argparse.Namespace) -> bool:
    """Whether the stage reads a file below a folder that it is given."""
    if options.stage == "evaluate":
        return file.name != "train.jsonl" and not file.name.startswith(".snakemake")
    if options.stage == "report":
        return file.parts[1] in ("train", "evaluate") and not file.name.startswith(".snakemake")
    return True


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def _prompts(options: argparse.Namespace, values: dict, state: str) -> None:
    for path in (options.train, options.test):
        _write(path, json.dumps({"id": path.stem, "state": state}))


def _core(options: argparse.Namespace, values: dict, state: str) -> None:
    _write(options.output, json.dumps({"id": options.prompts.stem, "state": state}))


def _train(options: argparse.Namespace, values: dict, state: str) -> None:
    _write(options.output / "adapter" / "adapter.txt", state)
    rewards = [_number(state, epoch) for epoch in range(1, values["train"]["epochs"] + 1)]
    lines = (
        json.dumps({"epoch": epoch, "reward_mean": reward})
        for epoch, reward in enumerate(rewards, 1)
    )
    _write(options.output / "log.jsonl", "\n".join(lines))
    _write(options.output / "parameters.json", json.dumps({"method": options.method}))
    for name in (
        "samples/epoch_0001.png",
        "maps/epoch_0001_0_step_0.png",
    ):  # as the rule's report looks for them
        _write(options.output / name, state)


def _evaluate(options: argparse.Namespace, values: dict, state: str) -> None:
    means = {task: _number(state, task) for task in TASKS}
    for name in ("scores.json", "metrics.json"):
        _write(options.output / name, json.dumps(means))
    _write(options.output / "images.jsonl", json.dumps({"state": state}))
    _write(options.output / "images" / "0.txt", state)


def _report(options: argparse.Namespace, values: dict, state: str) -> None:
    _write(options.output, state)
    folders = sorted((options.results / "evaluate").iterdir())
    scores = {
        folder.name: json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        for folder in folders
    }
    _write(options.results / "metrics/summary.json", json.dumps(scores))
    with open(options.results / "metrics/curves.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("task", "method", "epoch", "images", "reward_mean"))
        for log in sorted((options.results / "train").glob("*/log.jsonl")):
            for line in map(json.loads, log.read_text(encoding="utf-8").splitlines()):
                row = (line["epoch"], 8 * line["epoch"], line["reward_mean"])
                writer.writerow((*log.parent.name.split("-"), *row))


def _number(state: str, key: object) -> float:
    """A number in [0, 1) that follows from a digest."""
    return int(hashlib.sha256(f"{state} {key}".encode()).hexdigest()[:6], 16) / 16**6


if __name__ == "__main__":
    main(sys.argv[1:])
