"""Measure what large inputs cost.

    python -m benchmarks.load > benchmarks/figures/load.json

Run it after `make run`, which only `report` needs. Names of parts measure these alone.

- prompts: 50,000 GenEval prompts of COCO's classes prepared and their core content marked;
- lines: 2,000 prompts taken from a file of a million distinct ones;
- plan: a dry run of 500 trainings and their evaluations;
- report: a page over 200 checkpoints, copies of those of `make run`;
- leak: memory of the smallest training over 400 epochs; it is flat after the first 200.

Each runs in processes of its own. Figures are seconds of wall time and bytes of the largest
resident set.
"""

import argparse
import copy
import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from star.config.params import TASKS
from star.config.reading import load_params
from star.prompts.words import WORDS

DEFAULT = Path("params.yaml")
PARTS = ("prompts", "lines", "plan", "report", "leak")
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}


def run(*command: object) -> dict[str, float]:
    """Return wall time and largest resident set of a command, which must succeed."""
    start = time.monotonic()
    process = subprocess.Popen([*map(str, command)], env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    status, usage = os.wait4(process.pid, 0)[1:]
    if status:
        raise SystemExit(f"{command}: status {os.waitstatus_to_exitcode(status)}")
    return {"seconds": round(time.monotonic() - start, 2), "bytes": usage.ru_maxrss * 1024}


def star(*arguments: object) -> dict[str, float]:
    return run(sys.executable, "-m", "star.cli", *arguments)


def written(values: dict[str, Any], folder: Path) -> Path:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def variants(values: dict[str, Any], count: int) -> dict[str, Any]:
    """Return parameters with ``count`` methods for each task, and paths that hold anywhere."""
    values = copy.deepcopy(values)
    names = [f"variant_{i:03d}" for i in range(count)]
    values["methods"] |= {name: {"lam": 0.01 * i} for i, name in enumerate(names)}
    values["runs"] = dict.fromkeys(TASKS, names)
    for section in (values["model"], values["rewards"]["preference"]):
        section["path"] = str(Path(section["path"]).resolve())
    return values


def prompts(folder: Path) -> dict[str, dict[str, float]]:
    """Measure a preset, with a test set that is drawn and not fetched."""
    values = yaml.safe_load(Path("presets/sd35m-1gpu-geneval.yaml").read_text(encoding="utf-8"))
    values["prompts"]["geneval"] |= {"train": 50_000, "test": 553, "test_file": None}
    made, marked = folder / "train.jsonl", folder / "core.jsonl"
    files = ("--train", made, "--test", folder / "test.jsonl")
    prepared = star("prompts", "--task", "geneval", "--params", written(values, folder), *files)
    return {"prepared": prepared, "core": star("core", "--prompts", made, "--output", marked)}


def lines(values: dict[str, Any], folder: Path, count: int) -> dict[str, float]:
    """Measure preference prompts from a file of ``count`` captions of ten words."""
    file = folder / "captions.txt"
    rng = np.random.default_rng(0)
    with open(file, "w", encoding="utf-8") as stream:
        for number in range(count):
            stream.write(f"a image of {' '.join(rng.choice(WORDS, 6))} {number}\n")
    values = copy.deepcopy(values)
    values["prompts"]["preference"] |= {"train": 2_000, "train_file": str(file)}
    files = ("--train", folder / "train.jsonl", "--test", folder / "test.jsonl")
    figures = star("prompts", "--task", "preference", "--params", written(values, folder), *files)
    return figures | {"lines": count, "file_bytes": file.stat().st_size}


def plan(values: dict[str, Any], folder: Path, jobs: int) -> dict[str, float]:
    """Measure a dry run with ``jobs`` trainings and evaluations in all."""
    written(variants(values, jobs // 2 // len(TASKS) + 1), folder)
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        Path("Snakefile").resolve(),
        "--directory",
        folder,
    ]
    return run(
        *command,
        "--cores",
        2,
        "--dry-run",
        "--quiet",
    )


def report(values: dict[str, Any], folder: Path, checkpoints: int) -> dict[str, float]:
    """Measure a page over ``checkpoints`` copies of what `make run` trained."""
    values = variants(values, checkpoints // len(TASKS) + 1)
    results = folder / "results"
    shutil.copytree("results/evaluate/base", results / "evaluate/base")
    for task in TASKS:
        for name in values["runs"][task]:
            for stage in ("train", "evaluate"):
                shutil.copytree(f"results/{stage}/{task}-star", results / stage / f"{task}-{name}")
            scores = results / "evaluate" / f"{task}-{name}" / "scores.json"
            facts = json.loads(scores.read_text(encoding="utf-8"))
            facts |= {"checkpoint": f"{task}-{name}", "method": name}
            scores.write_text(json.dumps(facts), encoding="utf-8")
    page = results / "report/index.html"
    figures = star(
        "report", "--params", written(values, folder), "--results", results, "--output", page
    )
    return figures | {"page_bytes": page.stat().st_size}


def leak(epochs: int) -> dict[str, Any]:
    """Return the resident set after each tenth of the epochs, in bytes.

    The trainer is as it is and saves as it does. It has 20 prompts, so that the embeddings that are
    kept of each, 95 kB, are all there early.
    """
    import torch

    from star.policy.sd3 import load_policy
    from star.prompts.core_content import with_core
    from star.prompts.prepare import prepare
    from star.rewards.factory import build_reward
    from star.system.runtime import keep_freed_memory
    from star.training.checkpoint import States
    from star.training.loop import run_epochs
    from star.training.trainer import Trainer

    keep_freed_memory()
    params = load_params(DEFAULT)
    params = dataclasses.replace(
        params,
        rollout=dataclasses.replace(params.rollout, steps=2, window=[0, 1], batch=4),
        train=dataclasses.replace(
            params.train,
            epochs=epochs,
            prompts_per_epoch=2,
            group_size=2,
            updates_per_epoch=1,
            save_every=10,
        ),
    )
    records = with_core(prepare("geneval", params.prompts, params.seed)[0][:20])
    policy, reward = (
        load_policy(params.model, torch.device("cpu")),
        build_reward("geneval", params.rewards),
    )
    trainer = Trainer(params, params.with_method("star").allocation, records, reward, policy)
    seen = []
    with tempfile.TemporaryDirectory() as folder:
        states = States(Path(folder), 2, {})
        run_epochs(trainer, states, "leak", epochs // 10, lambda: seen.append(resident()))
    return {"epochs": epochs, "bytes": seen}


def resident() -> float:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return float(pages) * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", default=PARTS, help=f"default: {', '.join(PARTS)}"
    )
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--checkpoints", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=400)
    options = parser.parse_args()
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]!r}; known: {', '.join(PARTS)}")
    values = yaml.safe_load(DEFAULT.read_text(encoding="utf-8"))
    figures: dict[str, Any] = {}
    works: dict[str, Callable[[Path], dict[str, Any]]] = {
        "prompts": lambda folder: prompts(folder),
        "lines": lambda folder: lines(values, folder, options.lines),
        "plan": lambda folder: plan(values, folder, options.jobs) | {"jobs": options.jobs},
        "report": lambda folder: (
            report(values, folder, options.checkpoints) | {"checkpoints": options.checkpoints}
        ),
        "leak": lambda folder: leak(options.epochs),
    }
    for name in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            figures[name] = works[name](Path(folder))
        print(name, figures[name], file=sys.stderr)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
