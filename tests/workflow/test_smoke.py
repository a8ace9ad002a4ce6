"""The whole pipeline with tiny parameters, through Snakemake, in a folder of its own: what it makes
and changes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from star.config.params import Params, load_params
from tests.helpers.smoke import ROOT, smoke_values

RUNS = {"geneval-star": "star", "ocr-flow_grpo": "flow_grpo", "preference-star": "star"}

pytestmark = pytest.mark.slow


@pytest.fixture
def params(write_params: Callable[[dict], Path]) -> Params:
    return load_params(write_params(smoke_values()))


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_whole_pipeline(
    tmp_path: Path, params: Params, snakemake: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    run = snakemake()
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
    results = tmp_path / "results"
    for name, method in RUNS.items():
        check_training(results / "train" / name, params, method)
        assert (tmp_path / "logs/train_policy" / f"{name}.log").stat().st_size > 0
        (tracked,) = (tmp_path / "logs/tensorboard").glob(f"{name}-*/events.*")
        assert b"reward_mean" in tracked.read_bytes() and b"samples" in tracked.read_bytes()
        parameters = json.loads(
            (results / "train" / name / "parameters.json").read_text(encoding="utf-8")
        )
        assert (parameters["method"], parameters["train"]["epochs"]) == (
            method,
            params.train.epochs,
        )
    for name in ("base", *RUNS):
        check_evaluation(results / "evaluate" / name, results / "evaluate" / "base", params)
    page = (results / "report/index.html").read_text(encoding="utf-8")
    assert params.report.title in page
    assert all(name in page for name in RUNS)
    summary = json.loads((results / "metrics/summary.json").read_text(encoding="utf-8"))
    assert {"base", *RUNS} <= set(summary)
    curves = (results / "metrics/curves.csv").read_text(encoding="utf-8").splitlines()
    assert {"task", "method", "images", "reward_mean"} <= set(curves[0].split(","))
    assert len(curves) == 1 + len(RUNS) * params.train.epochs

    again = snakemake()
    assert "Nothing to be done" in again.stdout + again.stderr


def check_training(folder: Path, params: Params, method: str) -> None:
    """Every epoch is logged once, the first ratios are 1, and the adapter moved away from the zero
    it starts at."""
    lines = read_lines(folder / "log.jsonl")
    assert [line["epoch"] for line in lines] == sorted({line["epoch"] for line in lines})
    assert len(lines) == params.train.epochs
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
    """Each benchmark has a score for each test prompt, and all checkpoints draw from the same
    seeds."""
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    assert set(scores["benchmarks"]) == {"geneval", "ocr", "preference"}
    lines = read_lines(folder / "images.jsonl")
    counts = params.evaluate.images_per_prompt
    assert len(lines) == sum(
        getattr(params.prompts, task).test * counts[task] for task in scores["benchmarks"]
    )
    assert all((folder / line["image"]).exists() for line in lines)
    paired = [
        (line["id"], line["index"], line["seed"]) for line in read_lines(base / "images.jsonl")
    ]
    assert [(line["id"], line["index"], line["seed"]) for line in lines] == paired


def test_a_job_whose_processes_are_all_signalled_saves_its_training(
    tmp_path: Path, write_params
) -> None:
    """As schedulers do before a time limit: shell and `tee` get the signal too, and have to outlive
    the training."""
    values = smoke_values()
    values["train"] |= {
        "epochs": 10_000,
        "save_every": 10_000,
        "sample_every": 10_000,
        "tracker": "none",
    }
    write_params(values)
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(ROOT / "Snakefile"),
        "--directory",
        str(tmp_path),
    ]
    target = ("--cores", "2", "--nolock", "results/train/geneval-star/log.jsonl")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    with (
        open(tmp_path / "output", "w", encoding="utf-8") as output,
        subprocess.Popen(
            [*command, *target],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        ) as run,
    ):
        while (
            len(
                epochs := [
                    line
                    for log in tmp_path.glob(".star/state/*/log.jsonl")
                    for line in read_lines(log)
                ]
            )
            < 3
        ):
            assert run.poll() is None, (tmp_path / "output").read_text(encoding="utf-8")[-3000:]
            time.sleep(0.1)
        os.killpg(run.pid, signal.SIGTERM)
        assert run.wait(60) != 0
    assert "asked to stop" in (tmp_path / "logs/train_policy/geneval-star.log").read_text(
        encoding="utf-8"
    )
    (state,) = tmp_path.glob(".star/state/*/state-*.safetensors")
    assert int(state.stem.removeprefix("state-")) >= len(epochs)
