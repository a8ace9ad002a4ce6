"""The whole pipeline with tiny parameters, by its command lines alone and through Snakemake."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from star.cli import main
from star.config.params import Params
from star.config.reading import load_params
from tests.helpers.jobs import Job, parse_jobs
from tests.helpers.lines import read_lines
from tests.helpers.runs import epochs_so_far, run_snakemake, said_so_far, start_snakemake
from tests.helpers.smoke import smoke_values, write_values
from tests.helpers.training import short_model
from workflow.dependencies import RULES

RUNS = {"geneval-star": "star", "ocr-flow_grpo": "flow_grpo", "preference-star": "star"}


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Job]]:
    """A folder to run one training in, and the jobs for it: the one Snakemake of `make test`."""
    folder = tmp_path_factory.mktemp("smoke")
    values = smoke_values()
    values["runs"] = {"geneval": ["star"], "ocr": [], "preference": []}
    values["model"]["path"] = short_model()
    values["evaluate"]["second_reader"] = "template"
    write_values(folder / "params.yaml", values)
    run = run_snakemake(folder, "--dry-run", "--printshellcmds", "--forceall")
    assert run.returncode == 0, run.stdout + run.stderr
    return folder, parse_jobs(run.stdout + run.stderr)


def test_every_stage_in_this_process(
    dry_run: tuple[Path, list[Job]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command lines of Snakemake's jobs, one after the other."""
    folder, jobs = dry_run
    monkeypatch.chdir(folder)
    for job in jobs:
        if job.rule not in RULES:
            continue
        command, _, log = job.command.partition(" 2>&1 | tee ")
        assert log == job.log and command.startswith("star "), job.rule
        try:
            assert main(command.split()[1:]) == 0, job.rule
        except SystemExit as end:  # of `star launch`
            assert end.code == 0, job.rule
        assert all((folder / output).exists() for output in job.outputs), job.rule
    check_results(folder / "results", {"geneval-star": "star"})


@pytest.mark.slow
def test_the_whole_pipeline(
    tmp_path: Path, snakemake: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    write_values(tmp_path / "params.yaml", smoke_values())
    run = snakemake()
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
    check_results(tmp_path / "results", RUNS)
    for name in RUNS:
        assert (tmp_path / "logs/train_policy" / f"{name}.log").stat().st_size > 0
    begun = re.findall(r"^(?:local)?rule (train|evaluate)_", run.stdout + run.stderr, re.MULTILINE)
    assert begun[: len(RUNS)] == ["train"] * len(RUNS), "long jobs first"
    again = snakemake()
    assert "Nothing to be done" in again.stdout + again.stderr


def check_results(results: Path, runs: dict[str, str]) -> None:
    """Check what trainings, evaluations and report have left."""
    params = load_params(results.with_name("params.yaml"))
    for name, method in runs.items():
        check_training(results / "train" / name, params, method)
        (tracked,) = results.with_name("logs").glob(f"tensorboard/{name}-*/events.*")
        assert b"reward_mean" in tracked.read_bytes() and b"samples" in tracked.read_bytes()
        recorded = (results / "train" / name / "parameters.json").read_text(encoding="utf-8")
        assert json.loads(recorded)["method"] == method
    for name in ("base", *runs):
        check_evaluation(results / "evaluate" / name, results / "evaluate" / "base", params)
    page = (results / "report/index.html").read_text(encoding="utf-8")
    assert params.report.title in page and all(name in page for name in runs)
    summary = json.loads((results / "metrics/summary.json").read_text(encoding="utf-8"))
    assert {"base", *runs} <= set(summary)
    curves = (results / "metrics/curves.csv").read_text(encoding="utf-8").splitlines()
    assert {"task", "method", "images", "reward_mean"} <= set(curves[0].split(","))
    assert len(curves) == 1 + len(runs) * (1 + params.train.epochs)  # from epoch 0


def check_training(folder: Path, params: Params, method: str) -> None:
    """Check that every epoch is logged once, the first ratios are 1, and the adapter has moved away
    from the zero it starts at."""
    base, *lines = read_lines(folder / "log.jsonl")
    assert [line["epoch"] for line in lines] == [*range(1, params.train.epochs + 1)]
    assert base["epoch"] == 0 and all(0 <= line["held_out"] <= 1 for line in (base, *lines))
    assert lines[-1]["images"] == params.train.epochs * params.images_per_epoch
    assert all(line["first_ratio_error"] < 1e-4 for line in lines)
    assert all((line["map_entropy"] is None) == (method == "flow_grpo") for line in lines)
    (file,) = (folder / "adapter").glob("*.safetensors")
    weights = load_file(file)
    assert all(np.isfinite(value).all() for value in weights.values())
    updated = [key for key in weights if "lora_B" in key or "lora.up" in key]
    rewarded = any(line["groups_without_variance"] < 1 for line in lines)
    assert updated
    assert any(np.abs(weights[key]).max() > 0 for key in updated) == rewarded
    assert list((folder / "samples").glob("*.png"))
    assert bool(list((folder / "maps").glob("*.png"))) == (method == "star")


def check_evaluation(folder: Path, base: Path, params: Params) -> None:
    """Check that each benchmark scores each test prompt, all checkpoints from the same seeds."""
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    lines, paired = read_lines(folder / "images.jsonl"), read_lines(base / "images.jsonl")
    counts = params.evaluate.images_per_prompt
    assert set(scores["benchmarks"]) == {"geneval", "ocr", "preference"}
    assert len(lines) == sum(getattr(params.prompts, task).test * counts[task] for task in counts)
    assert all((folder / line["image"]).exists() for line in lines)
    for key in ("id", "index", "seed"):
        assert [line[key] for line in lines] == [line[key] for line in paired]


@pytest.mark.slow
def test_a_job_whose_processes_are_all_signalled_saves_its_training(
    tmp_path: Path, write_params: Callable[[dict], Path]
) -> None:
    """As schedulers do before a time limit: shell and `tee` get the signal too, and have to outlive
    the training."""
    values = smoke_values()
    never = dict.fromkeys(("epochs", "save_every", "sample_every"), 10_000)
    values["train"] |= {**never, "tracker": "none", "evaluate_every": 0}
    write_params(values)
    with start_snakemake(
        tmp_path, "--cores", "2", "--nolock", "results/train/geneval-star/log.jsonl"
    ) as run:
        while len(epochs := epochs_so_far(tmp_path)) < 3:
            assert run.poll() is None, said_so_far(tmp_path)
            time.sleep(0.1)
        os.killpg(run.pid, signal.SIGTERM)
        assert run.wait(60) != 0
    log = tmp_path / "logs/train_policy/geneval-star.log"
    assert "asked to stop" in log.read_text(encoding="utf-8")
    (state,) = tmp_path.glob(".star/state/*/state-*.safetensors")
    assert int(state.stem.removeprefix("state-")) >= len(epochs)
