"""The study: numbers of a task by hand, what its page concludes, and the tables beside it."""

import csv
import json
import math
import re

import pytest

from star.config.reading import load_params
from star.evaluation.statistics import Interval
from star.study.comparison import load_study
from star.study.page import write_study
from tests.helpers.pages import words_of
from tests.helpers.results import CURVES, IMAGES, METHODS, STUDY, usual, write_params
from tests.helpers.results import write_study_runs as write_runs

STEP = 2 * IMAGES  # images between looks
FILES = ("summary.json", "scores.csv", "curves.csv", "watch.csv")


@pytest.fixture
def study(tmp_path):
    """Makes the study of some runs: its results, its page's text, its folder."""

    def make(score=usual, **changes):
        params = load_params(write_params(tmp_path, study=STUDY | changes))
        runs = write_runs(params.study, tmp_path / "runs", score)
        write_study(params, runs, tmp_path / "out" / "index.html")
        return load_study(params, runs), words_of(tmp_path / "out" / "index.html"), tmp_path / "out"

    return make


def test_numbers_of_a_task(study):
    task = study()[0].tasks[0]
    star, lost, flow_grpo = (task.method(name) for name in ("star", "lost", "flow_grpo"))
    assert (task.base_exact, task.base_graded, task.held_out) == (pytest.approx(0.2), 0.5, 2)
    assert task.level == pytest.approx(0.51)
    half = 4.30265 * 0.01 / math.sqrt(3)
    assert (star.score.mean, star.score.high) == pytest.approx((0.71, 0.71 + half))
    assert star.area.mean == pytest.approx((0.2 + 0.61 + 0.71) / 3)
    assert star.first.final == Interval(*[pytest.approx(0.2)] * 3)  # the seed's 0.01 cancels
    assert star.first.area.mean == pytest.approx((0.2 + 0.2) / 3)
    crossing = STEP * (0.51 - 0.2) / (0.61 - 0.2)
    assert star.first.images == pytest.approx(crossing)
    assert star.first.ratio.mean == pytest.approx(crossing / (2 * STEP))
    assert math.isinf(lost.first.images) and math.isinf(lost.first.ratio.low)
    assert (flow_grpo.first, flow_grpo.uniform, flow_grpo.control) == (None, None, None)
    assert star.watch_change["preference"] == Interval(1.0, 1.0, 1.0)
    assert star.watch_change["dark"].mean == pytest.approx(0.01)
    assert star.watch_change["unnamed"].mean == -1
    found = (star.log["clip_fraction"], star.log["map_entropy"])
    assert found == pytest.approx((0.25, 0.9))
    assert flow_grpo.log["map_entropy"] is None and star.minutes == 1.5


def test_a_method_is_compared_within_its_algorithm(study):
    task = study()[0].tasks[0]
    star, awm_star = task.method("star"), task.method("awm_star")
    assert (star.uniform, star.control.name) == (star.first, "shuffled")
    assert star.control.final == Interval(*[pytest.approx(0.3)] * 3)
    assert (awm_star.uniform.name, awm_star.control) == ("awm", None)
    assert awm_star.uniform.final.mean == pytest.approx(0.2)
    crossing = STEP * (0.61 - 0.2) / (0.71 - 0.2)  # to the level of awm, not of flow_grpo
    assert awm_star.uniform.images == pytest.approx(crossing)
    assert awm_star.first.images == pytest.approx(STEP * (0.51 - 0.2) / (0.71 - 0.2))
    assert task.method("shuffled").control is None


def changing(method, **curves):
    """A method's other curve on each of some tasks."""
    return lambda run: curves.get(run.task, usual(run)) if run.method == method else usual(run)


def test_aim_1_asks_the_forward_method_without_maps_and_the_best_one(study):
    found, text, _ = study()
    assert [aim.method for aim in found.forward] == ["awm", "awm_star"]
    awm = STEP * (1 + (0.51 - 0.51) / 0.1)  # flow_grpo's level at the first look
    assert found.forward[0].tasks["ocr"].images == pytest.approx(awm)
    assert [aim.met for aim in found.forward] == [True, True]
    assert "Aim 1: awm, without maps Aim met" in text
    assert "Aim 1: awm_star, the best forward-process method by final score Aim met" in text
    late = study(changing("awm_star", ocr=[0.2, 0.3, 0.9]))[0].forward
    assert [aim.met for aim in late] == [True, False]  # 0.8 of the images on one task
    assert late[1].tasks["geneval"].within(0.5) and not late[1].tasks["ocr"].within(0.5)
    best = study(changing("awm", ocr=[0.2, 0.7, 0.99], geneval=[0.2, 0.7, 0.99]))
    assert [aim.method for aim in best[0].forward] == ["awm"]
    assert "awm, without maps and the best forward-process method" in best[1]


def test_a_study_of_one_algorithm_has_no_aim_1(study):
    methods = {name: METHODS[name] for name in ("flow_grpo", "shuffled", "star")}
    found, text, _ = study(methods=methods)
    assert found.forward == () and "Aim 1:" not in text and "Aim 2: star" in text


ALIKE, APART = (0, 0.01, 0.02), (0.1, 0, -0.1)  # what seeds add: as flow_grpo's, or not


@pytest.mark.parametrize(
    ("geneval", "ocr", "seeds", "met"),
    [
        ([0.2, 0.6, 0.7], [0.2, 0.4, 0.5], ALIKE, True),  # won, and neither better nor worse
        ([0.2, 0.4, 0.5], [0.2, 0.4, 0.5], ALIKE, False),
        ([0.2, 0.6, 0.7], [0.2, 0.4, 0.45], ALIKE, False),  # won, and lost
        ([0.2, 0.6, 0.7], [0.2, 0.4, 0.45], APART, True),  # lost by the mean, zero inside
        ([0.2, 0.6, 0.35], [0.2, 0.6, 0.35], ALIKE, False),  # early, but its control ends higher
        ([0.2, 0.4, 0.5], [0.2, 0.6, 0.55], APART, False),  # early and higher, zero inside
    ],
)
def test_aim_2_is_won_on_a_task_and_lost_on_none(study, geneval, ocr, seeds, met):
    def score(run):
        (start, *later), added = (ocr, seeds) if run.task == "ocr" else (geneval, ALIKE)
        return [start, *(look + added[run.seed] for look in later)]

    found, text, out = study(lambda run: score(run) if run.method == "star" else usual(run))
    aim = found.allocation
    assert (aim.method, aim.uniform["ocr"].name, aim.met) == ("star", "flow_grpo", met)
    assert f"Aim 2: star, named beforehand {'Aim met' if met else 'Aim not met'}" in text
    summary = json.loads((out / "summary.json").read_text())["aim_2"]
    assert summary["met"] is met and summary["tasks"]["ocr"]["control"] == "shuffled"


RISING, FALLING = (0, 0.01, 0.02), (0.01, 0, -0.01)
# A method, its curve, what each seed adds to it; what the page says of images and of the control.
ANSWERS = [
    ("star", (0.2, 0.6, 0.7), RISING, "0.38×]: at most 0.70×, and so", "beats"),
    ("star", (0.2, 0.45, 0.7), (-0.12, 0, 0.12), "×, but the interval", "beats"),
    ("star", (0.2, 0.41, 0.52), RISING, "not at most 0.70×, and the", "by +0.120"),
    ("star", (0.2, 0.4, 0.5), (0.25, -0.1, -0.1), "though the", "of shuffled is"),
    ("star", (0.2, 0.3, 0.4), FALLING, "does not reach", "of shuffled is −0.010"),
    ("star", (0.2, 0.3, 0.3), RISING, "run, [> 1, > 1]", "is behind that of shuffled"),
    ("flow_grpo", (0.2, 0.2, 0.1), RISING, "no higher than base, so", "beats"),
]


@pytest.mark.parametrize(("method", "curve", "seeds", "images", "control"), ANSWERS)
def test_the_answer_says_what_is_not_settled(study, method, curve, seeds, images, control):
    def score(run):
        shifted = [curve[0], *(look + seeds[run.seed] for look in curve[1:])]
        return shifted if run.method == method else usual(run)

    text = study(score, tasks=["geneval"])[1]
    answer = text[text.index("Aim 2:") : text.index("Nothing is corrected")]
    assert images in answer and control in answer


def test_page_shows_differences_ratios_and_charts(study):
    _, text, out = study()
    page = (out / "index.html").read_text()
    assert "> 1 [> 1, > 1]" in text and "0.38× [0.38×, 0.38×]" in text
    assert "▲ +0.200 [+0.200, +0.200]" in text and "▼ −0.100 [−0.100, −0.100]" in text
    assert page.count("<svg") == 2 * 3  # methods of two algorithms, controls of one
    assert not re.search(r"\b(inf|nan|None)\b", text)


def test_tables_are_sorted_rounded_and_the_same_again(study):
    out = study()[2]
    first = {name: (out / name).read_bytes() for name in FILES}
    study(methods=dict(reversed(METHODS.items())))
    assert {name: (out / name).read_bytes() for name in FILES} == first
    summary = json.loads(first["summary.json"])
    methods = summary["tasks"]["geneval"]["methods"]
    assert methods["lost"]["against"]["flow_grpo"]["images"] is None
    assert methods["awm_star"]["against"]["control"] is None
    ocr = summary["tasks"]["ocr"]["methods"]
    assert methods["star"]["exact"]["mean"] == ocr["star"]["graded"]["mean"] == 0.71
    assert [aim["method"] for aim in summary["aim_1"]] == ["awm", "awm_star"]
    assert summary["aim_1"][0]["needs_at_most_0.5_of_the_images"]["ocr"]["by_the_mean"] is True
    tables = {name: list(csv.DictReader(first[name].decode().splitlines())) for name in FILES[1:]}
    scores, curves = tables["scores.csv"], tables["curves.csv"]
    order = [(task, method) for task in ("geneval", "ocr") for method in sorted(CURVES)]
    assert [(row["task"], row["method"]) for row in scores] == order
    found = {row["method"]: row for row in scores if row["task"] == "geneval"}
    assert found["star"]["exact"] == "0.71" and found["lost"]["ratio_to_flow_grpo"] == ""
    empty = [found["flow_grpo"][key] for key in ("uniform", "to_uniform", "to_flow_grpo_low")]
    assert empty == ["", "", ""] and found["awm_star"]["uniform"] == "awm"
    assert len(curves) == 2 * len(METHODS) * 3 * 3
    assert [curves[0][key] for key in ("rate", "images", "exact")] == ["0.001", "0", "0.2"]
    watch = {row["figure"] for row in tables["watch.csv"] if row["task"] == "ocr"}
    assert watch == {"preference", "second_reader", "edges", "dark", "diversity", "unnamed"}
