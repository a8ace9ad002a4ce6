"""The report of a run: its numbers in closed form, what it shows, and the files beside the page."""

import csv
import io
import json
import re
import subprocess

import numpy as np
import pytest
from PIL import Image

from star.config.reading import load_params
from star.evaluation.statistics import Interval
from star.prompts.geneval import TAGS
from star.report.comparison import compare, metrics_of, tag_scores
from star.report.figures import TrainingLog, training_statistics
from star.report.images import MAP_STEPS, choose_maps, choose_pairs, data_uri
from star.report.page import write_report
from star.report.provenance import git_commit, package_versions
from star.report.run import MapRow, Training, load_run
from tests.helpers.pages import decoded, words_of
from tests.helpers.results import (
    LEVELS,
    ROOT,
    RUNS,
    level,
    write_evaluation,
    write_params,
    write_run,
)


@pytest.fixture
def results(tmp_path):
    return write_run(tmp_path / "results")


def words(results, **changes):
    """The text of the report with changed parameters."""
    file = write_params(results.parent, **changes)
    write_report(load_params(file), file, results, results.parent / "page.html")
    return words_of(results.parent / "page.html")


def test_page_shows_scores_differences_images_and_maps(results):
    text = words(results)
    assert "1.000 [0.875, 1.125] ▲ +1.000 [+1.000, +1.000]" in text  # strict: all became right
    assert "≈ +0.000 [+0.000, +0.000]" in text
    assert "No clear winner: star minus flow_grpo is +0.000 [+0.000, +0.000]" in text
    assert "base 0.250 ✗ star 0.750 ✓ flow_grpo 0.625 ✓" in text
    assert "base 0.500 “R0” star 1.000 “R0”" in text
    assert "base 18.00 star 18.50" in text  # the undivided score, not the reward
    assert "finished step 1" in text and "epoch 10, reward 0.500" in text
    assert text.count("held-out (12 prompts, EMA)") == 1  # GenEval's; others have fewer prompts
    assert text.count("held-out (4 prompts, EMA)") == 2


@pytest.mark.parametrize(
    ("reader", "name"),
    [("ppocrv6", "by PP-OCRv6"), ("template", "by a template reader"), ("none", None)],
)
def test_the_second_reader_has_a_column_that_only_ocr_prompts_fill(results, reader, name):
    text = words(results, evaluate__second_reader=reader)
    assert text.count("0.675 [0.550, 0.800]") == (2 if name else 0)  # base and star
    assert (f"Second reader OCR reward {name}" in text) if name else ("econd reader" not in text)
    assert text.count("0.375 [0.250, 0.500] –") == (5 if name else 0)  # rows of other prompts


def test_the_page_speaks_of_the_judges_and_the_model_that_the_parameters_name(results):
    text = words(results)
    assert "not comparable 0.9759 – 0.9757 – PickScore 23.60 (another scale)" in text
    preset = load_params(ROOT / "presets/sd35m-8gpu-preference.yaml")
    rewards = json.loads(json.dumps(vars(preset.rewards), default=vars))
    study = {"study": vars(preset.study)}  # the miniature's has awm, which takes no guidance
    named = {"methods": preset.methods, "model": vars(preset.model), "rewards": rewards}
    text = words(results, **named, **study)
    for wrong in ("stand-in", "much larger model", "not comparable", "another scale"):
        assert wrong not in text
    assert "PickScore logit of PickScore" in text and "trained on PickScore" in text
    assert "is of this model" in text and f"judged by {preset.rewards.geneval.path}" in text
    rewards["preference"] |= {"path": "others/judge"}
    text = words(results, rewards=rewards)
    assert "Preference by others/judge" in text and "by others/judge, which is not Pick" in text
    assert "is of SD3.5-M and not of models/miniature" in text


def test_comparison_in_closed_form(results):
    run = load_run(RUNS, results)
    comparison = compare(run, resamples=50, seed=0)
    strict, soft = comparison.cells["geneval-flow_grpo"][:2]
    assert strict.difference == Interval(1.0, 1.0, 1.0)
    assert soft.difference == Interval(0.375, 0.375, 0.375)
    assert strict.trained_on and strict.best and not soft.best
    assert not comparison.cells["ocr-star"][0].trained_on
    assert all(cell.difference is None for cell in comparison.cells["base"])
    ocr = next(verdict for verdict in comparison.verdicts if verdict.metric.task == "ocr")
    assert list(ocr.contenders) == ["star"] and ocr.lead is None
    assert list(tag_scores(run.base, metrics_of(None)[1], 10, 0)) == list(TAGS)


def test_best_method_comes_first_and_its_lead_is_paired(results):
    gained = level(LEVELS | {"preference": 18.25})
    write_evaluation(results / "evaluate" / "preference-flow_grpo", gained)
    run = load_run({"preference": ["flow_grpo", "star"]}, results)
    (verdict,) = compare(run, 50, 0).verdicts
    assert list(verdict.contenders) == ["star", "flow_grpo"]
    assert verdict.lead == Interval(0.25, 0.25, 0.25)


def test_metric_files_and_gains(results):
    file = write_params(results.parent)
    gains = write_report(load_params(file), file, results, results.parent / "page.html")
    assert gains[2] == "ocr-star: reward 0.500 -> 1.000, gain +0.500 (+0.500 to +0.500)"
    text = (results / "metrics" / "summary.json").read_text()
    summary = json.loads(text)
    assert text == json.dumps(summary, indent=2, sort_keys=True) + "\n"
    assert set(summary) == {"base", *(f"{t}-{m}" for t, ms in RUNS.items() for m in ms)}
    soft = summary["geneval-star"]["geneval"]["soft"]
    assert soft == {"mean": 0.75, "low": 0.625, "high": 0.875}
    rows = list(csv.DictReader((results / "metrics" / "curves.csv").read_text().splitlines()))
    assert len(rows) == 4 * 13 and rows[1]["kl"] == ""
    found = [rows[14][key] for key in ("task", "method", "images", "held_out")]
    assert found == ["geneval", "flow_grpo", "128", ""]
    assert [row["held_out"] for row in rows[:13] if row["held_out"]] == ["0.25", "0.75"]


def test_images_outside_the_checkpoint_are_not_embedded(results):
    file = results / "evaluate" / "base" / "images.jsonl"
    Image.new("RGB", (8, 8)).save(results / "secret.png")
    file.write_text(file.read_text().replace("images/ocr-0.png", "../../secret.png"))
    images = load_run(RUNS, results).base.images
    assert [image.id for image in images if image.image is None] == ["ocr-0"]


def test_pairs_are_the_first_prompts_and_tags_take_turns(results):
    run = load_run(RUNS, results)
    pairs = choose_pairs(run, "geneval", 7)
    expected = [f"geneval-{k}" for k in (0, 2, 4, 6, 8, 10, 1)]
    assert [pair.images[0][1].id for pair in pairs] == expected
    assert [label for label, _ in pairs[0].images] == ["base", "star", "flow_grpo"]
    assert len({image.seed for _, image in pairs[0].images}) == 1
    assert [pair.images[0][1].id for pair in choose_pairs(run, "ocr", 2)] == ["ocr-0", "ocr-1"]


def test_what_a_training_never_logged_is_not_drawn():
    rows = {1: {"images": 1, "kl": 0.5}, 2: {"images": 2, "kl": None}}
    logs = [TrainingLog("ocr", f"method {color}", color, (row,)) for color, row in rows.items()]
    (panel,) = training_statistics(logs, {"ocr": "OCR"})
    (chart,) = panel.charts
    assert "line c1" in chart and "line c2" not in chart


def test_maps_of_the_last_epoch_are_thinned_evenly():
    def row(epoch, steps):
        return MapRow(epoch, "p", 0.0, tuple(range(steps)), None, (None,) * steps)

    first, second = choose_maps(Training("ocr", "star", (), (row(10, 3), row(40, 40), row(40, 3))))
    assert (first.epoch, second.epoch) == (40, 40) and second.steps == (0, 1, 2)
    assert len(first.steps) == MAP_STEPS and (first.steps[0], first.steps[-1]) == (0, 39)
    assert len(set(np.diff(first.steps))) <= 2


def test_small_png_is_embedded_as_it_is_and_large_images_shrink_to_the_limit(tmp_path):
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    Image.new("RGB", (64, 64), (1, 2, 3)).save(small)
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    Image.fromarray(noise).save(large)
    assert decoded(data_uri(small, 10_000)) == small.read_bytes()
    for limit in (5_000, 50_000):
        data = decoded(data_uri(large, limit))
        assert len(data) <= limit and max(Image.open(io.BytesIO(data)).size) <= 256


def test_provenance(tmp_path):
    assert git_commit(tmp_path) == "not a git checkout"
    assert f"numpy {np.__version__}" in package_versions()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("1")
    for arguments in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *arguments], check=True)
    assert re.fullmatch("[0-9a-f]{40}", git_commit(tmp_path))
    (tmp_path / "file").write_text("2")
    assert git_commit(tmp_path).endswith(" with uncommitted changes")
