"""Evaluation of the committed base model on a few prompts: files, summaries, determinism."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from star.evaluation import evaluate
from star.params import load_params
from star.prompts.prepare import prepare
from star.records import write_records


@pytest.fixture(scope="module")
def params():
    base = load_params(Path("params.yaml"))
    few = {task: dataclasses.replace(getattr(base.prompts, task), train=4, test=6) for task in base.runs}
    return dataclasses.replace(
        base,
        prompts=dataclasses.replace(base.prompts, **few),
        evaluate=dataclasses.replace(base.evaluate, steps=4, batch=4, images_per_prompt=2, bootstrap=50),
    )


@pytest.fixture(scope="module")
def evaluated(params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    for task in params.runs:
        write_records(folder / "core" / task / "test.jsonl", prepare(task, params)[1])
    evaluate(params, "base", None, folder / "core", folder / "base")
    return folder


def test_every_picture_has_a_line_and_a_file(evaluated):
    lines = [json.loads(line) for line in (evaluated / "base" / "images.jsonl").read_text().splitlines()]
    assert len(lines) == 3 * 6 * 2
    assert len({(line["id"], line["index"]) for line in lines}) == len(lines) == len({line["seed"] for line in lines})
    assert all((evaluated / "base" / line["picture"]).is_file() for line in lines)


def test_summaries_are_the_means_of_the_lines(evaluated):
    lines = [json.loads(line) for line in (evaluated / "base" / "images.jsonl").read_text().splitlines()]
    scores = json.loads((evaluated / "base" / "scores.json").read_text())
    assert (scores["checkpoint"], scores["task"], scores["method"]) == ("base", None, None)
    benchmarks = scores["benchmarks"]
    metrics = json.loads((evaluated / "base" / "metrics.json").read_text())
    assert metrics["geneval_strict"] == benchmarks["geneval"]["strict"]["mean"] and len(metrics) == 5
    geneval = [line["detail"] for line in lines if line["task"] == "geneval"]
    tags = {tag: np.mean([d["strict"] for d in geneval if d["tag"] == tag]) for tag in {d["tag"] for d in geneval}}
    assert len(tags) == 6
    assert benchmarks["geneval"]["strict"]["mean"] == pytest.approx(np.mean(list(tags.values())))
    for task, key, name in (("ocr", "score", "reward"), ("ocr", "exact", "exact"), ("preference", "score", "score")):
        mean = np.mean([float(line["detail"][key]) for line in lines if line["task"] == task])
        assert benchmarks[task][name]["mean"] == pytest.approx(mean)
        assert benchmarks[task][name]["low"] <= mean <= benchmarks[task][name]["high"]


def test_a_second_evaluation_gives_the_same_bytes(evaluated, params):
    evaluate(params, "base", None, evaluated / "core", evaluated / "again")
    first, second = ((evaluated / name / "images.jsonl").read_bytes() for name in ("base", "again"))
    assert first == second
