"""Kill trainings and evaluations, let them go on, and compare what they leave.

    python -m benchmarks.kills --kills 200

A training of a few small epochs and an evaluation, both of the smoke test's size, run once without
interruption. Then they run again and again. Each run is killed (SIGKILL) at a random moment, or in
the middle of a named phase, and started again until it ends by itself. What it leaves must be the
same to the byte: adapter, log lines but for times, grids, maps, scores, images.

With ``--stop`` some are asked to stop (SIGTERM, SIGUSR1) and must say so by status 75. Prints a
JSON object: kills by phase. Ends with an error at the first difference. The stages run in children
of a process that has the libraries in memory, so that a start takes no time.
"""

import argparse
import collections
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm

import star.evaluation.drawing
import star.evaluation.evaluate
import star.training.checkpoint
import star.training.loop
from star import cli
from star.evaluation.drawing import ImageDrawer
from star.policy.sd3 import SD3Policy
from star.system.errors import Interrupted
from star.training.held_out import HeldOut
from star.training.policy_gradient import PolicyGradient
from star.training.trainer import ALGORITHMS, Trainer

SMOKE = Path("tests/smoke/params.yaml")
TIMES = ("seconds", "images_per_s")
# Where -> what is called there, its owner, and which of its calls at the latest: a later one may
# never come.
PHASES: dict[str, tuple[Any, str, int]] = {
    "rollout": (Trainer, "sample", 4),
    "reward": (Trainer, "collect", 4),
    "update": (PolicyGradient, "term", 4),
    "step": (Trainer, "step", 4),
    "log": (star.training.loop, "_append", 4),
    "state": (star.training.checkpoint, "save_file", 3),
    "look": (star.training.loop, "_draw", 3),
    "held out": (HeldOut, "mean", 3),
    "export": (SD3Policy, "save_adapter", 1),
    "draw": (star.evaluation.drawing, "sample_images", 4),
    "image": (ImageDrawer, "_save", 4),
    "scores": (star.evaluation.evaluate, "write_scores", 1),
}
TRAINING = ("rollout", "reward", "update", "step", "log", "state", "look", "held out", "export")


def write_params(folder: Path, algorithm: str, reuse: bool) -> Path:
    values = yaml.safe_load(SMOKE.read_text(encoding="utf-8"))
    values["model"] |= {"path": "models/miniature", "prompt_cache": str(folder / "prompts")}
    values["rewards"]["preference"]["path"] = "models/miniature-preference"
    values["rewards"]["ocr"]["workers"] = 1
    values["prompts"]["geneval"] |= {"train": 4, "test": 2}
    values["train"] |= {
        "epochs": 5,
        "save_every": 2,
        "updates_per_epoch": 1 if reuse else 2,
        "reuse_rollout": reuse,
        "sample_every": 3,
        "evaluate_every": 2,
        "algorithm": algorithm,
        "kl_beta": 0.04 if algorithm == "flow_grpo" else 0.0,
    }
    values["forward"] |= {"draws": 2, "anchor_to": "base", "old_rate": 0.3}
    values["evaluate"] |= {"batch": 2, "steps": 2, "second_reader": "none"}
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def child(arguments: list[str], log: Path, prepare: Callable[[], None]) -> int:
    """Start a stage in a process of its own, and return the process."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        prepare()
        status = cli.main(arguments)
    finally:
        sys.stdout.flush()
        os._exit(status)


def ended(process: int) -> int:
    """Return the exit status of a child, below zero for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def quietly(arguments: list[str], log: Path) -> None:
    """Run a stage to its end."""
    assert ended(child(arguments, log, lambda: None)) == 0, log.read_text(encoding="utf-8")


def kill_in(phase: str, call: int, after: bool) -> None:
    """Have this process die in a phase's ``call``-th call.

    It dies before the call's work, or ``after`` it with the file half written.
    """
    owner, name, _ = PHASES[phase]
    work, calls = getattr(owner, name), 0

    def inner(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls < call:
            return work(*arguments, **more)
        if after:
            work(*arguments, **more)
            if phase == "state":
                Path(arguments[1]).write_bytes(Path(arguments[1]).read_bytes()[:1000])
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, inner)


def left(output: Path) -> dict[str, bytes]:
    """Return what a stage wrote, by file, without times."""
    found = {}
    for file in sorted(output.rglob("*")):
        if not file.is_file():
            continue
        content = file.read_bytes()
        if file.name == "log.jsonl":
            lines = [json.loads(line) for line in content.splitlines()]
            content = json.dumps(
                [{k: v for k, v in line.items() if k not in TIMES} for line in lines]
            ).encode()
        if file.name == "scores.json":
            facts = json.loads(content)
            content = json.dumps({k: v for k, v in facts.items() if k not in TIMES}).encode()
        found[file.relative_to(output).as_posix()] = content
    return found


class Stage:
    """A training or an evaluation in its own folders, and what it leaves uninterrupted."""

    def __init__(self, name: str, arguments: list[str], folder: Path) -> None:
        self.name, self.folder = name, folder
        self.output, self.state, self.log = folder / "output", folder / "state", folder / "log"
        self.arguments = [*arguments, "--output", str(self.output), "--state", str(self.state)]
        folder.mkdir()
        start = time.monotonic()
        assert self.run() == 0, self.log.read_text(encoding="utf-8")
        self.seconds, self.expected = time.monotonic() - start, left(self.output)
        assert self.expected

    def run(self, prepare: Callable[[], None] = lambda: None) -> int:
        return ended(child(self.arguments, self.log, prepare))

    def forget(self) -> None:
        for folder in (self.output, self.state):
            shutil.rmtree(folder, ignore_errors=True)

    def signalled(self, number: int, after: float) -> int:
        """Send a signal some seconds after the start, and return the exit status."""
        process = child(self.arguments, self.log, lambda: None)
        time.sleep(after)
        os.kill(process, number)
        return ended(process)

    def stopped(self, number: int) -> int:
        """Send a signal after the first epoch of a training, and return the exit status."""
        process = child(self.arguments, self.log, lambda: None)
        while not any(log.stat().st_size for log in self.state.glob("*/log.jsonl")):
            time.sleep(0.01)
        os.kill(process, number)
        return ended(process)

    def check(self) -> None:
        """Go on to the end, and compare."""
        assert self.run() == 0, self.log.read_text(encoding="utf-8")[-3000:]
        found = left(self.output)
        differing = [
            name
            for name in self.expected.keys() | found.keys()
            if self.expected.get(name) != found.get(name)
        ]
        if differing:
            raise SystemExit(
                f"{self.name}: {sorted(differing)} differ after a kill; see {self.folder}"
            )
        self.forget()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument(
        "--stop", type=int, default=4, help="how many are asked to stop instead; default: 4"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--algorithm", choices=list(ALGORITHMS), default="flow_grpo")
    parser.add_argument("--reuse", action="store_true", help="with train.reuse_rollout")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(options.seed)
    folder = Path(tempfile.mkdtemp())
    PHASES["update"] = (ALGORITHMS[options.algorithm], "term", 4)
    params = write_params(folder, options.algorithm, options.reuse)
    for task in ("geneval", "ocr", "preference"):
        made = {split: folder / "prompts" / task / f"{split}.jsonl" for split in ("train", "test")}
        command = [
            "prompts",
            "--task",
            task,
            "--train",
            str(made["train"]),
            "--test",
            str(made["test"]),
        ]
        quietly([*command, "--params", str(params)], folder / "log")
        for split, file in made.items():
            core = folder / "core" / task / f"{split}.jsonl"
            quietly(["core", "--prompts", str(file), "--output", str(core)], folder / "log")
    prompts, held_out = (str(folder / f"core/geneval/{split}.jsonl") for split in ("train", "test"))
    trained = [
        "train",
        "--params",
        str(params),
        "--task",
        "geneval",
        "--method",
        "star",
        "--prompts",
        prompts,
        "--held-out",
        held_out,
    ]
    tested = [
        "evaluate",
        "--params",
        str(params),
        "--checkpoint",
        "base",
        "--prompts-dir",
        str(folder / "core"),
    ]
    stages = {
        "train": Stage("train", trained, folder / "train"),
        "evaluate": Stage("evaluate", tested, folder / "evaluate"),
    }
    for stage in stages.values():
        stage.forget()
    print(json.dumps(torment(stages, options.kills, options.stop, rng), indent=1))
    shutil.rmtree(folder)


def torment(stages: dict[str, Stage], kills: int, stops: int, rng: random.Random) -> dict[str, int]:
    """Kill and compare; return how often in which phase.

    ``train at random`` is at a random moment.
    """
    counts: collections.Counter[str] = collections.Counter()
    plan = [*PHASES, "train at random", "evaluate at random"]
    bar = tqdm(total=kills, unit="kill")
    while (done := sum(counts.values())) < kills:
        bar.n = done
        bar.set_description(plan[done % len(plan)])
        where = plan[done % len(plan)]
        stage = stages["train" if where.startswith("train") or where in TRAINING else "evaluate"]
        if where in PHASES:
            status = stage.run(
                partial(kill_in, where, rng.randint(1, PHASES[where][2]), rng.random() < 0.5)
            )
        else:
            status = stage.signalled(signal.SIGKILL, rng.random() * stage.seconds)
        if status == -signal.SIGKILL:
            counts[where] += 1
        if (
            status != -signal.SIGKILL or rng.random() < 0.5
        ):  # the others are killed again before they end
            stage.check()
    bar.close()
    for stage in stages.values():
        stage.check()
    for number in ([signal.SIGTERM, signal.SIGUSR1] * stops)[:stops]:
        status = stages["train"].stopped(number)
        assert status == Interrupted.status, status
        counts[number.name] += 1
        stages["train"].check()
    return dict(counts)


if __name__ == "__main__":
    main()
