"""Evaluation of the committed base model on a few prompts: files, summaries, determinism."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from star.config.params import TASKS, load_params
from star.evaluation.evaluate import evaluate
from star.evaluation.held_out_reader import read_again
from star.evaluation.score_folder import score_folder
from star.policy.rollout import sample_images
from star.prompts.prepare import prepare
from star.prompts.records import PromptRecord, read_records, write_records
from star.system.errors import StarError
from star.system.locks import take_lock


@pytest.fixture(scope="module")
def params():
    base = load_params(Path("params.yaml"))
    few = {
        task: dataclasses.replace(getattr(base.prompts, task), train=4, test=6)
        for task in base.runs
    }
    return dataclasses.replace(
        base,
        prompts=dataclasses.replace(base.prompts, **few),
        evaluate=dataclasses.replace(
            base.evaluate,
            steps=4,
            batch=4,
            images_per_prompt=dict.fromkeys(base.runs, 2),
            bootstrap=50,
        ),
    )


@pytest.fixture(scope="module")
def evaluated(params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    for task in params.runs:
        write_records(
            folder / "core" / task / "test.jsonl", prepare(task, params.prompts, params.seed)[1]
        )
    evaluate(params, "base", None, folder / "core", folder / "work", folder / "base")
    return folder


def test_every_image_has_a_line_and_a_file(evaluated):
    lines = [
        json.loads(line) for line in (evaluated / "base" / "images.jsonl").read_text().splitlines()
    ]
    assert len(lines) == 3 * 6 * 2
    assert (
        len({(line["id"], line["index"]) for line in lines})
        == len(lines)
        == len({line["seed"] for line in lines})
    )
    assert all((evaluated / "base" / line["image"]).is_file() for line in lines)
    records = {
        r.id: r for task in TASKS for r in read_records(evaluated / "core" / task / "test.jsonl")
    }
    assert all(line["metadata"] == records[line["id"]].metadata for line in lines), (
        "any other scorer can be run on them"
    )


def test_summaries_are_the_means_of_the_lines(evaluated):
    lines = [
        json.loads(line) for line in (evaluated / "base" / "images.jsonl").read_text().splitlines()
    ]
    scores = json.loads((evaluated / "base" / "scores.json").read_text())
    assert (scores["checkpoint"], scores["task"], scores["method"]) == ("base", None, None)
    benchmarks = scores["benchmarks"]
    metrics = json.loads((evaluated / "base" / "metrics.json").read_text())
    assert (
        metrics["geneval_strict"] == benchmarks["geneval"]["strict"]["mean"] and len(metrics) == 5
    )
    geneval = [line["detail"] for line in lines if line["task"] == "geneval"]
    tags = {
        tag: np.mean([d["strict"] for d in geneval if d["tag"] == tag])
        for tag in {d["tag"] for d in geneval}
    }
    assert len(tags) == 6
    assert benchmarks["geneval"]["strict"]["mean"] == pytest.approx(np.mean(list(tags.values())))
    for task, key, name in (
        ("ocr", "score", "reward"),
        ("ocr", "exact", "exact"),
        ("preference", "score", "score"),
    ):
        mean = np.mean([float(line["detail"][key]) for line in lines if line["task"] == task])
        assert benchmarks[task][name]["mean"] == pytest.approx(mean)
        assert benchmarks[task][name]["low"] <= mean <= benchmarks[task][name]["high"]


def test_quality_of_every_image_and_diversity_of_every_prompt(evaluated):
    lines = [
        json.loads(line) for line in (evaluated / "base" / "images.jsonl").read_text().splitlines()
    ]
    quality = json.loads((evaluated / "base" / "scores.json").read_text())["quality"]
    for task, figures in quality.items():
        mine = [line for line in lines if line["task"] == task]
        second = {"second_reader"} if task == "ocr" else set()
        assert (
            set(figures)
            == {"edges", "dark", "preference", "diversity", "feature_diversity"} | second
        )
        for name in ("edges", "dark", "preference"):
            assert figures[name]["mean"] == pytest.approx(
                np.mean([line["quality"][name] for line in mine])
            )
        assert [("diversity" in line["quality"]) for line in mine] == [
            line["index"] == 0 for line in mine
        ]
        assert figures["diversity"]["mean"] > 1 and 0 < figures["feature_diversity"]["mean"] < 2
    scored = [line for line in lines if line["task"] == "preference"]
    assert all(
        line["quality"]["preference"] == pytest.approx(line["detail"]["score"], abs=1e-4)
        for line in scored
    )


def test_the_second_reader_reads_every_ocr_image_and_changes_nothing_else(evaluated, params):
    without = dataclasses.replace(
        params, evaluate=dataclasses.replace(params.evaluate, second_reader="none")
    )
    evaluate(without, "base", None, evaluated / "core", evaluated / "work-none", evaluated / "none")
    lines, plain = (
        [json.loads(line) for line in (evaluated / name / "images.jsonl").read_text().splitlines()]
        for name in ("base", "none")
    )
    read = [line for line in lines if line["task"] == "ocr"]
    images = [np.asarray(Image.open(evaluated / "base" / line["image"])) for line in read]
    records = [
        PromptRecord(line["id"], "ocr", line["prompt"], {"text": line["detail"]["target"]})
        for line in read
    ]
    found = [(line.pop("second_read"), line["quality"].pop("second_reader")) for line in read]
    assert found == [
        (r.text, round(r.reward, 6)) for r in read_again("ppocrv6", images, records, workers=0)
    ]
    quality = json.loads((evaluated / "base" / "scores.json").read_text())["quality"]["ocr"][
        "second_reader"
    ]
    assert quality["mean"] == pytest.approx(np.mean([reward for _, reward in found]), abs=1e-6)
    assert quality["low"] <= quality["mean"] <= quality["high"]
    assert lines == plain


def test_a_folder_of_its_images_gets_the_same_scores(evaluated, params):
    base = json.loads((evaluated / "base" / "scores.json").read_text())
    lines = [
        json.loads(line) for line in (evaluated / "base" / "images.jsonl").read_text().splitlines()
    ]
    for task in params.runs:
        records = read_records(evaluated / "core" / task / "test.jsonl")
        score_folder(
            params, task, records, evaluated / "base" / "images", evaluated / "scored" / task
        )
        scored = json.loads((evaluated / "scored" / task / "scores.json").read_text())
        assert scored["benchmarks"] == {task: base["benchmarks"][task]}
        undrawn = ("diversity", "feature_diversity")
        assert scored["quality"][task] == {
            k: v for k, v in base["quality"][task].items() if k not in undrawn
        }
        mine = [
            json.loads(x)
            for x in (evaluated / "scored" / task / "images.jsonl").read_text().splitlines()
        ]
        assert [(x["image"], x["score"], x["detail"]) for x in mine] == [
            (x["image"], x["score"], x["detail"]) for x in lines if x["task"] == task
        ]


@pytest.mark.parametrize("folder", ["work", "again"])
def test_two_evaluations_of_one_folder(evaluated, params, folder):
    lock = take_lock(evaluated / folder / ".lock", "star evaluate base")
    with pytest.raises(
        StarError, match=rf"star evaluate base \(process {os.getpid()} .* is at work in this folder"
    ):
        evaluate(params, "base", None, evaluated / "core", evaluated / "work", evaluated / "again")
    os.close(lock)


def test_a_killed_evaluation_draws_only_what_is_missing_and_gives_the_same_bytes(
    evaluated, params, monkeypatch
):
    """The first call dies in the second benchmark; the second one finds its images, one of which
    is half written."""
    drawn = []

    def sample(policy, prompts, *rest):
        if len(drawn) == 7:  # three batches of images and two of the diversity, then two more
            raise KeyboardInterrupt
        drawn.append(prompts)
        return sample_images(policy, prompts, *rest)

    monkeypatch.setattr("star.evaluation.evaluate.sample_images", sample)
    again = (params, "base", None, evaluated / "core", evaluated / "work", evaluated / "again")
    with pytest.raises(KeyboardInterrupt):
        evaluate(*again)
    kept = sorted((evaluated / "work" / "images").glob("*.png"))
    assert len(kept) == 5 * 4
    kept[0].rename(kept[0].with_suffix(".tmp"))
    kept[-1].write_bytes(kept[-1].read_bytes()[:-40])  # damaged: its batch is drawn again
    first, drawn[:] = list(drawn), [None]
    monkeypatch.setattr(
        "star.evaluation.evaluate.sample_images",
        lambda *a: drawn.append(a[1]) or sample_images(*a),
    )
    evaluate(*again)
    assert len(drawn) - 1 == 3 * (3 + 2) - 7 + 2 and drawn[1] in first
    for name in ("images.jsonl", *(f"images/{path.name}" for path in kept)):
        assert (evaluated / "base" / name).read_bytes() == (evaluated / "again" / name).read_bytes()
    assert not (evaluated / "work").exists()
