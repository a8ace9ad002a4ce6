"""The study: numbers of a task by hand, what its page concludes, and the tables beside it."""

import csv
import json
import math
import re

import pytest

from star.config.reading import load_params
from star.evaluation.statistics import Interval
from star.study.comparison import control_of, load_study
from star.study.page import write_study
from tests.helpers.pages import words_of
from tests.helpers.results import CURVES, IMAGES, METHODS, STUDY, usual, write_params
from tests.helpers.results import write_study_runs as write_runs

STEP = 2 * IMAGES  # images between looks
FILES = ("summary.json", "scores.csv", "best_rates.csv", "curves.csv", "watch.csv")


@pytest.fixture
def study(tmp_path):
    """Makes the study of some runs: its tasks' results, its page's text, its folder."""

    def make(score=usual, **changes):
        params = load_params(write_params(tmp_path, study=STUDY | changes))
        runs = write_runs(params.study, tmp_path / "runs", score)
        tasks = load_study(params.study, params.images_per_epoch, 200, params.seed, runs).tasks
        write_study(params, runs, tmp_path / "out" / "index.html")
        return tasks, words_of(tmp_path / "out" / "index.html"), tmp_path / "out"

    return make


def test_numbers_of_a_task(study):
    task = study()[0][0]
    star, lost, flow_grpo = (task.method(name) for name in ("star", "lost", "flow_grpo"))
    assert (task.base_graded, task.base_exact, task.held_out) == (pytest.approx(0.2), 0.5, 2)
    assert task.level == pytest.approx(0.51)
    half = 4.30265 * 0.01 / math.sqrt(3)
    assert (star.graded.mean, star.graded.high) == pytest.approx((0.71, 0.71 + half))
    assert star.to_flow_grpo == Interval(*[pytest.approx(0.2)] * 3)  # the seed's 0.01 cancels
    assert star.to_control == Interval(*[pytest.approx(0.3)] * 3)
    crossing = STEP * (0.51 - 0.2) / (0.61 - 0.2)
    assert (star.images, star.ratio.mean) == pytest.approx((crossing, crossing / (2 * STEP)))
    assert math.isinf(lost.images) and math.isinf(lost.ratio.low)
    assert star.area.mean == pytest.approx((0.2 + 0.61 + 0.71) / 3)
    assert star.area_to_flow_grpo.mean == pytest.approx((0.2 + 0.2) / 3)
    assert (flow_grpo.to_flow_grpo, flow_grpo.ratio) == (None, Interval(1.0, 1.0, 1.0))
    assert task.method("shuffled").to_control is None
    assert star.watch_change["preference"] == Interval(1.0, 1.0, 1.0)
    assert star.watch_change["dark"].mean == pytest.approx(0.01)
    found = (star.log["clip_fraction"], star.log["map_entropy"])
    assert found == pytest.approx((0.25, 0.9))
    assert flow_grpo.log["map_entropy"] is None and star.minutes == 1.5


def test_best_rate_compares_the_same_seeds(study):
    task = study()[0][0]
    flow_grpo, star = task.method("flow_grpo").best, task.method("star").best
    assert (flow_grpo.rate, star.rate) == (1e-3, 1.5e-3)
    assert star.means == pytest.approx({1e-3: 0.605, 1.5e-3: 0.705})  # seeds 0 and 1, not 2
    assert star.to_flow_grpo.mean == pytest.approx(0.705 - 0.605) and flow_grpo.to_flow_grpo is None


def test_control_is_the_method_itself_with_shuffled_maps(study):
    methods = {"flow_grpo": {"source": "uniform"}, "shuffled": {"source": "shuffled"}, "star": {}}
    methods["joint"] = {"temporal": "joint"}
    methods["joint_shuffled"] = {"temporal": "joint", "source": "shuffled"}
    wanted = {"star": "shuffled", "joint": "joint_shuffled", "joint_shuffled": "joint_shuffled"}
    assert {name: control_of(methods, name) for name in wanted} == wanted
    assert control_of(methods, "flow_grpo") == "shuffled"
    assert control_of({**methods, "other": {"lam": 1.0}}, "other") == "shuffled"
    tasks, text, _ = study(methods=methods, aim="joint", seeds=2, rate_seeds=1)
    assert tasks[0].answer.control == "joint_shuffled"
    assert tasks[0].method("joint_shuffled").to_control is None
    assert tasks[0].answer.to_control.mean == pytest.approx(0.0)
    assert "minus that of joint_shuffled is +0.000" in text


RISING, FALLING = (0, 0.01, 0.02), (0.01, 0, -0.01)
# A method, its curve, what each seed adds to it; what the page says of images and of the control.
ANSWERS = [
    ("star", (0.2, 0.6, 0.7), RISING, "Aim met ", "0.38×]: at most 0.70×, and so", "beats"),
    ("star", (0.2, 0.45, 0.7), (-0.12, 0, 0.12), "not settled by", "×, but the interval", "beats"),
    ("star", (0.2, 0.41, 0.52), RISING, "not met", "not at most 0.70×, and the", "by +0.120"),
    ("star", (0.2, 0.4, 0.5), (0.25, -0.1, -0.1), "not met", "though the", "of shuffled is"),
    ("star", (0.2, 0.3, 0.4), FALLING, "not met", "does not reach", "of shuffled is −0.010"),
    ("star", (0.2, 0.3, 0.3), RISING, "not met", "run, [> 1, > 1]", "is behind that of shuffled"),
    ("flow_grpo", (0.2, 0.2, 0.1), RISING, "not met", "no higher than base, so", "beats"),
]


@pytest.mark.parametrize(("method", "curve", "seeds", "state", "images", "control"), ANSWERS)
def test_the_answer_says_whether_the_aim_is_met_and_what_is_not_settled(
    study, method, curve, seeds, state, images, control
):
    def score(run):
        shifted = [curve[0], *(look + seeds[run.seed] for look in curve[1:])]
        return shifted if run.method == method else usual(run)

    tasks, text, _ = study(score, tasks=["geneval"])
    assert tasks[0].answer.met == (state != "not met")
    assert state in text and images in text and control in text


def test_page_shows_differences_ratios_and_charts(study):
    _, text, out = study()
    page = (out / "index.html").read_text()
    assert "not reached > 1 [> 1, > 1]" in text and text.count("Aim met") == 2
    assert "▲ +0.200 [+0.200, +0.200]" in text and "▼ −0.100 [−0.100, −0.100]" in text
    assert page.count("<svg") == 2 * (len(METHODS) - 2)
    assert not re.search(r"\b(inf|nan)\b", text)


def test_one_seed_a_rate_and_no_other_rate(study):
    text = study(rate_seeds=1)[1]
    assert "One seed gives no interval" in text and not re.search(r"\b(inf|nan)\b", text)
    assert "own best rate" not in study(other_rates=[])[1]


def test_tables_are_sorted_rounded_and_the_same_again(study):
    out = study()[2]
    first = {name: (out / name).read_bytes() for name in FILES}
    study(methods={name: {} for name in reversed(METHODS)})
    assert {name: (out / name).read_bytes() for name in FILES} == first
    summary = json.loads(first["summary.json"])
    assert summary["geneval"]["methods"]["lost"]["images_to_flow_grpo_final"] is None
    assert summary["geneval"]["methods"]["star"]["graded"]["mean"] == 0.71
    assert summary["ocr"]["answer"]["met"] is True
    tables = {name: list(csv.DictReader(first[name].decode().splitlines())) for name in FILES[1:]}
    scores, curves = tables["scores.csv"], tables["curves.csv"]
    order = [(task, method) for task in ("geneval", "ocr") for method in sorted(CURVES)]
    assert [(row["task"], row["method"]) for row in scores] == order
    assert (scores[1]["images_ratio_high"], scores[0]["to_flow_grpo_low"]) == ("", "")
    assert scores[3]["graded"] == "0.71" and len(curves) == 2 * len(METHODS) * (3 + 2) * 3
    assert [curves[0][key] for key in ("rate", "images", "graded")] == ["0.001", "0", "0.2"]
    rates = [row for row in tables["best_rates.csv"] if row["method"] == "star"]
    assert [(row["rate"], row["best"]) for row in rates] == [("0.001", "0"), ("0.0015", "1")] * 2
    watch = {row["figure"] for row in tables["watch.csv"] if row["task"] == "ocr"}
    assert watch == {"preference", "second_reader", "edges", "dark", "diversity"}
