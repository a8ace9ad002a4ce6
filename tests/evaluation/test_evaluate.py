"""Evaluation of the committed base model on a few prompts: files, summaries, determinism."""

import dataclasses
import json
import os

import numpy as np
import pytest
from PIL import Image

from star.config.params import TASKS
from star.evaluation.evaluate import evaluate
from star.evaluation.held_out_reader import read_again
from star.evaluation.score_folder import score_folder
from star.policy.rollout import sample_images
from star.prompts.prepare import prepare
from star.prompts.records import PromptRecord, read_records, write_records
from star.system.errors import StarError
from star.system.locks import take_lock
from tests.helpers.lines import read_lines
from tests.helpers.training import BASE, changed, short_model

SAMPLING = "star.evaluation.drawing.sample_images"


@pytest.fixture(scope="module")
def params():
    """Six prompts a benchmark and two images of each, in batches of four."""
    sets = {task: getattr(BASE.prompts, task) for task in TASKS}
    few = {task: dataclasses.replace(prompts, train=4, test=6) for task, prompts in sets.items()}
    looks = {"steps": 2, "batch": 4, "images_per_prompt": dict.fromkeys(TASKS, 2), "bootstrap": 50}
    looks |= {"second_reader": "template"}
    rewards = {"ocr": dataclasses.replace(BASE.rewards.ocr, workers=1)}
    short = {"path": short_model()}
    return changed(BASE, model=short, prompts=few, rewards=rewards, evaluate=looks)


@pytest.fixture(scope="module")
def evaluated(params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    for task in TASKS:
        write_records(
            folder / "core" / task / "test.jsonl", prepare(task, params.prompts, params.seed)[1]
        )
    evaluate(params, "base", None, folder / "core", folder / "work", folder / "base")
    return folder


@pytest.fixture
def lines(evaluated):
    return read_lines(evaluated / "base" / "images.jsonl")


@pytest.fixture
def scores(evaluated):
    return json.loads((evaluated / "base" / "scores.json").read_text())


def test_every_image_has_a_line_and_a_file(evaluated, lines):
    assert len(lines) == 3 * 6 * 2
    assert len({(line["id"], line["index"]) for line in lines}) == len(lines)
    assert len({line["seed"] for line in lines}) == len(lines)
    assert all((evaluated / "base" / line["image"]).is_file() for line in lines)
    files = [evaluated / "core" / task / "test.jsonl" for task in TASKS]
    records = {record.id: record for file in files for record in read_records(file)}
    # So that any other scorer can be run on them.
    assert all(line["metadata"] == records[line["id"]].metadata for line in lines)


def test_summaries_are_the_means_of_the_lines(evaluated, lines, scores):
    assert (scores["checkpoint"], scores["task"], scores["method"]) == ("base", None, None)
    benchmarks = scores["benchmarks"]
    metrics = json.loads((evaluated / "base" / "metrics.json").read_text())
    assert len(metrics) == 5
    assert metrics["geneval_strict"] == benchmarks["geneval"]["strict"]["mean"]
    details = {task: [x["detail"] for x in lines if x["task"] == task] for task in TASKS}
    tags = {detail["tag"] for detail in details["geneval"]}
    by_tag = [[d["strict"] for d in details["geneval"] if d["tag"] == tag] for tag in tags]
    assert len(tags) == 6
    mean_of_tags = np.mean([np.mean(values) for values in by_tag])
    assert benchmarks["geneval"]["strict"]["mean"] == pytest.approx(mean_of_tags)
    columns = (
        ("ocr", "score", "reward"),
        ("ocr", "exact", "exact"),
        ("preference", "score", "score"),
    )
    for task, key, name in columns:
        mean = np.mean([float(detail[key]) for detail in details[task]])
        found = benchmarks[task][name]
        assert found["mean"] == pytest.approx(mean) and found["low"] <= mean <= found["high"]


def test_quality_of_every_image_and_diversity_of_every_prompt(lines, scores):
    judged = {"edges", "dark", "preference"}
    for task, figures in scores["quality"].items():
        mine = [line for line in lines if line["task"] == task]
        second = {"second_reader"} if task == "ocr" else set()
        assert set(figures) == judged | {"diversity", "feature_diversity"} | second
        for name in judged:
            mean = np.mean([line["quality"][name] for line in mine])
            assert figures[name]["mean"] == pytest.approx(mean)
        first = [line["index"] == 0 for line in mine]
        assert ["diversity" in line["quality"] for line in mine] == first
        assert figures["diversity"]["mean"] > 1 and 0 < figures["feature_diversity"]["mean"] < 2
    for line in lines:
        if line["task"] == "preference":
            score = pytest.approx(line["detail"]["score"], abs=1e-4)
            assert line["quality"]["preference"] == score


def test_the_second_reader_reads_every_ocr_image_and_changes_nothing_else(
    evaluated, params, lines, scores
):
    looks = dataclasses.replace(params.evaluate, second_reader="none")
    without = dataclasses.replace(params, evaluate=looks)
    evaluate(without, "base", None, evaluated / "core", evaluated / "work-none", evaluated / "none")
    read = [line for line in lines if line["task"] == "ocr"]
    images = [np.asarray(Image.open(evaluated / "base" / line["image"])) for line in read]
    records = [
        PromptRecord(line["id"], "ocr", line["prompt"], {"text": line["detail"]["target"]})
        for line in read
    ]
    found = [(line.pop("second_read"), line["quality"].pop("second_reader")) for line in read]
    readings = read_again("template", images, records, workers=0)
    assert found == [(reading.text, round(reading.reward, 6)) for reading in readings]
    quality = scores["quality"]["ocr"]["second_reader"]
    assert quality["mean"] == pytest.approx(np.mean([reward for _, reward in found]), abs=1e-6)
    assert lines == read_lines(evaluated / "none" / "images.jsonl")


@pytest.mark.parametrize("task", TASKS)
def test_a_folder_of_its_images_gets_the_same_scores(evaluated, params, lines, scores, task):
    records = read_records(evaluated / "core" / task / "test.jsonl")
    output = evaluated / "scored" / task
    score_folder(params, task, records, evaluated / "base" / "images", output)
    scored = json.loads((output / "scores.json").read_text())
    assert scored["benchmarks"] == {task: scores["benchmarks"][task]}
    drawn_twice = {"diversity", "feature_diversity"}
    expected = {k: v for k, v in scores["quality"][task].items() if k not in drawn_twice}
    assert scored["quality"][task] == expected
    same = [("image", "score", "detail"), [x for x in lines if x["task"] == task]]
    mine = read_lines(output / "images.jsonl")
    assert [[x[key] for key in same[0]] for x in mine] == [[x[k] for k in same[0]] for x in same[1]]


@pytest.mark.parametrize("folder", ["work", "again"])
def test_two_evaluations_of_one_folder(evaluated, params, folder):
    lock = take_lock(evaluated / folder / ".lock", "star evaluate base")
    owner = rf"star evaluate base .*process {os.getpid()}"
    with pytest.raises(StarError, match=owner):
        evaluate(params, "base", None, evaluated / "core", evaluated / "work", evaluated / "again")
    lock.release()


def test_a_killed_evaluation_draws_only_what_is_missing_and_gives_the_same_bytes(
    evaluated, params, monkeypatch
):
    """Die in the second benchmark; then go on beside a missing image and a damaged one."""
    drawn = []

    def sample(policy, prompts, *rest):
        if len(drawn) == 7:  # three batches of images, two of the diversity, then two more
            raise KeyboardInterrupt
        drawn.append(prompts)
        return sample_images(policy, prompts, *rest)

    monkeypatch.setattr(SAMPLING, sample)
    again = (params, "base", None, evaluated / "core", evaluated / "work", evaluated / "again")
    with pytest.raises(KeyboardInterrupt):
        evaluate(*again)
    kept = sorted((evaluated / "work" / "images").glob("*.png"))
    assert len(kept) == 5 * 4
    kept[0].rename(kept[0].with_suffix(".tmp"))
    kept[-1].write_bytes(kept[-1].read_bytes()[:-40])
    first, drawn[:] = list(drawn), []
    monkeypatch.setattr(SAMPLING, lambda *a: drawn.append(a[1]) or sample_images(*a))
    evaluate(*again)
    assert len(drawn) == 3 * (3 + 2) - 7 + 2 and drawn[0] in first
    for name in ("images.jsonl", *(f"images/{path.name}" for path in kept)):
        assert (evaluated / "base" / name).read_bytes() == (evaluated / "again" / name).read_bytes()
    assert not (evaluated / "work").exists()
