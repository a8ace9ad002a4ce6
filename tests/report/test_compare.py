"""Runs against each other: hand-worked differences, labels, and what table and page show."""

import json
import re
import shutil

import pytest

from star.cli import main
from star.evaluation.statistics import Interval
from star.report.compare.page import (
    RESAMPLES,
    SEED,
    choose_pairs,
    compare_runs,
    differing_parameters,
)
from star.report.compare.runs import labels, load_runs
from star.report.comparison import compare
from star.report.run import Run
from tests.helpers.pages import EVIL, Outline, decoded, words_of
from tests.helpers.results import RECORDED, write_evaluation, write_training

# Scores of the four prompts of each task, by run; GenEval's have two tags of two prompts each.
FIRST = {
    "geneval": (0.0, 0.0, 0.0, 0.25),
    "ocr": (0.25, 0.5, 0.75, 0.5),
    "preference": (20.0, 21.0, 22.0, 23.0),
}
SECOND = {
    "geneval": (1.0, 1.0, 1.0, 0.25),
    "ocr": (0.25, 0.5, 0.75, 1.0),
    "preference": (20.5, 21.5, 22.5, 23.5),
}
OTHER = RECORDED | {"seed": 1, "allocation": {"lam": 1.5, "blocks": [0, 7], EVIL: True}}
ONE, TWO = "one/results/evaluate/geneval-star", "two/results/evaluate/geneval-star"


@pytest.fixture
def folders(tmp_path):
    """Two trainings of one name in two results trees; seed and one key of allocation differ."""
    for name, scores, recorded in ((ONE, FIRST, RECORDED), (TWO, SECOND, OTHER)):
        write_evaluation(tmp_path / name, scores, color=100 + len(recorded["allocation"]))
        write_training(tmp_path / name.replace("evaluate", "train"), recorded)
    return [tmp_path / ONE, tmp_path / TWO]


@pytest.fixture
def base(tmp_path):
    return write_evaluation(tmp_path / "one/results/evaluate/base", FIRST)


def page_of(folders):
    output = folders[0].parents[3] / "compare.html"
    compare_runs(folders, output)
    return output


def cells_of(folders):
    first, *others = (run.checkpoint for run in load_runs(folders))
    return compare(Run(first, tuple(others), ()), RESAMPLES, SEED).cells


def test_paired_differences_by_hand(folders):
    strict, soft, reward, exact, preference = cells_of(folders)[TWO]
    # Both prompts of a tag gain 1, one of the other tag's two: (1 + 1/2) / 2. Resampling within
    # tags leaves the first tag; the second is 0 or 1 in a quarter of the resamples each.
    assert strict.difference == soft.difference == Interval(0.75, 0.5, 1.0)
    assert (soft.score.mean, soft.score.low, soft.score.high) == (0.8125, 0.6875, 0.9375)
    # One sign of four gains 0.5. A resample without it has probability 0.75^4 = 0.32, one with it
    # three times or more 0.051, four times 0.0039: the 2.5 % and 97.5 % points are none and three.
    assert reward.difference == Interval(0.125, 0.0, 0.375)
    assert exact.difference == Interval(0.25, 0.0, 0.75)
    assert preference.difference == Interval(0.5, 0.5, 0.5)  # the same gain everywhere
    assert all(cell.difference is None for cell in cells_of(folders)[ONE])


def test_images_are_paired_by_identity_not_by_line(folders):
    expected = cells_of(folders)
    path = folders[1] / "images.jsonl"
    path.write_text("\n".join(reversed(path.read_text().splitlines())))
    assert cells_of(folders) == expected


def test_labels_are_the_shortest_ends_that_tell_the_runs_apart(tmp_path):
    ends = ("a/r/evaluate/x", "b/r/evaluate/x", "b/r/evaluate/y", "c/b/r/evaluate/x")
    first, second, *others = labels([tmp_path / end for end in ends])
    assert [first, *others] == ["a/r/evaluate/x", "y", "c/b/r/evaluate/x"]
    assert second == f"{tmp_path.name}/b/r/evaluate/x"
    assert labels([tmp_path / "base", tmp_path / "ocr-star"]) == ["base", "ocr-star"]


def test_table_of_the_terminal(folders, base, tmp_path, capsys):
    assert main(["compare", *map(str, [*folders, base])]) == 0
    text = re.sub(r" +", " ", capsys.readouterr().out)
    gained = f"{ONE} 0.062 [-0.062, 0.188]\n{TWO} 0.812 [0.688, 0.938] +0.750 [+0.500, +1.000] *\n"
    assert gained in text
    assert f"{TWO} 0.625 [0.500, 0.750] +0.125 [+0.000, +0.375]\n" in text  # zero is inside
    assert f"{ONE} geneval star 12 1,536 1.000\n" in text and "base untrained\n" in text
    assert re.search(f"images, OCR .*edges.*\n{ONE} 0.375 ", text)
    assert f"parameters that differ {ONE} {TWO} base\n" in text
    assert "allocation.blocks [0, 6] [0, 7] -\n" in text and "seed 0 1 -\n" in text
    assert not list(tmp_path.glob("*.html"))  # a page only where one is asked for


def test_text_that_a_terminal_obeys_is_replaced(folders):
    for folder in folders:
        text = (folder / "scores.json").read_text()
        evil = '"method": "st\\u001b[31m¦\\nar"'
        (folder / "scores.json").write_text(text.replace('"method": "star"', evil))
    table = compare_runs(folders, None)
    assert "st?[31m??ar" in table and "\x1b" not in table


def test_page_has_scores_curves_parameters_and_where_the_runs_lie(folders):
    text, page = words_of(page_of(folders)), page_of(folders).read_text()
    assert "0.812 [0.688, 0.938] ▲ +0.750 [+0.500, +1.000]" in text
    assert "trained on GenEval by star: 1,536 images drawn in 12 epochs, reward 1.000" in text
    for line in ("line c0", "line c1", "faint c0", "faint c1"):
        assert page.count(f'<path class="{line}"') == 1  # in one chart
    assert page.count('<circle class="dot c1"') == 2 and "held-out (EMA)" in text
    assert f"allocation.{EVIL} nothing true" in text and "seed 0 1" in text
    assert "lora_rank" not in text and "Evaluated with other" not in text
    assert all(str(folder) in text for folder in folders) and text.count("evaluated with 0f0f") == 2
    scores = folders[1] / "scores.json"
    scores.write_text(scores.read_text().replace("0f0f", "1e1e"))
    assert "Evaluated with other" in words_of(page_of(folders))
    assert "evaluated with other" in compare_runs(folders, None)


def test_images_that_differ_most_are_shown_one_a_prompt_in_pairs_of_one_seed(folders):
    for folder in folders:
        lines = (folder / "images.jsonl").read_text().splitlines()
        second = lines[7].replace('"index": 0', '"index": 1').replace('"seed": 43', '"seed": 99')
        (folder / "images.jsonl").write_text("\n".join([*lines, second]))
    pairs = choose_pairs(load_runs(folders), "ocr", 3)
    assert [pair.images[0][1].id for pair in pairs] == ["ocr-3", "ocr-0", "ocr-1"]  # 3 differs
    assert [image.score for _, image in pairs[0].images] == [0.5, 1.0]
    for pair in pairs:
        (_, left), (_, right) = pair.images
        assert (left.id, left.seed, left.prompt) == (right.id, right.seed, right.prompt)


def test_the_images_of_a_pair_stand_side_by_side(folders):
    embedded = [decoded(a) for a in Outline(page_of(folders).read_text()).addresses]
    at = embedded.index((folders[0] / "images/ocr-3.png").read_bytes())
    assert embedded[at + 1] == (folders[1] / "images/ocr-3.png").read_bytes()


def test_parameters_that_differ(folders, tmp_path):
    third = write_evaluation(tmp_path / "three/results/evaluate/ocr-star", FIRST)
    assert differing_parameters(load_runs([folders[0], third, folders[1]])) == {
        f"allocation.{EVIL}": ("nothing", None, "true"),
        "allocation.blocks": ("[0, 6]", None, "[0, 7]"),
        "seed": ("0", None, "1"),
    }
    assert "were recorded (parameters.json of the training) for ocr-star" in words_of(
        page_of([folders[0], third])
    )
    assert "were recorded for ocr-star" in compare_runs([folders[0], third], None)


def test_an_evaluation_from_before_there_were_figures_is_compared(folders):
    file = json.loads((folders[1] / "scores.json").read_text())
    del file["quality"]
    (folders[1] / "scores.json").write_text(json.dumps(file))
    shutil.rmtree(folders[1].parents[1] / "train")
    assert f"{TWO} –" in words_of(page_of(folders))
    assert "no log" in compare_runs(folders, None)
