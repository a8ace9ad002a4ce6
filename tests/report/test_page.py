"""The report: closed forms of its charts, what the page says of a small run, and what it
refuses."""

import csv
import dataclasses
import io
import json
import math
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from star.config.params import Params, load_params
from star.evaluation.statistics import Interval
from star.prompts.geneval import TAGS
from star.report import write_report
from star.report.comparison import METRICS, compare, tag_scores
from star.report.figures import running_mean
from star.report.images import MAP_STEPS, choose_maps, choose_pairs, data_uri
from star.report.page import QUALITY_LABELS
from star.report.provenance import git_commit, package_versions
from star.report.run import MapRow, Training, load_run
from star.report.svg import (
    Bar,
    Line,
    Segment,
    bar_chart,
    color_class,
    line_chart,
    stacked_bars,
    tick_labels,
    ticks,
)
from star.system.errors import StarError
from tests.helpers.pages import EVIL, Outline, decoded

ROOT = Path(__file__).parents[2]
RUNS = {"geneval": ["star", "flow_grpo"], "ocr": ["star"], "preference": ["star"]}


def make_params(**changes) -> Params:
    params = load_params(ROOT / "params.yaml")
    evaluate = dataclasses.replace(params.evaluate, bootstrap=100)
    return dataclasses.replace(params, **{"runs": RUNS, "evaluate": evaluate, **changes})


def make_images(tasks: dict[str, float], prompt: str) -> list[dict]:
    """Two GenEval prompts a tag, four prompts of each other task; every score of a task is the
    given level."""
    lines = []
    for task, level in tasks.items():
        for k in range(12 if task == "geneval" else 4):
            detail = {"score": level}
            if task == "geneval":
                detail = {"tag": TAGS[k // 2], "strict": level > 0.5, "soft": level}
            if task == "ocr":
                detail = {"target": "AB", "read": "A", "exact": level > 0.5, "score": level}
            line = {
                "id": f"{task}-{k}",
                "task": task,
                "index": 0,
                "seed": 40 + k,
                "prompt": f"{prompt} {task} {k}",
            }
            reward = level / 26 if task == "preference" else level  # as the reward is scaled
            lines.append(
                {**line, "score": reward, "detail": detail, "image": f"images/{task}-{k}.png"}
            )
    return lines


def write_checkpoint(
    results: Path, name: str, levels: dict[str, float], prompt: str = "a photo of a cat"
) -> None:
    folder = results / "evaluate" / name
    (folder / "images").mkdir(parents=True)
    lines = make_images(levels, prompt)
    for line in lines:
        Image.new("RGB", (8, 8), (len(name), 90, 90)).save(folder / line["image"])
    benchmarks: dict = {}
    for metric in METRICS:
        if metric.task in levels:
            level = (
                float(levels[metric.task] > 0.5)
                if metric.key in ("strict", "exact")
                else levels[metric.task]
            )
            values = {"mean": level, "low": level - 0.1234567, "high": level + 0.1}
            benchmarks.setdefault(metric.task, {})[metric.key] = values
    figure = {"mean": 0.125, "low": 0.1, "high": 0.15}
    quality = {task: dict.fromkeys(QUALITY_LABELS, figure) for task in levels}
    quality["ocr"] |= {"second_reader": {"mean": 0.625, "low": 0.5, "high": 0.75}}
    scores = {
        "checkpoint": name,
        "benchmarks": benchmarks,
        "quality": quality,
        "seconds": {"sample": 2.5},
    }
    scores["params_fingerprint"] = "0f0f"
    (folder / "scores.json").write_text(json.dumps(scores))
    (folder / "images.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_training(results: Path, name: str, epochs: int = 12) -> None:
    folder = results / "train" / name
    (folder / "maps").mkdir(parents=True)
    with open(folder / "log.jsonl", "w") as file:
        for epoch in range(1, epochs + 1):
            ratio = {"ratio_mean": 1.0, "ratio_min": 0.9, "ratio_max": 1.1}
            row = {
                "epoch": epoch,
                "images": 128 * epoch,
                "reward_mean": 0.1 * epoch,
                "kl": None,
                "clip_fraction": 0.2,
            }
            file.write(
                json.dumps({**row, **ratio, "seconds": {"rollout": 1.0, "update": 2.0}}) + "\n"
            )
    for image in ("final.png", "step_1.png"):
        Image.new("RGB", (8, 8)).save(folder / "maps" / image)
    row = {"epoch": 10, "prompt": EVIL, "reward": 0.5}
    row |= {"steps": [1], "final": "final.png", "maps": ["step_1.png"]}
    (folder / "maps" / "maps.json").write_text(json.dumps([row]))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A run of two methods on GenEval and one on the others; its prompts carry a script tag."""
    folder, base = tmp_path / "results", {"geneval": 0.25, "ocr": 0.5, "preference": 18.0}
    write_checkpoint(folder, "base", base, EVIL)
    for task, methods in RUNS.items():
        for method in methods:
            gained = {**base, task: base[task] + (0.5 if method == "star" else 0.375)}
            write_checkpoint(folder, f"{task}-{method}", gained, EVIL)
            write_training(folder, f"{task}-{method}")
    return folder


def report(results: Path, params: Params | None = None) -> str:
    output = results.parent / "index.html"
    write_report(params or make_params(), ROOT / "params.yaml", results, output)
    return output.read_text(encoding="utf-8")


def test_page_is_one_balanced_document_that_loads_nothing(results):
    page = report(results)
    outline = Outline(page)
    assert "script" not in outline.tags and "link" not in outline.tags
    loaded = [
        address for address in outline.addresses if address != "workflow.html"
    ]  # a link beside the page
    assert loaded and all(address.startswith("data:image/") for address in loaded)
    assert re.findall(r"url\(|@import|https?://", page) == []
    assert "default-src 'none'" in page


def test_every_text_is_escaped(results):
    params = make_params()
    methods = {**params.methods, EVIL: params.methods["star"]}
    title = dataclasses.replace(params.report, title=EVIL)
    runs = {**RUNS, "ocr": ["star", EVIL.replace("/", "")]}
    methods[EVIL.replace("/", "")] = methods.pop(EVIL)
    shutil.copytree(
        results / "evaluate" / "ocr-star", results / "evaluate" / f"ocr-{runs['ocr'][1]}"
    )
    shutil.copytree(results / "train" / "ocr-star", results / "train" / f"ocr-{runs['ocr'][1]}")
    page = report(results, dataclasses.replace(params, runs=runs, methods=methods, report=title))
    assert "<script" not in page and "<b>" not in page
    assert page.count("&lt;script&gt;") > 20
    assert EVIL in Outline(page).text


def test_no_script_of_a_prompt_runs_in_a_browser(results, chromium, tmp_path):
    def opened(name: str, page: str) -> str:
        """The page's document after its scripts."""
        (tmp_path / name).write_text(page, encoding="utf-8")
        options = (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
        )
        command = [chromium, *options, "--dump-dom", (tmp_path / name).as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout

    page = report(results)
    assert "data-ran" in opened("bare.html", f"<p>{EVIL}</p>")  # the browser does run scripts
    shown = opened("page.html", page)
    assert "data-ran" not in shown and "&lt;script&gt;" in shown and "</html>" in shown
    unescaped = (
        page.replace("&lt;script&gt;", "<script>")
        .replace("&lt;/script&gt;", "</script>")
        .replace("&#34;", '"')
    )
    assert "<script>document" in unescaped and "data-ran" not in opened(
        "unescaped.html", unescaped
    )  # the policy's part


def test_table_shows_means_paired_differences_and_their_marks(results):
    text = re.sub(r"\s+", " ", Outline(report(results)).text)
    assert (
        "1.000 [0.877, 1.100] ▲ +1.000 [+1.000, +1.000]" in text
    )  # GenEval strict, every image became right
    assert "18.50 [18.38, 18.60] ▲ +0.500 [+0.500, +0.500]" in text
    assert "≈ +0.000 [+0.000, +0.000]" in text
    assert (
        "No clear winner: star minus flow_grpo is +0.000 [+0.000, +0.000]" in text
    )  # strict: both all right


@pytest.mark.parametrize(
    ("reader", "name"),
    [("ppocrv6", "by PP-OCRv6"), ("template", "by a template reader"), ("none", None)],
)
def test_the_second_reader_has_a_column_that_only_ocr_prompts_fill(results, reader, name):
    params = make_params()
    evaluate = dataclasses.replace(params.evaluate, second_reader=reader)
    text = re.sub(
        r"\s+", " ", Outline(report(results, dataclasses.replace(params, evaluate=evaluate))).text
    )
    assert text.count("0.625 [0.500, 0.750]") == (2 if name else 0)  # base and star
    assert (f"Second reader OCR reward {name}" in text) if name else ("econd reader" not in text)
    assert text.count("0.125 [0.100, 0.150] –") == (
        5 if name else 0
    )  # the rows of the other prompts


def test_published_row_and_the_stand_in_are_marked_as_what_they_are(results):
    text = re.sub(r"\s+", " ", Outline(report(results)).text)
    assert (
        "STAR on SD3.5-M published, not comparable 0.9759 – 0.9757 – PickScore 23.60 (another scale)"
        in text
    )
    assert "Synthetic preference stand-in" in text
    assert text.count("PickScore") == 2  # the published figure and the note under the table


def test_with_a_preset_s_rewards_the_page_speaks_of_pickscore_and_not_of_the_miniature(results):
    params, preset = make_params(), load_params(Path("presets/sd35m-8gpu-preference.yaml"))
    text = Outline(
        report(results, dataclasses.replace(params, model=preset.model, rewards=preset.rewards))
    ).text
    text = re.sub(r"\s+", " ", text)
    for wrong in (
        "stand-in",
        "another and much larger model",
        "real PickScore",
        "not comparable",
        "another scale",
    ):
        assert wrong not in text, wrong
    assert "PickScore logit of PickScore" in text and "trained on PickScore" in text
    assert "is of this model, by a training, prompts and code of its own" in text
    assert (
        "facebook/mask2former-swin-small-coco-instance, which is not GenEval's own code"
        in text.replace("’", "'")
    )
    rewards = dataclasses.replace(
        preset.rewards,
        preference=dataclasses.replace(preset.rewards.preference, path="others/judge"),
    )
    text = re.sub(
        r"\s+", " ", Outline(report(results, dataclasses.replace(params, rewards=rewards))).text
    )
    assert (
        "Preference by others/judge" in text and "by others/judge, which is not PickScore" in text
    )
    assert "is of SD3.5-M and not of models/miniature" in text


def test_comparison_in_closed_form(results):
    run = load_run(make_params(), results)
    comparison = compare(run, resamples=50, seed=0)
    strict, soft = comparison.cells["geneval-flow_grpo"][:2]
    assert strict.difference == Interval(1.0, 1.0, 1.0) and soft.difference == Interval(
        0.375, 0.375, 0.375
    )
    assert (
        strict.trained_on
        and strict.best
        and not soft.best
        and not comparison.cells["ocr-star"][0].trained_on
    )
    assert all(cell.difference is None for cell in comparison.cells["base"])
    ocr = next(verdict for verdict in comparison.verdicts if verdict.metric.task == "ocr")
    assert [c.method for c in ocr.contenders] == ["star"] and ocr.lead is None
    assert list(tag_scores(run.base, METRICS[1], 10, 0)) == list(TAGS)


def test_best_method_comes_first_and_its_lead_is_paired(results):
    params = make_params(runs={"preference": ["flow_grpo", "star"]})
    write_checkpoint(
        results, "preference-flow_grpo", {"geneval": 0.25, "ocr": 0.5, "preference": 18.25}, EVIL
    )
    verdict = compare(load_run(params, results), 50, 0).verdicts[0]
    assert [c.method for c in verdict.contenders] == ["star", "flow_grpo"]
    assert verdict.lead == Interval(0.25, 0.25, 0.25)


def test_page_names_what_a_image_scored_and_which_steps_were_trained(results):
    text = re.sub(r"\s+", " ", Outline(report(results)).text)
    assert "base 0.250 ✗ star 0.750 ✓ flow_grpo 0.625 ✓" in text
    assert "base 0.500 “A” star 1.000 “A”" in text
    assert "base 18.00 star 18.50" in text  # the undivided score, not the reward
    assert "step 1, trained" in text and "epoch 10, reward 0.500" in text


def test_same_run_gives_the_same_bytes(results):
    assert report(results) == report(results)


def test_metric_files(results):
    report(results)
    text = (results / "metrics" / "summary.json").read_text()
    summary = json.loads(text)
    assert text == json.dumps(summary, indent=2, sort_keys=True) + "\n"
    assert summary["geneval-star"]["geneval"]["soft"] == {
        "mean": 0.75,
        "low": 0.626543,
        "high": 0.85,
    }
    assert set(summary) == {
        "base",
        "geneval-star",
        "geneval-flow_grpo",
        "ocr-star",
        "preference-star",
    }
    rows = list(csv.DictReader((results / "metrics" / "curves.csv").read_text().splitlines()))
    assert len(rows) == 4 * 12 and rows[0]["kl"] == ""
    assert (rows[12]["task"], rows[12]["method"], rows[12]["images"]) == (
        "geneval",
        "flow_grpo",
        "128",
    )


def test_optional_files_may_be_missing(results):
    shutil.rmtree(results / "train" / "geneval-star")
    shutil.rmtree(results / "train" / "ocr-star" / "maps")
    shutil.rmtree(results / "evaluate" / "base" / "images")
    (results / "train" / "preference-star" / "maps" / "step_1.png").unlink()
    text = re.sub(r"\s+", " ", Outline(report(results)).text)
    assert "No log was found for geneval-star" in text and "no image" in text


def test_run_of_one_task_without_any_training_files(tmp_path):
    for name, level in (("base", 0.5), ("ocr-star", 0.75)):
        write_checkpoint(tmp_path / "results", name, {"ocr": level})
    text = Outline(report(tmp_path / "results", make_params(runs={"ocr": ["star"]}))).text
    assert "OCR reward" in text and "GenEval-style" not in text and "Learning curves" not in text


@pytest.mark.parametrize("name", ["base", "geneval-flow_grpo"])
def test_missing_scores_name_the_file_and_the_command_and_keep_the_old_page(results, name):
    output = results.parent / "index.html"
    output.write_text("old")
    (results / "evaluate" / name / "scores.json").unlink()
    with pytest.raises(
        StarError, match=rf"{name}/scores\.json: missing; `snakemake .*{name}/scores\.json`"
    ):
        report(results)
    assert output.read_text() == "old" and not (results / "metrics").exists()


def test_other_seeds_than_base_are_refused(results):
    path = results / "evaluate" / "ocr-star" / "images.jsonl"
    lines = path.read_text().splitlines()
    path.write_text(
        "\n".join([*lines[:2], lines[2].replace('"seed": 42', '"seed": 7'), *lines[3:]])
    )
    with pytest.raises(
        StarError, match=r"ocr-star/images\.jsonl:3: not the prompt, image and seed"
    ):
        report(results)
    path.write_text("\n".join(lines[:-1]))
    with pytest.raises(StarError, match=rf"images\.jsonl:{len(lines)}: not the prompt"):
        report(results)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("evaluate/base/scores.json", "{", r"base/scores\.json: not valid JSON"),
        ("evaluate/base/scores.json", '{"seconds": {}}', r"base/scores\.json: not a score file"),
        ("evaluate/base/images.jsonl", '{"id": "a"}', r"images\.jsonl:1: not a scored image"),
        ("train/ocr-star/log.jsonl", '{"epoch": 1}', r"log\.jsonl:1: 'images' is missing"),
        (
            "train/ocr-star/maps/maps.json",
            '[{"maps": []}]',
            r"maps\.json: not a list of saved maps",
        ),
        ("train/ocr-star/maps/final.png", "no image", r"final\.png: not a readable image"),
    ],
)
def test_malformed_files_are_named(results, file, text, message):
    (results / file).write_text(text)
    with pytest.raises(StarError, match=message):
        report(results)


def test_score_file_without_a_benchmark_of_base_is_refused(results):
    path = results / "evaluate" / "ocr-star" / "scores.json"
    scores = json.loads(path.read_text())
    del scores["benchmarks"]["geneval"]["soft"]
    path.write_text(json.dumps(scores))
    with pytest.raises(
        StarError,
        match=r"ocr-star/scores\.json: no mean, low and high at benchmarks\.geneval\.soft",
    ):
        report(results)


def test_scores_that_are_not_those_of_the_images_are_refused(results):
    path = results / "evaluate" / "ocr-star" / "images.jsonl"
    path.write_text(path.read_text().replace('"score": 18.0', '"score": 0.7'))
    with pytest.raises(
        StarError, match=r"ocr-star/scores\.json: preference\.score is 18, but .* have 0\.7;"
    ):
        report(results)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"soft": 0.25',
            '"soft": NaN',
            r"base/scores\.json: geneval\.soft is 0\.25, but .* have nan",
        ),
        ('"geneval-1"', '"geneval-2"', "geneval strict: a group has images of two tags"),
    ],
)
def test_images_without_a_difference_are_refused(results, old, new, message):
    for path in (results / "evaluate").glob("*/images.jsonl"):
        path.write_text(path.read_text().replace(old, new))
    with pytest.raises(StarError, match=message):
        report(results)


def test_an_evaluation_from_before_the_figures_of_quality_is_refused(results):
    path = results / "evaluate" / "ocr-star" / "scores.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quality": {}}))
    with pytest.raises(StarError, match=r"ocr-star/scores\.json: no figures at quality"):
        report(results)


def test_images_outside_the_checkpoint_are_not_embedded(results):
    folder = results / "evaluate" / "base"
    Image.new("RGB", (8, 8)).save(results / "secret.png")
    text = (folder / "images.jsonl").read_text().replace("images/ocr-0.png", "../../secret.png")
    (folder / "images.jsonl").write_text(text)
    images = load_run(make_params(), results).base.images
    assert [image.image is None for image in images if image.id == "ocr-0"] == [True]


def test_pairs_are_the_first_prompts_and_tags_take_turns(results):
    run = load_run(make_params(), results)
    pairs = choose_pairs(run, "geneval", 7)
    assert [pair.images[0][1].id for pair in pairs] == [
        f"geneval-{k}" for k in (0, 2, 4, 6, 8, 10, 1)
    ]
    assert [label for label, _ in pairs[0].images] == ["base", "star", "flow_grpo"]
    assert len({image.seed for _, image in pairs[0].images}) == 1
    assert [pair.images[0][1].id for pair in choose_pairs(run, "ocr", 2)] == ["ocr-0", "ocr-1"]


def test_maps_of_the_last_epoch_are_thinned_evenly():
    def row(epoch: int, steps: int) -> MapRow:
        return MapRow(epoch, "p", 0.0, 0.0, tuple(range(steps)), None, (None,) * steps)

    shown = choose_maps(Training("ocr", "star", (), (row(10, 3), row(40, 40), row(40, 3))))
    assert [r.epoch for r in shown] == [40, 40]
    assert len(shown[0].steps) == MAP_STEPS and shown[0].steps[0] == 0 and shown[0].steps[-1] == 39
    assert len(set(np.diff(shown[0].steps))) <= 2 and shown[1].steps == (0, 1, 2)


def test_small_png_is_embedded_as_it_is_and_large_images_shrink_to_the_limit(tmp_path):
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    Image.new("RGB", (64, 64), (1, 2, 3)).save(small)
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    Image.fromarray(noise).save(large)
    assert decoded(data_uri(small, 10_000)) == small.read_bytes()
    for limit in (5_000, 50_000):
        data = decoded(data_uri(large, limit))
        assert len(data) <= limit
        assert max(Image.open(io.BytesIO(data)).size) <= 256


def test_running_mean():
    assert running_mean([1.0, 2.0, 3.0, 4.0], 2) == [1.0, 1.5, 2.5, 3.5]


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e4))
def test_ticks_are_three_or_more_round_values_inside_the_range(low, span):
    values = ticks(low, low + span)
    steps = np.diff(values)
    assert 3 <= len(values) <= 8
    assert (
        np.allclose(steps, steps[0])
        and low - 1e-6 * span <= values[0]
        and values[-1] <= low + span * (1 + 1e-6)
    )
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
    assert min(abs(mantissa - m) for m in (1, 2, 5)) < 1e-3
    assert len(set(tick_labels(values))) == len(values)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0, 2000, 4000], ["0", "2,000", "4,000"]),
        ([-0.5, 0.0, 0.5], ["−0.5", "0.0", "0.5"]),
        ([0.99999, 1.0, 1.00001], ["0.99999", "1.00000", "1.00001"]),
        ([0.0, 2e-5, 4e-5], ["0", "2e−5", "4e−5"]),
    ],
)
def test_tick_labels(values, labels):
    assert tick_labels(values) == labels


def test_line_chart_breaks_at_missing_values_and_escapes():
    line = Line(
        EVIL, 1, [0, 1, 2, 3], [0.0, math.nan, 1.0, 2.0], low=[0, 0, 0, 0], high=[1, 1, 1, 1]
    )
    root = ElementTree.fromstring(line_chart([line], EVIL, EVIL, EVIL))
    path = next(p for p in root.iter("path") if p.get("class") == "line c1")
    assert path.get("d").count("M") == 2 and path.get("d").count("L") == 1
    assert root.find("title").text == EVIL
    assert (
        line_chart([Line("a", 1, [0], [math.nan])], "t", "x", "y")
        == ""
        == line_chart([], "t", "x", "y")
    )


def test_line_chart_maps_the_extremes_to_the_frame():
    root = ElementTree.fromstring(
        line_chart([Line("a", 1, [10, 20], [1.0, 3.0])], "t", "x", "y", height=240)
    )
    d = next(p for p in root.iter("path") if p.get("class") == "line c1").get("d")
    (x0, y0), (x1, y1) = (map(float, point.split()) for point in re.split("[ML]", d)[1:])
    assert (x0, x1) == (58, 322)
    assert y0 - y1 == pytest.approx((200 - 26) / 1.12, abs=0.2)  # a margin of 6 % at both ends


def test_bars_are_proportional_and_whiskers_span_the_interval():
    bars = [Bar("a", 0, Interval(0.25, 0.2, 0.3)), Bar("b", 1, Interval(0.5, 0.4, 1.0))]
    root = ElementTree.fromstring(bar_chart([("tag <1>", bars)], "t", "strict"))
    short, long = (float(rect.get("width")) for rect in root.iter("rect"))
    assert long == pytest.approx(2 * short, abs=0.2)
    ends = [
        re.findall(r"[MH]([\d.]+)", p.get("d"))
        for p in root.iter("path")
        if p.get("class") == "whisker"
    ]
    assert float(ends[1][1]) - float(ends[1][0]) == pytest.approx(
        6 * (float(ends[0][1]) - float(ends[0][0])), abs=0.5
    )
    assert bar_chart([], "t", "x") == ""


def test_stacked_bars_add_up():
    rows = [("a", [Segment("p", 1, 1.0), Segment("q", 2, 3.0)]), ("b", [Segment("p", 1, 2.0)])]
    root = ElementTree.fromstring(stacked_bars(rows, "t", "s"))
    p, q, other = root.iter("rect")
    assert float(q.get("x")) == pytest.approx(float(p.get("x")) + float(p.get("width")), abs=0.11)
    assert float(q.get("width")) == pytest.approx(3 * float(p.get("width")), abs=0.2)
    assert [t.text for t in root.iter("text") if t.get("class") == "value"] == ["4.0 s", "2.0 s"]
    assert stacked_bars([("a", [])], "t", "s") == "" == stacked_bars([], "t", "s")


def test_colors_repeat_without_base():
    assert [color_class(k) for k in (0, 1, 6, 7, 12, 13)] == ["c0", "c1", "c6", "c1", "c6", "c1"]


def test_provenance(tmp_path):
    assert git_commit(tmp_path) == "not a git checkout"
    assert package_versions()["numpy"] == np.__version__
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "file").write_text("1")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "x"], check=True)
    assert re.fullmatch("[0-9a-f]{40}", git_commit(tmp_path))
    (tmp_path / "file").write_text("2")
    assert git_commit(tmp_path).endswith(" with uncommitted changes")
