"""A stand-in for the `star` program: the stages' files within milliseconds, for tests of who runs
which stage when.

It takes the rules' own command lines. What a stage writes is a digest of what that stage reads
(`READS`, and the files that its options name), so changed inputs give changed outputs and equal
inputs give equal ones. Each stage appends its target, the first output in dvc.yaml, to the file
`STAR_JOURNAL`, and waits while the file `STAR_HOLD` exists."""

import argparse
import hashlib
import json
import os
import sys
import time
from pathlib import Path

import yaml

HOLD_SECONDS = 100  # a test that was killed leaves no process behind for longer
TASKS = ("geneval", "ocr", "preference")

# Stage -> keys of params.yaml and files that it reads, written down a second time: the rules' own
# table is under test.
READS = {
    "prompts": ("seed prompts", "star/prompts/words.py"),
    "core": ("", "star/prompts/core_tokens.py star/prompts/words.py"),
    "train": (
        "seed model core rollout allocation methods.{method} train rewards.{task}",
        "star/training/trainer.py star/prompts/core_tokens.py models/miniature/**/*.safetensors"
        " models/start/*.safetensors",
    ),
    "evaluate": (
        "seed model rewards evaluate",
        "star/evaluation/evaluate.py models/miniature*/**/*.safetensors",
    ),
    "report": ("runs report", "star/report/page.py"),
}


def main(arguments: list[str]) -> None:
    """Run one stage, as `star STAGE ...` and `star launch ... -- STAGE ...`."""
    if arguments[0] == "launch":
        arguments = arguments[arguments.index("--") + 1 :]
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", choices=READS)
    paths = "params train test prompts held-out prompts-dir results adapter"
    for name in paths.split():
        parser.add_argument(f"--{name}", type=Path)
    for name in ("task", "method", "checkpoint"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--output", type=Path, default=Path())
    options = parser.parse_args(arguments)
    # An experiment's folder has code of its own, which is to run there.
    assert Path(os.environ["PYTHONPATH"].split(os.pathsep)[0]) == Path.cwd()
    values = yaml.safe_load(options.params.read_text(encoding="utf-8"))
    written = outputs(options, values, digest(options, values))
    with open(os.environ["STAR_JOURNAL"], "a", encoding="utf-8") as journal:
        target = options.output / "adapter" if options.stage == "train" else next(iter(written))
        journal.write(f"{target}\n")
    end = time.monotonic() + HOLD_SECONDS
    while Path(os.environ["STAR_HOLD"]).exists():
        if time.monotonic() > end:
            sys.exit(f"held for {HOLD_SECONDS} s")
        time.sleep(0.05)
    for path, text in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")


def digest(options: argparse.Namespace, values: dict) -> str:
    """Return a digest of the parameters, code and files that the stage reads."""
    state = hashlib.sha256()
    keys, patterns = READS[options.stage]
    for key in keys.format(**vars(options)).split():
        node = values
        for part in key.split("."):
            node = node[part]
        state.update(json.dumps(node, sort_keys=True).encode())
    files = [file for pattern in patterns.split() for file in sorted(Path().glob(pattern))]
    if options.stage == "prompts":
        names = (values["prompts"][options.task][key] for key in ("train_file", "test_file"))
        files += [Path(name) for name in names if name]
    for given in (options.prompts, options.held_out, options.prompts_dir, options.adapter):
        below = sorted(given.rglob("*")) if given and given.is_dir() else [given]
        files += [file for file in below if file and _is_read(file, options.stage)]
    if options.stage == "report":
        below = (sorted((options.results / name).rglob("*")) for name in ("train", "evaluate"))
        files += [file for folder in below for file in folder if _is_read(file, "report")]
    for file in files:
        state.update(file.as_posix().encode() + file.read_bytes())
    return state.hexdigest()


def _is_read(file: Path, stage: str) -> bool:
    if stage == "evaluate" and file.name == "train.jsonl":
        return False
    return file.is_file() and not file.name.startswith(".snakemake")


def outputs(options: argparse.Namespace, values: dict, state: str) -> dict[Path, str]:
    """Return the texts of the stage's files, its target first, but for a training's."""
    out = options.output
    if options.stage == "prompts":
        return {path: json.dumps({"id": path.stem, "state": state}) for path in _sets(options)}
    if options.stage == "core":
        return {out: json.dumps({"id": options.prompts.stem, "state": state})}
    if options.stage == "train":
        epochs = range(1, values["train"]["epochs"] + 1)
        lines = [{"epoch": epoch, "reward_mean": _number(state, epoch)} for epoch in epochs]
        # The images are named as the rule's report looks for them.
        states = ("adapter/adapter.txt", "samples/epoch_0001.png", "maps/epoch_0001_0_step_0.png")
        return {out / name: state for name in states} | {
            out / "log.jsonl": "\n".join(map(json.dumps, lines)),
            out / "parameters.json": json.dumps({"method": options.method}),
        }
    if options.stage == "evaluate":
        means = json.dumps({task: _number(state, task) for task in TASKS})
        return {
            out / "scores.json": means,
            out / "metrics.json": means,
            out / "images.jsonl": json.dumps({"state": state}),
            out / "images/0.txt": state,
        }
    scores = {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(options.results.glob("evaluate/*/scores.json"))
    }
    rows = ["task,method,epoch,images,reward_mean"]
    for log in sorted(options.results.glob("train/*/log.jsonl")):
        task, method = log.parent.name.split("-")
        for line in map(json.loads, log.read_text(encoding="utf-8").splitlines()):
            epoch = line["epoch"]
            rows.append(f"{task},{method},{epoch},{8 * epoch},{line['reward_mean']}")
    return {
        out: state,
        options.results / "metrics/summary.json": json.dumps(scores),
        options.results / "metrics/curves.csv": "\n".join(rows),
    }


def _sets(options: argparse.Namespace) -> tuple[Path, Path]:
    return options.train, options.test


def _number(state: str, key: object) -> float:
    """Return a number in [0, 1) that follows from a digest."""
    return int(hashlib.sha256(f"{state} {key}".encode()).hexdigest()[:6], 16) / 16**6


if __name__ == "__main__":
    main(sys.argv[1:])
