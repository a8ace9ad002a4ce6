"""What every page guarantees: one balanced document, escaped, loading nothing, the same again.

And what all refuse: a missing or damaged file, in one line, with nothing written."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from star.cli import main
from star.config.reading import load_params
from tests.helpers.pages import EVIL, Outline, opened
from tests.helpers.results import (
    LEVELS,
    RECORDED,
    level,
    write_evaluation,
    write_params,
    write_run,
    write_study_runs,
    write_training,
)

BIG = "1" + "0" * 400  # an integer that no float holds


@dataclass(frozen=True)
class Page:
    """The files that a page is made of in a folder, and the command that writes page.html there."""

    write: Callable[[Path], object]
    command: Callable[[Path], list[str]]
    links: frozenset[str]  # files beside the page


def write_compared(folder: Path) -> None:
    for tree in ("one", "two"):
        results = folder / tree / "results"
        write_evaluation(results / "evaluate" / "geneval-star", level(LEVELS))
        write_training(results / "train" / "geneval-star", RECORDED | {"seed": tree, EVIL: tree})


TABLES = ("summary.json", "scores.csv", "curves.csv", "watch.csv")
PAGES = {
    "report": Page(
        lambda folder: write_run(folder / "results"),
        lambda folder: ["report", "--results", str(folder / "results")],
        frozenset({"workflow.html"}),
    ),
    "compare": Page(
        write_compared,
        lambda folder: [
            "compare",
            *(str(folder / tree / "results/evaluate/geneval-star") for tree in ("one", "two")),
        ],
        frozenset(),
    ),
    "study": Page(
        lambda folder: write_study_runs(load_params(folder / "params.yaml").study, folder / "runs"),
        lambda folder: ["study-report", "--runs", str(folder / "runs")],
        frozenset(TABLES),
    ),
}


def command(name: str, folder: Path) -> list[str]:
    arguments = [*PAGES[name].command(folder), "--output", str(folder / "page.html")]
    return arguments + ([] if name == "compare" else ["--params", str(folder / "params.yaml")])


@pytest.fixture
def made(request, tmp_path):
    """The folder with the files of the page that the test is parametrised with."""
    write_params(tmp_path)
    PAGES[request.param].write(tmp_path)
    return request.param, tmp_path


every_page = pytest.mark.parametrize("made", list(PAGES), indirect=True)


def written(name: str, folder: Path) -> str:
    assert main(command(name, folder)) == 0
    return (folder / "page.html").read_text(encoding="utf-8")


@every_page
def test_page_is_one_balanced_document_that_loads_nothing_and_escapes(made):
    name, folder = made
    page = written(name, folder)
    outline = Outline(page)
    assert page.startswith("<!doctype html>") and "default-src 'none'" in page
    assert not {"script", "link", "b"} & set(outline.tags) and "<svg" in page
    assert re.findall(r"url\(|@import|https?://", page) == []
    inside = [a for a in outline.addresses if a.startswith("#")]
    assert all(f'id="{address[1:]}"' in page for address in inside)
    outside = {a for a in outline.addresses if not a.startswith(("data:image/", "#"))}
    assert outside == PAGES[name].links
    assert ("data:image/" in page) == (name != "study") == ("img-src data:" in page)
    assert EVIL in outline.text and page.count("&lt;script&gt;") > 1


@every_page
def test_no_script_of_a_text_runs_in_a_browser(made, chromium):
    name, folder = made
    page = written(name, folder)
    (folder / "bare.html").write_text(f"<p>{EVIL}</p>")
    assert "data-ran" in opened(chromium, folder / "bare.html")  # the browser does run scripts
    shown = opened(chromium, folder / "page.html")
    assert "data-ran" not in shown and "&lt;script&gt;" in shown and "</html>" in shown
    for escaped, text in (("&lt;", "<"), ("&gt;", ">"), ("&#34;", '"')):
        page = page.replace(escaped, text)
    (folder / "page.html").write_text(page, encoding="utf-8")
    assert "<script>document" in page
    assert "data-ran" not in opened(chromium, folder / "page.html")  # the policy's part


@every_page
def test_same_files_give_the_same_bytes_without_torch(made):
    name, folder = made
    first = written(name, folder)
    code = f"import sys; from star.cli import main; assert main({command(name, folder)!r}) == 0; "
    code += "assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
    assert (folder / "page.html").read_text(encoding="utf-8") == first


def refusal(name: str, folder: Path, capsys) -> str:
    """The one line of a refusal; what was there is kept, and nothing is written beside it."""
    (folder / "page.html").write_text("old")
    before = sorted(folder.rglob("*"))
    assert main(command(name, folder)) == 1
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and "error: " in text
    assert (folder / "page.html").read_text() == "old" and sorted(folder.rglob("*")) == before
    return text


BASE, OCR_STAR = "results/evaluate/base", "results/evaluate/ocr-star"
OCR_TRAIN = "results/train/ocr-star"
SCORES, IMAGES = f"{OCR_STAR}/scores.json", f"{OCR_STAR}/images.jsonl"
TWO, TRAIN = "two/results/evaluate/geneval-star", "two/results/train/geneval-star"
TWO_SCORES, TWO_IMAGES = f"{TWO}/scores.json", f"{TWO}/images.jsonl"
RUN = "runs/geneval-star-1-0.0015.json"
WHOLE = ""
# Of each page: a file, what is replaced there, by what (None: the file is gone), what is told.
DAMAGED = {
    "report": [
        (f"{BASE}/scores.json", WHOLE, None, "base/scores.json: missing; `snakemake "),
        (IMAGES, WHOLE, None, "ocr-star/images.jsonl: missing; `snakemake "),
        (f"{BASE}/scores.json", WHOLE, "{", "base/scores.json: "),
        (f"{BASE}/scores.json", WHOLE, '{"seconds": {}}', "scores.json: benchmarks"),
        (IMAGES, WHOLE, '{"id": "a"}', "images.jsonl:1: task: "),
        (f"{OCR_TRAIN}/log.jsonl", WHOLE, '{"epoch": 1}', "log.jsonl:1: images: "),
        (f"{OCR_TRAIN}/maps/maps.json", WHOLE, "[{}]", "maps.json: [0].epoch: "),
        (f"{OCR_TRAIN}/maps/maps.json", WHOLE, "{", "maps.json: not valid JSON"),
        (f"{OCR_TRAIN}/maps/final.png", WHOLE, "no image", "final.png: not a readable"),
        (SCORES, '"soft": {', '"other": {', "scores.json: benchmarks.geneval.soft: "),
        (SCORES, '"mean": 18.0', '"mean": 17.0', "benchmarks.preference.score is 17, "),
        (SCORES, '"edges": {', '"other": {', "scores.json: quality.ocr.edges: missing"),
        (SCORES, '"mean": 0.375', '"mean": []', "scores.json: quality.geneval."),
        (IMAGES, '"soft": 0.25', '"soft": NaN', "geneval.soft is 0.25, but "),
        (IMAGES, '"soft": 0.25', '"other": 0.25', "ocr-star/images.jsonl: "),
        (IMAGES, "images/ocr-1.png", "x" * 300, "images.jsonl:14: image: "),
    ],
    "compare": [
        (TWO_SCORES, WHOLE, None, f"{TWO}: "),
        (TWO_SCORES, WHOLE, b"\xff", "scores.json: cannot be read"),
        (TWO_SCORES, WHOLE, '{"checkpoint": "a", "task": "ocr"}', f"{TWO}/scores.json: "),
        (TWO_IMAGES, WHOLE, b"\xff", "images.jsonl:1: not UTF-8"),
        (f"{TWO}/images/ocr-3.png", WHOLE, "no image", "ocr-3.png: not a readable image"),
        (f"{TRAIN}/parameters.json", WHOLE, "[]", "parameters.json: "),
        (f"{TRAIN}/log.jsonl", WHOLE, f'{{"epoch": {BIG}}}', "log.jsonl:1: epoch: "),
        (TWO_IMAGES, '"score": 0.25}', f'"score": {BIG}}}', "jsonl:1: score: "),
        (TWO_IMAGES, " ocr 3", " ocr \\ud800", '.jsonl:16: "\\ud800" is half'),
        (TWO_SCORES, '"ocr": {"reward"', '"sign": {"reward"', "benchmarks: "),
        (TWO_SCORES, '"checkpoint"', '"images"', "scores.json: not the scores"),
    ],
    "study": [
        (RUN, WHOLE, None, "geneval-star-1-0.0015.json: missing, as are 0 more of 36 runs"),
        (RUN, WHOLE, "{", f"{RUN}: not valid JSON"),
        (RUN, WHOLE, "[]", f"{RUN}: "),
        (RUN, '"seed": 1', '"seed": 2', f"{RUN}: seed is 2, not 1"),
        (RUN, '"epoch": 4', '"epoch": 3', "curve: epoch is [0, 2, 3], not [0, 2, 4]"),
        (RUN, '"images": 256', '"images": 7', "curve: images is [0, 7, 512]"),
        (RUN, '"images": 256, "graded"', '"images": 256, "x"', "curve[1].graded: "),
        (RUN, '"graded": [0.0, 1.0]', '"graded": []', "curve[0].graded: "),
        (RUN, '"graded": [0.0, 1.0]', '"graded": [0.0, NaN]', "curve[0].graded[1]: "),
        (RUN, '"graded": [0.0, 1.0]', '"graded": [1.0]', "curve: looks at different numbers"),
        (RUN, '"watch"', '"other"', f"{RUN}: curve[0].watch.preference: missing"),
        (RUN, '"edges": 0.1', '"edges": "many"', "curve[0].watch.edges: "),
        (RUN, '"unnamed": 1.5', '"other": 1', f"{RUN}: curve[0].watch.unnamed: missing"),
        (RUN, '"grad_norm"', '"other"', f"{RUN}: log.grad_norm: missing"),
    ],
}


@pytest.mark.parametrize(
    ("made", "file", "old", "new", "told"),
    [(page, *case) for page, cases in DAMAGED.items() for case in cases],
    indirect=["made"],
)
def test_missing_and_damaged_files_are_named_with_their_key(made, file, old, new, told, capsys):
    name, folder = made
    text = (folder / file).read_bytes()
    (folder / file).unlink()
    if new is not None:
        old, new = (part if isinstance(part, bytes) else part.encode() for part in (old, new))
        assert old in text
        (folder / file).write_bytes(text.replace(old, new) if old else new)
    assert told in refusal(name, folder, capsys)


@pytest.mark.parametrize("made", ["report", "compare"], indirect=True)
@pytest.mark.parametrize("change", ["other prompt", "other seed", "missing", "twice"])
def test_images_that_make_no_pairs_are_refused(made, change, capsys):
    name, folder = made
    file = folder / {"report": OCR_STAR, "compare": TWO}[name] / "images.jsonl"
    first, *others = file.read_text().splitlines()
    lines, told = {
        "other prompt": ([first.replace(" geneval 0", " x"), *others], "only here: 1 (image 0"),
        "other seed": ([first.replace(": 40", ": 7"), *others], "of geneval-0 (geneval), seed 7"),
        "missing": (others, "only here: none, only there: 1 (image 0 of geneval-0"),
        "twice": ([first, first, *others], "image 0 of geneval-0 (geneval), seed 40"),
    }[change]
    file.write_text("\n".join(lines))
    text = refusal(name, folder, capsys)
    assert "images.jsonl: " in text and told in text


def test_images_of_one_prompt_with_two_tags_are_refused(tmp_path, capsys):
    write_params(tmp_path)
    for file in write_run(tmp_path / "results").glob("evaluate/*/images.jsonl"):
        lines = file.read_text().replace('"geneval-1"', '"geneval-2"', 1).splitlines()
        lines[1] = lines[1].replace('"index": 0', '"index": 1')
        file.write_text("\n".join(lines))
    assert "geneval strict: a group has images of two tags" in refusal("report", tmp_path, capsys)


def test_study_runs_of_other_held_out_images_are_refused(tmp_path, capsys):
    write_params(tmp_path)
    PAGES["study"].write(tmp_path)
    file = json.loads((tmp_path / RUN).read_text())
    file["curve"] = [point | {"graded": [0.5], "exact": [1.0]} for point in file["curve"]]
    (tmp_path / RUN).write_text(json.dumps(file))
    text = refusal("study", tmp_path, capsys)
    assert f"{RUN}: curve: 1 held-out images, but 2 in" in text and "flow_grpo" in text


def test_folders_that_cannot_be_compared_are_refused(tmp_path, capsys):
    write_compared(tmp_path)
    one, two = command("compare", tmp_path)[1:3]
    (tmp_path / "link").symlink_to(one)
    training = Path(two).parents[1] / "train" / "geneval-star"
    for folders, told in (
        ([one], "only one run"),
        ([one, two, one], f"{one}: given twice"),
        ([one, str(tmp_path / "link")], f"link: given twice, as {one} too"),
        ([one, str(training)], f"{training}: not an evaluation"),
        ([one, str(tmp_path / "missing")], "missing: not an evaluation"),
        ([one, two, "--output", str(tmp_path)], f"{tmp_path}: a folder"),
    ):
        assert main(["compare", *folders]) == 1
        assert told in capsys.readouterr().err


@pytest.mark.parametrize("made", ["report", "compare"], indirect=True)
def test_what_is_optional_may_be_missing(made):
    name, folder = made
    results = folder / ("results" if name == "report" else "two/results")
    shutil.rmtree(results / "train" / "geneval-star")
    shutil.rmtree(results / "evaluate" / "geneval-star" / "images")
    text = re.sub(r"\s+", " ", Outline(written(name, folder)).text)
    assert "No log was found for" in text and "no image" in text
