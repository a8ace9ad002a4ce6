"""The study's page: closed forms of its intervals and crossings, what it concludes, and what it
refuses."""

import csv
import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from star.cli import main
from star.config.params import Params, StudyParams, StudyRun, load_params
from star.evaluation.statistics import Interval
from star.study.comparison import TaskResult, control_of, load_study
from star.study.intervals import crossing_ratio, first_crossing, t_interval, t_quantile
from star.study.page import answer, times, write_study
from star.system.errors import StarError
from tests.helpers.pages import EVIL, Outline

ROOT = Path(__file__).parents[2]
FILES = ("summary.json", "scores.csv", "best_rates.csv", "curves.csv", "watch.csv")
IMAGES = 128  # an epoch of params.yaml
STEP = 2 * IMAGES  # images between looks
METHODS = ("flow_grpo", "shuffled", "star", "lost")

# Graded score at the looks, epochs 0, 2 and 4; a run adds 0.01 x seed to those after the first.
CURVES = {
    "flow_grpo": (0.2, 0.4, 0.5),
    "shuffled": (0.2, 0.35, 0.4),
    "star": (0.2, 0.6, 0.7),
    "lost": (0.2, 0.25, 0.3),
}


def make_params(**changes: object) -> Params:
    params = load_params(ROOT / "params.yaml")
    study = StudyParams(
        tasks=["geneval", "ocr"],
        aim="star",
        seeds=3,
        epochs=4,
        evaluate_every=2,
        learning_rate=1.5e-3,
        other_rates=[1e-3],
        rate_seeds=2,
        second_reader="template",
        methods={name: {} for name in METHODS},
    )
    evaluate = dataclasses.replace(params.evaluate, bootstrap=200)
    return dataclasses.replace(
        params, evaluate=evaluate, study=dataclasses.replace(study, **changes)
    )


def usual(run: StudyRun) -> list[float]:
    """At the slower rate flow_grpo gains 0.1 and all others lose 0.1 at the end."""
    curve = CURVES.get(run.method, CURVES["star"])
    slower = (0.1 if run.method == "flow_grpo" else -0.1) if run.rate == 1e-3 else 0.0
    return [curve[0], curve[1] + 0.01 * run.seed, curve[2] + 0.01 * run.seed + slower]


def write_runs(
    params: Params, folder: Path, score: Callable[[StudyRun], list[float]] = usual
) -> Path:
    """Run files of two held-out images whose mean is the given score at each look."""
    folder.mkdir(exist_ok=True)
    for run in params.study.runs():
        points: list[dict] = []
        for epoch, value in zip((0, 2, 4), score(run), strict=True):
            point = {
                "epoch": epoch,
                "images": epoch * IMAGES,
                "graded": [value - 0.1, value + 0.1],
                "exact": [0.0, 1.0],
            }
            points.append(point)
        for end, point in ((0, points[0]), (1, points[-1])):
            point["watch"] = {
                "preference": 20.0 + end,
                "edges": 0.1,
                "dark": 0.3 + 0.01 * run.seed * end,
            }
            point["watch"] |= {"diversity": 30.0 - 2 * end} | (
                {"second_reader": 0.5} if run.task == "ocr" else {}
            )
        maps = [None] * 4 if run.method == "flow_grpo" else [0.8, 0.9, 0.9, 1.0]
        log = {
            "reward_mean": [0.5] * 4,
            "clip_fraction": [0.1, 0.2, 0.3, 0.4],
            "grad_norm": [0.25] * 4,
        }
        file = {
            **{
                "task": run.task,
                "method": run.method,
                "seed": run.seed,
                "learning_rate": run.rate,
                "curve": points,
            },
            **{"log": {**log, "ratio_max": [1.01] * 4, "map_entropy": maps}, "seconds": 90.0},
        }
        (folder / f"{run.name}.json").write_text(json.dumps(file))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return write_runs(make_params(), tmp_path / "runs")


def written(params: Params, runs: Path) -> str:
    write_study(params, runs, runs.parent / "out" / "index.html")
    return re.sub(
        r"\s+", " ", Outline((runs.parent / "out" / "index.html").read_text(encoding="utf-8")).text
    )


def compared(
    tmp_path: Path, score: Callable[[StudyRun], list[float]], **changes: object
) -> TaskResult:
    params = make_params(tasks=["geneval"], **changes)
    return load_study(params, write_runs(params, tmp_path / "other", score)).tasks[0]


def test_t_interval_in_closed_form() -> None:
    found = t_interval(
        np.array([1.0, 2.0, 3.0])
    )  # standard error 1 / sqrt(3); t of 2 degrees of freedom is 4.3027
    assert found.mean == 2.0
    assert found.high - 2 == pytest.approx(4.30265 / math.sqrt(3), abs=1e-5)
    assert found.low - 2 == pytest.approx(-4.30265 / math.sqrt(3), abs=1e-5)
    assert t_quantile(5) == pytest.approx(2.77645, abs=1e-5)
    assert t_interval(np.array([0.5, 0.5])) == Interval(0.5, 0.5, 0.5)
    alone = t_interval(np.array([0.5]))
    assert alone == Interval(0.5, -math.inf, math.inf) and not alone.excludes_zero


def test_first_crossing_is_linear_between_looks_and_the_first_counts() -> None:
    curves = np.array(
        [[0.0, 1.0, 0.0, 2.0], [0.0, 0.1, 0.2, 0.4], [0.9, 0.0, 0.0, 1.0], [0.0, 0.5, 0.5, 0.5]]
    )
    found = first_crossing(
        curves, np.array([0.0, 10.0, 20.0, 40.0]), np.array([0.25, 0.3, 0.9, 0.5])
    )
    np.testing.assert_allclose(found, [2.5, 30.0, 0.0, 10.0])
    assert first_crossing(
        np.array([[0.0, 0.4]]), np.array([0.0, 10.0]), np.array([0.5])
    ).tolist() == [math.inf]


def test_crossing_ratio_and_its_bootstrap_of_equal_seeds() -> None:
    images = np.array([0.0, 100.0, 200.0])
    ours, theirs = np.tile([0.0, 0.5, 0.9], (3, 1)), np.tile([0.0, 0.25, 0.5], (3, 1))
    assert crossing_ratio(ours, theirs, images, 100, 0) == (100.0, Interval(0.5, 0.5, 0.5))
    assert crossing_ratio(theirs, theirs, images, 100, 0) == (200.0, Interval(1.0, 1.0, 1.0))
    never, ratio = crossing_ratio(theirs, ours, images, 100, 0)
    assert math.isinf(never) and ratio == Interval(math.inf, math.inf, math.inf)
    falling = theirs[:, ::-1]
    assert crossing_ratio(ours + 0.5, falling, images, 100, 0)[1] == Interval(1.0, 1.0, 1.0)


def test_bootstrap_pairs_seeds_and_ends_at_infinity_where_the_level_is_missed() -> None:
    images, shift = np.array([0.0, 100.0, 200.0]), np.array([[0.0], [0.1], [0.2]])
    theirs = np.array([0.0, 0.25, 0.5]) + shift * [0, 0, 1]
    steep = np.array([0.0, 0.5, 1.0]) + shift * [
        0,
        1,
        1,
    ]  # crosses at a level / (0.5 + the same shift) x 100
    _, paired = crossing_ratio(steep, theirs, images, 500, 0)
    assert paired == Interval(*[pytest.approx(0.5)] * 3)  # the shift of a seed cancels
    _, ratio = crossing_ratio(np.tile([0.0, 0.3, 0.6], (3, 1)), theirs, images, 500, 0)
    assert ratio.mean == pytest.approx(1.0) and math.isinf(ratio.high) and 0.8 < ratio.low < 0.9


def test_numbers_of_a_task(runs: Path) -> None:
    task = load_study(make_params(), runs).tasks[0]
    star, lost = task.method("star"), task.method("lost")
    assert (task.base_graded, task.base_exact, task.held_out) == (pytest.approx(0.2), 0.5, 2)
    assert task.level == pytest.approx(0.51)
    half = 4.30265 * 0.01 / math.sqrt(3)
    assert (star.graded.mean, star.graded.high) == (pytest.approx(0.71), pytest.approx(0.71 + half))
    assert star.to_flow_grpo == Interval(
        *[pytest.approx(0.2)] * 3
    )  # the seed's 0.01 cancels in the pair
    assert star.to_control == Interval(*[pytest.approx(0.3)] * 3)
    crossing = STEP * (0.51 - 0.2) / (0.61 - 0.2)
    assert star.images == pytest.approx(crossing)
    assert star.ratio.mean == pytest.approx(crossing / (2 * STEP))
    assert math.isinf(lost.images) and math.isinf(lost.ratio.low)
    assert star.area.mean == pytest.approx((0.2 + 0.61 + 0.71) / 3)
    assert star.area_to_flow_grpo.mean == pytest.approx((0.2 + 0.2) / 3)
    flow_grpo = task.method("flow_grpo")
    assert (flow_grpo.to_flow_grpo, flow_grpo.ratio) == (None, Interval(1.0, 1.0, 1.0))
    assert task.method("shuffled").to_control is None
    assert star.watch_change["preference"] == Interval(1.0, 1.0, 1.0)
    assert star.watch_change["dark"].mean == pytest.approx(0.01)
    assert star.log["clip_fraction"] == pytest.approx(0.25) and star.log[
        "map_entropy"
    ] == pytest.approx(0.9)
    assert flow_grpo.log["map_entropy"] is None and star.minutes == 1.5


def test_control_is_the_method_itself_with_shuffled_maps(tmp_path: Path) -> None:
    methods: dict[str, dict] = {
        "flow_grpo": {"source": "uniform"},
        "shuffled": {"source": "shuffled"},
        "star": {},
    }
    methods |= {
        "joint": {"temporal": "joint"},
        "joint_shuffled": {"temporal": "joint", "source": "shuffled"},
    }
    wanted = {"star": "shuffled", "joint": "joint_shuffled", "joint_shuffled": "joint_shuffled"}
    assert {name: control_of(methods, name) for name in wanted} == wanted
    assert (
        control_of(methods, "flow_grpo")
        == control_of({**methods, "other": {"lam": 1.0}}, "other")
        == "shuffled"
    )
    task = compared(tmp_path, usual, methods=methods, aim="joint", seeds=2, rate_seeds=1)
    assert (
        task.answer.control == "joint_shuffled" and task.method("joint_shuffled").to_control is None
    )
    assert task.answer.to_control.mean == pytest.approx(0.0)


def test_best_rate_compares_the_same_seeds(runs: Path) -> None:
    task = load_study(make_params(), runs).tasks[0]
    flow_grpo, star = task.method("flow_grpo").best, task.method("star").best
    assert (flow_grpo.rate, star.rate) == (1e-3, 1.5e-3)
    assert star.means == {
        1e-3: pytest.approx(0.605),
        1.5e-3: pytest.approx(0.705),
    }  # seeds 0 and 1, not 2
    assert star.to_flow_grpo.mean == pytest.approx(0.705 - 0.605) and flow_grpo.to_flow_grpo is None


def test_answer_that_meets_the_aim(runs: Path) -> None:
    task = load_study(make_params(), runs).tasks[0]
    images, control = answer(task)
    assert task.answer.met and task.answer.fewer_images_settled
    assert re.fullmatch(
        r"star reaches the final score of flow_grpo with 0\.38× its images \[0\.3\d×, 0\.3\d×\]: at most 0\.70×, "
        r"and so says the whole interval\.",
        images,
    )
    assert control == (
        "Its final score beats that of shuffled, by +0.300 [+0.300, +0.300]: the interval excludes zero."
    )


def spread(run: StudyRun) -> list[float]:
    """`usual`, but star gains much from one seed and little from the others."""
    return (
        [0.2, 0.3, 0.42 + (0.5 if run.seed == 2 else 0.0)] if run.method == "star" else usual(run)
    )


@pytest.mark.parametrize(
    ("star", "images", "control"),
    [
        (
            (0.2, 0.3, 0.4),
            "does not reach the final score of flow_grpo within the run, [> 1, > 1]: not at most",
            "≈",
        ),
        ((0.2, 0.41, 0.52), "not at most 0.70×, and the interval excludes it.", "beats"),
        ((0.2, 0.3, 0.3), "does not reach", "is behind that of shuffled, by −0.100"),
    ],
)
def test_answer_that_misses_the_aim(
    tmp_path: Path, star: tuple[float, ...], images: str, control: str
) -> None:
    def score(run: StudyRun) -> list[float]:
        wobble = 0.01 * (run.seed if star[2] != 0.4 else 1 - run.seed)
        return [star[0], star[1] + wobble, star[2] + wobble] if run.method == "star" else usual(run)

    task = compared(tmp_path, score)
    first, second = answer(task)
    assert images in first and not task.answer.met
    if control == "≈":
        assert "the interval contains zero, so these seeds do not show that it is better" in second
    else:
        assert control in second


def test_answer_that_the_seeds_do_not_settle(tmp_path: Path) -> None:
    task = compared(tmp_path, spread)
    assert not task.answer.beats_control and task.answer.to_control.mean > 0
    assert not task.answer.fewer_images and math.isinf(task.answer.ratio.high)
    first, _ = answer(task)
    assert "[0." in first and "> 1]" in first


def test_reference_that_learned_nothing_gives_no_ratio(tmp_path: Path) -> None:
    task = compared(
        tmp_path, lambda run: [0.2, 0.2, 0.1] if run.method == "flow_grpo" else usual(run)
    )
    assert (
        not task.answer.level_above_base
        and not task.answer.met
        and not task.answer.fewer_images_settled
    )
    assert "the images that star needs to reach it say nothing" in next(answer(task))


def test_page_is_one_document_that_loads_nothing_and_links_its_tables(runs: Path) -> None:
    text = written(make_params(), runs)
    page = (runs.parent / "out" / "index.html").read_text(encoding="utf-8")
    outline = Outline(page)
    assert not {"script", "link", "img"} & set(outline.tags)
    assert {a for a in outline.addresses if not a.startswith("#")} == set(FILES)
    assert all(f'id="{a[1:]}"' in page for a in outline.addresses if a.startswith("#"))
    assert re.findall(r"url\(|@import|https?://", page) == [] and "default-src 'none'" in page
    assert "not reached > 1 [> 1, > 1]" in text and "0.38×" in text
    assert text.count("Aim met") == 2 and "Nothing is corrected for multiple comparisons" in text
    assert "▲ +0.200 [+0.200, +0.200]" in text and "▼ −0.100 [−0.100, −0.100]" in text
    assert len(re.findall("<svg", page)) == 2 * (len(METHODS) - 2)


def test_one_seed_a_rate_and_no_other_rate(tmp_path: Path) -> None:
    params = make_params(rate_seeds=1)
    text = written(params, write_runs(params, tmp_path / "runs"))
    assert "One seed gives no interval" in text and not re.search(r"\b(inf|nan)\b", text)
    params = make_params(other_rates=[])
    text = written(params, write_runs(params, tmp_path / "runs"))
    assert "own best rate" not in text


@pytest.mark.parametrize(
    ("reader", "name"), [("template", "a template reader"), ("ppocrv6", "PP-OCRv6")]
)
def test_page_names_the_second_reader(reader: str, name: str, runs: Path) -> None:
    assert f"Second reader OCR reward by {name}" in written(make_params(second_reader=reader), runs)


def test_tables_are_sorted_rounded_and_the_same_again(runs: Path) -> None:
    written(make_params(), runs)
    folder = runs.parent / "out"
    first = {name: (folder / name).read_bytes() for name in FILES}
    written(make_params(methods={name: {} for name in reversed(METHODS)}), runs)
    again = {name: (folder / name).read_bytes() for name in FILES}
    assert first == again
    summary = json.loads(first["summary.json"])
    assert summary["geneval"]["methods"]["lost"]["images_to_flow_grpo_final"] is None
    assert summary["geneval"]["methods"]["star"]["graded"]["mean"] == 0.71
    assert summary["ocr"]["answer"]["met"] is True
    scores = list(csv.DictReader(first["scores.csv"].decode().splitlines()))
    assert [(row["task"], row["method"]) for row in scores] == [
        (task, method) for task in ("geneval", "ocr") for method in sorted(METHODS)
    ]
    assert (scores[1]["images_ratio_high"], scores[0]["to_flow_grpo_low"]) == ("", "")
    assert scores[3]["graded"] == "0.71"
    curves = list(csv.DictReader(first["curves.csv"].decode().splitlines()))
    assert len(curves) == 2 * len(METHODS) * (3 + 2) * 3
    assert (curves[0]["rate"], curves[0]["images"], curves[0]["graded"]) == ("0.001", "0", "0.2")
    watch = {
        row["figure"]
        for row in csv.DictReader(first["watch.csv"].decode().splitlines())
        if row["task"] == "ocr"
    }
    assert watch == {"preference", "second_reader", "edges", "dark", "diversity"}


def test_every_text_is_escaped(tmp_path: Path) -> None:
    params = make_params()
    name = EVIL.replace("/", "")
    methods = {**params.study.methods, name: {"source": EVIL}}
    study = dataclasses.replace(params.study, methods=methods, aim=name)
    params = dataclasses.replace(
        params, study=study, report=dataclasses.replace(params.report, title=EVIL)
    )
    write_study(params, write_runs(params, tmp_path / "runs"), tmp_path / "index.html")
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<script" not in page and "<b>" not in page and page.count("&lt;script&gt;") > 20
    assert EVIL in Outline(page).text


def test_missing_run_is_named_with_its_command_and_nothing_is_written(runs: Path) -> None:
    (runs / "ocr-star-1-0.001.json").unlink()
    (runs / "ocr-lost-2-0.0015.json").unlink()
    with pytest.raises(
        StarError, match=r"ocr-star-1-0\.001\.json: missing, as are 1 more of 40 runs.*snakemake"
    ):
        written(make_params(), runs)
    assert not (runs.parent / "out").exists()


def changed(runs: Path, change: Callable[[dict], object]) -> None:
    path = runs / "geneval-star-1-0.0015.json"
    file = json.loads(path.read_text())
    change(file)
    path.write_text(json.dumps(file))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop("curve"), "curve is missing"),
        (lambda f: f.update(seed=2), "seed is 2, not 1"),
        (lambda f: f.update(learning_rate=1e-3), "learning_rate is 0.001, not 0.0015"),
        (lambda f: f["curve"].pop(), "curve: not the epochs 0, 2, 4"),
        (lambda f: f["curve"][1].update(images=7), r"curve\[1\].images is 7, not 2 epochs x 128"),
        (lambda f: f["curve"][1].pop("graded"), r"curve\[1\].graded is missing"),
        (lambda f: f["curve"][1].update(exact=[]), r"curve\[1\].exact is not a list"),
        (
            lambda f: f["curve"][1]["graded"].append(math.nan),
            r"curve\[1\].graded\[2\] is nan, not a finite number",
        ),
        (
            lambda f: f["curve"][1]["exact"].append(1.0),
            "curve: looks at different numbers of images",
        ),
        (lambda f: f["curve"][2].pop("watch"), r"curve\[2\].watch is missing"),
        (
            lambda f: f["curve"][0]["watch"].update(edges="many"),
            r"curve\[0\].watch.edges is 'many'",
        ),
        (lambda f: f["log"].pop("grad_norm"), "log.grad_norm is missing"),
        (lambda f: f["log"].update(ratio_max=1), "log.ratio_max is not a list"),
        (lambda f: f.update(seconds=None), "seconds is None"),
    ],
)
def test_malformed_run_is_named_with_its_key(
    runs: Path, change: Callable[[dict], object], message: str
) -> None:
    changed(runs, change)
    with pytest.raises(StarError, match=rf"geneval-star-1-0\.0015\.json: {message}"):
        load_study(make_params(), runs)


def test_runs_of_other_held_out_prompts_are_refused(runs: Path) -> None:
    changed(runs, lambda f: [point.update(graded=[0.5], exact=[1.0]) for point in f["curve"]])
    with pytest.raises(
        StarError,
        match=r"geneval-star-1-0\.0015\.json: curve: 1 held-out images, but 2 in .*flow_grpo",
    ):
        load_study(make_params(), runs)


def test_broken_file_is_one_line_on_the_command_line(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["study-report", "--runs", str(runs), "--output", str(runs / "index.html")]
    assert main([*arguments, "--params", str(ROOT / "tests/smoke/params.yaml")]) == 1
    assert "ocr-flow_grpo-0-0.001.json: " in capsys.readouterr().err
    (runs / "geneval-flow_grpo-0-0.0015.json").write_text("{")
    with pytest.raises(StarError, match=r"geneval-flow_grpo-0-0\.0015\.json: "):
        load_study(make_params(), runs)


def test_times() -> None:
    assert (times(0.7), times(math.inf)) == ("0.70×", "> 1")
