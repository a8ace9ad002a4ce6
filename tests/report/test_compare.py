"""Runs against each other: hand-worked differences, labels, refusals, and what the table and the
page say."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from star.cli import main
from star.evaluation.statistics import Interval
from star.report.compare import compare_runs
from star.report.compare.content import ParameterRow, choose_pairs, differing_parameters
from star.report.compare.page import RESAMPLES, SEED
from star.report.compare.runs import labels, load_runs
from star.report.comparison import Comparison, compare
from star.report.run import Run
from tests.helpers.pages import EVIL, Outline, decoded

TAGS = ("counting", "counting", "counting", "position")
# Scores of the four prompts of each task, by run.
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
PARAMETERS = {
    **{"task": "geneval", "method": "star", "seed": 0, "model": {"lora_rank": 16}, "core": {}},
    **{
        "rollout": {"steps": 10},
        "train": {"learning_rate": 1e-3},
        "allocation": {"lam": 1.5, "blocks": [0, 6]},
    },
    **{"reward": {"soft": "clamped"}, "code": "00ff", "prompts": "ff00"},
}


def detail_of(task: str, k: int, score: float) -> dict:
    if task == "geneval":
        return {"tag": TAGS[k], "strict": score > 0.5, "soft": score}
    return {"score": score} | ({"read": f"R{k}", "exact": score > 0.8} if task == "ocr" else {})


def benchmarks_of(scores: dict) -> dict:
    """The means of scores.json, each with an interval of any kind; GenEval's are means of the two
    tags' means."""

    def interval(mean: float) -> dict:
        return {"mean": mean, "low": mean - 0.125, "high": mean + 0.125}

    def mean(values: list) -> float:
        return sum(values) / len(values)

    graded, signs, liked = (scores[task] for task in ("geneval", "ocr", "preference"))
    strict = [float(score > 0.5) for score in graded]
    by_tag = {
        key: mean([mean(v[:3]), v[3]]) for key, v in (("strict", strict), ("soft", list(graded)))
    }
    return {
        "geneval": {key: interval(value) for key, value in by_tag.items()},
        "ocr": {
            "reward": interval(mean(signs)),
            "exact": interval(mean([score > 0.8 for score in signs])),
        },
        "preference": {"score": interval(mean(liked))},
    }


def write_run(
    folder: Path, scores: dict = FIRST, parameters: dict | None = None, color: int = 0
) -> Path:
    """A run as the pipeline leaves it; its training has a reward of 0.5 in seven epochs and of 1 in
    the last five."""
    task, _, method = folder.name.partition("-")
    (folder / "images").mkdir(parents=True)
    lines = []
    for own, values in scores.items():
        for k, score in enumerate(values):
            image = f"images/{own}-{k}.png"
            Image.new("RGB", (8, 8), (color, 10 * k, len(own))).save(folder / image)
            line = {
                "id": f"{own}-{k}",
                "task": own,
                "index": 0,
                "seed": 40 + k,
                "prompt": f"{EVIL} {own} {k}",
            }
            lines.append(
                {**line, "score": score, "detail": detail_of(own, k, score), "image": image}
            )
    (folder / "images.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    file = {
        "checkpoint": folder.name,
        "task": task if method else None,
        "method": method or None,
        "seconds": {},
    }
    quality = {own: {"edges": {"mean": 0.375, "low": 0.25, "high": 0.5}} for own in scores}
    file |= {"benchmarks": benchmarks_of(scores), "quality": quality, "params_fingerprint": "0f0f"}
    (folder / "scores.json").write_text(json.dumps(file))
    if method:
        training = folder.parent.parent / "train" / folder.name
        training.mkdir(parents=True)
        rows = [
            {"epoch": e, "images": 128 * e, "reward_mean": 1.0 if e > 7 else 0.5}
            for e in range(1, 13)
        ]
        (training / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if parameters is not None:
            (training / "parameters.json").write_text(json.dumps(parameters))
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two trainings of one name in two results trees; they differ in the seed and in one key of the
    allocation."""
    other = {**PARAMETERS, "seed": 1, "allocation": {"lam": 1.5, "blocks": [0, 7], EVIL: True}}
    return [
        write_run(
            tmp_path / "one" / "results" / "evaluate" / "geneval-star", FIRST, PARAMETERS, 100
        ),
        write_run(tmp_path / "two" / "results" / "evaluate" / "geneval-star", SECOND, other, 200),
    ]


def page_of(folders: list[Path]) -> str:
    output = folders[0].parents[3] / "compare.html"
    compare_runs(folders, output)
    return output.read_text(encoding="utf-8")


def words_of(page: str) -> str:
    return re.sub(r"\s+", " ", Outline(page).text)


def compared(folders: list[Path]) -> Comparison:
    first, *others = (run.checkpoint for run in load_runs(folders))
    return compare(Run(first, tuple(others), ()), RESAMPLES, SEED)


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_paired_differences_by_hand(folders):
    strict, soft, reward, exact, preference = compared(folders).cells[
        "two/results/evaluate/geneval-star"
    ]
    # Three of counting gain 1, one of position nothing: (1 + 0) / 2, and resampling within tags
    # changes nothing.
    assert strict.difference == soft.difference == Interval(0.5, 0.5, 0.5)
    assert (soft.score.mean, soft.score.low, soft.score.high) == (0.625, 0.5, 0.75)
    # One sign of four gains 0.5. A resample without it has probability 0.75^4 = 0.32, one with it
    # three times or more 0.051, four times 0.0039: the 2.5 % and 97.5 % points are none and three
    # of four.
    assert reward.difference == Interval(0.125, 0.0, 0.375)
    assert exact.difference == Interval(0.25, 0.0, 0.75)
    assert preference.difference == Interval(
        0.5, 0.5, 0.5
    )  # the same gain everywhere leaves nothing to chance
    assert all(
        cell.difference is None
        for cell in compared(folders).cells["one/results/evaluate/geneval-star"]
    )


def test_pairs_are_made_by_identity_not_by_line(folders):
    expected = compared(folders)
    path = folders[1] / "images.jsonl"
    path.write_text("\n".join(reversed(path.read_text().splitlines())))
    assert compared(folders) == expected


def test_labels_are_the_shortest_ends_that_tell_the_runs_apart():
    paths = [
        Path(p)
        for p in ("/a/r/evaluate/x", "/b/r/evaluate/x", "/b/r/evaluate/y", "/c/b/r/evaluate/x")
    ]
    assert labels(paths) == ["a/r/evaluate/x", "/b/r/evaluate/x", "y", "c/b/r/evaluate/x"]
    assert labels([Path("/r/evaluate/base"), Path("/r/evaluate/ocr-star")]) == ["base", "ocr-star"]


def test_table_of_the_terminal(folders, tmp_path, capsys):
    base = write_run(tmp_path / "one" / "results" / "evaluate" / "base")
    assert main(["compare", *map(str, [*folders, base])]) == 0
    text = re.sub(r" +", " ", capsys.readouterr().out)
    one, two = "one/results/evaluate/geneval-star", "two/results/evaluate/geneval-star"
    assert (
        f"{one} 0.125 [0.000, 0.250]\n{two} 0.625 [0.500, 0.750] +0.500 [+0.500, +0.500] *\n"
        in text
    )
    assert f"{two} 0.625 [0.500, 0.750] +0.125 [+0.000, +0.375]\n" in text
    assert f"{one} geneval star 12 1,536 1.000\n" in text and "base untrained\n" in text
    assert f"images, OCR edges\n{one} 0.375\n" in text
    assert f"parameters that differ {one} {two} base\n" in text
    assert "allocation.blocks [0, 6] [0, 7] -\n" in text and "seed 0 1 -\n" in text
    assert not list(tmp_path.glob("*.html"))  # a page only where one is asked for


def test_page_is_one_balanced_document_that_loads_nothing_and_escapes(folders):
    page = page_of(folders)
    outline = Outline(page)
    assert "script" not in outline.tags and "link" not in outline.tags
    assert outline.addresses and all(
        address.startswith("data:image/") for address in outline.addresses
    )
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    assert "<script" not in page and "<b>" not in page
    assert f"{EVIL} ocr 3" in outline.text and f"allocation.{EVIL}" in outline.text


def test_no_script_of_a_prompt_runs_in_a_browser(folders, chromium, tmp_path):
    page_of(folders)
    options = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
    )
    command = [chromium, *options, (tmp_path / "compare.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert "data-ran" not in shown and "&lt;script&gt;" in shown and "</html>" in shown


def test_page_has_scores_curves_parameters_and_where_the_runs_lie(folders):
    page = page_of(folders)
    text = words_of(page)
    assert "0.625 [0.500, 0.750] ▲ +0.500 [+0.500, +0.500]" in text
    assert (
        "trained on GenEval by star : 1,536 images drawn in 12 epochs, reward 1.000"
        in text.replace("star:", "star :")
    )
    assert (
        page.count('<path class="line c0"') == page.count('<path class="line c1"') == 1
    )  # in one chart
    assert (
        f"allocation.{EVIL} nothing true" in text and "seed 0 1" in text and "lora_rank" not in text
    )
    assert all(str(folder) in text for folder in folders) and text.count("evaluated with 0f0f") == 2
    assert "Evaluated with other" not in text
    edit(folders[1] / "scores.json", "0f0f", "1e1e")
    assert "Evaluated with other models, rewards or settings" in words_of(page_of(folders))


def test_images_that_differ_most_are_shown_in_pairs_of_one_seed(folders):
    runs = load_runs(folders)
    pairs = choose_pairs(runs, "ocr", 3)
    assert [pair.images[0][1].id for pair in pairs] == [
        "ocr-3",
        "ocr-0",
        "ocr-1",
    ]  # only the last differs
    assert [[image.score for _, image in pair.images] for pair in pairs][0] == [0.5, 1.0]
    for pair in pairs:
        (_, left), (_, right) = pair.images
        assert (left.id, left.seed, left.prompt) == (right.id, right.seed, right.prompt)
    embedded = [decoded(address) for address in Outline(page_of(folders)).addresses]
    at = embedded.index((folders[0] / "images/ocr-3.png").read_bytes())
    assert embedded[at + 1] == (folders[1] / "images/ocr-3.png").read_bytes()


def test_one_image_a_prompt_is_shown(folders):
    for folder in folders:
        lines = (folder / "images.jsonl").read_text().splitlines()
        second = lines[7].replace('"index": 0', '"index": 1').replace('"seed": 43', '"seed": 99')
        (folder / "images.jsonl").write_text("\n".join([*lines, second]))
    assert [pair.images[0][1].id for pair in choose_pairs(load_runs(folders), "ocr", 9)].count(
        "ocr-3"
    ) == 1


def test_parameters_that_differ(folders, tmp_path):
    third = write_run(tmp_path / "three" / "results" / "evaluate" / "ocr-star")
    rows = differing_parameters(load_runs([folders[0], third, folders[1]]))
    assert rows == [
        ParameterRow(f"allocation.{EVIL}", ("nothing", None, "true")),
        ParameterRow("allocation.blocks", ("[0, 6]", None, "[0, 7]")),
        ParameterRow("seed", ("0", None, "1")),
    ]
    text = words_of(page_of([folders[0], third]))
    assert "No parameters were recorded (parameters.json of the training) for ocr-star." in text
    assert "no parameters were recorded for ocr-star" in compare_runs([folders[0], third], None)


def test_equal_parameters_and_untrained_runs_are_said_to_be_so(folders, tmp_path):
    base = write_run(tmp_path / "one" / "results" / "evaluate" / "base")
    text = words_of(page_of([base, folders[0]]))
    assert (
        "untrained" in text and "No parameters were recorded" not in text and "No log" not in text
    )
    shutil.copy(
        *(folder.parents[1] / "train" / folder.name / "parameters.json" for folder in folders)
    )
    assert "None: the trainings were asked for the same." in words_of(page_of(folders))
    assert "no recorded parameter differs" in compare_runs(folders, None)


def test_what_is_optional_may_be_missing(folders):
    shutil.rmtree(folders[1].parents[1] / "train")
    shutil.rmtree(folders[1] / "images")
    file = json.loads((folders[1] / "scores.json").read_text())
    del file["quality"]  # as evaluations were before it was measured
    (folders[1] / "scores.json").write_text(json.dumps(file))
    text = words_of(page_of(folders))
    assert "No log was found for two/results/evaluate/geneval-star" in text and "no image" in text
    assert "two/results/evaluate/geneval-star –" in text
    assert "no log" in compare_runs(folders, None)


def test_same_runs_give_the_same_bytes(folders):
    assert page_of(folders) == page_of(folders)
    assert compare_runs(folders, None) == compare_runs(folders, None)


def error_of(folders: list[Path], capsys) -> str:
    """The one line of a refusal; nothing is written."""
    output = folders[0].parents[3] / "compare.html"
    output.write_text("old")
    assert main(["compare", *map(str, folders), "--output", str(output)]) == 1
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and text.startswith("star compare: error: ")
    assert output.read_text() == "old"
    return text


def test_runs_that_are_none_are_refused(folders, tmp_path, capsys):
    assert "only one run; give two or more" in error_of(folders[:1], capsys)
    assert "given twice; give different runs" in error_of([*folders, folders[0]], capsys)
    (tmp_path / "link").symlink_to(folders[0])
    assert f"link: given twice, as {folders[0]} too" in error_of(
        [folders[0], tmp_path / "link"], capsys
    )
    training = folders[1].parents[1] / "train" / "geneval-star"
    assert f"{training}: not an evaluation, it has no scores.json" in error_of(
        [folders[0], training], capsys
    )
    assert "missing: not an evaluation" in error_of([folders[0], tmp_path / "missing"], capsys)
    edit(folders[1] / "scores.json", '"checkpoint"', '"images"')  # as `star score` has it
    assert "scores.json: not the scores of a checkpoint" in error_of(folders, capsys)


def test_a_folder_as_page_is_refused(folders, tmp_path, capsys):
    assert main(["compare", *map(str, folders), "--output", str(tmp_path)]) == 1
    assert "a folder; give the name of the HTML file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"seed": 42',
            '"seed": 7',
            "image 0 of geneval-2 (geneval) has seed 7 here and 42 there; differences need",
        ),
        (" ocr 1", " ocr 9", "image 0 of ocr-1 (ocr) has the prompt"),
        (
            '"id": "ocr-2", "task": "ocr", "index": 0',
            '"id": "ocr-2", "task": "ocr", "index": 1',
            "is missing there",
        ),
    ],
)
def test_other_prompts_and_seeds_are_refused_by_what_differs(folders, old, new, message, capsys):
    edit(folders[1] / "images.jsonl", old, new)
    text = error_of(folders, capsys)
    assert message in text and "two/results/evaluate/geneval-star/images.jsonl: " in text


def test_missing_and_repeated_images_are_refused(folders, capsys):
    path = folders[1] / "images.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]))
    text = error_of(folders, capsys)
    assert "0 of 11 images are not in" in text and "1 of its 12 are not here" in text
    assert "image 0 of preference-3 (preference) is missing here" in text
    path.write_text("\n".join([*lines, lines[0]]))
    assert "image 0 of geneval-0 (geneval) appears twice" in error_of(folders, capsys)


BIG = "1" + "0" * 400  # an integer that no float holds


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("evaluate/geneval-star/scores.json", "{", "scores.json: not valid JSON"),
        ("evaluate/geneval-star/scores.json", b"\xff", "scores.json: cannot be read"),
        (
            "evaluate/geneval-star/scores.json",
            '{"checkpoint": "a", "task": "ocr"}',
            "not the scores of a checkpoint",
        ),
        ("evaluate/geneval-star/images.jsonl", '{"id": "a"}', "images.jsonl:1: not a scored image"),
        ("evaluate/geneval-star/images.jsonl", b"\xff", "images.jsonl:1: not UTF-8"),
        ("train/geneval-star/log.jsonl", '{"epoch": 1}', "log.jsonl:1: 'images' is missing"),
        (
            "train/geneval-star/log.jsonl",
            '{"epoch": 1, "images": NaN}',
            "log.jsonl:1: 'images' is missing or not a",
        ),
        (
            "train/geneval-star/log.jsonl",
            f'{{"epoch": {BIG}}}',
            "log.jsonl:1: 'epoch' is missing or not a finite",
        ),
        (
            "train/geneval-star/parameters.json",
            "[]",
            "parameters.json: expected a JSON object, found list",
        ),
        (
            "evaluate/geneval-star/images/ocr-3.png",
            "no image",
            "ocr-3.png: not a readable image",
        ),
    ],
)
def test_damaged_files_are_named(folders, file, text, message, capsys):
    (folders[1].parents[1] / file).write_bytes(text.encode() if isinstance(text, str) else text)
    assert message in error_of(folders, capsys)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "images.jsonl",
            '"soft": 1.0',
            '"soft": NaN',
            "scores.json: geneval.soft is 0.625, but the images",
        ),
        ("images.jsonl", '"score": 0.75', f'"score": {BIG}', "images.jsonl:7: not a scored image"),
        (
            "images.jsonl",
            " ocr 3",
            " ocr \\ud800 3",
            'images.jsonl:8: "\\ud800" is half a surrogate pair',
        ),
        ("images.jsonl", "images/ocr-1.png", "x" * 300, "images.jsonl:6: not a scored image"),
        (
            "scores.json",
            '"mean": 0.625',
            '"mean": 0.5',
            "is 0.5, but the images beside it have 0.625",
        ),
        (
            "scores.json",
            '"ocr": {"reward"',
            '"sign": {"reward"',
            "scores of geneval, preference, sign, but images",
        ),
        ("scores.json", '"mean": 0.375', '"mean": []', "scores.json: not a score file"),
    ],
)
def test_damaged_values_are_refused(folders, file, old, new, message, capsys):
    edit(folders[1] / file, old, new)
    assert message in error_of(folders, capsys)


def test_text_that_a_terminal_cannot_hold_is_replaced(folders):
    for folder in folders:
        edit(folder / "scores.json", '"method": "star"', '"method": "st\\u001b[31mar"')
    table = compare_runs(folders, None)
    assert "st?[31mar" in table and "\x1b" not in table


def test_comparing_needs_no_torch(folders):
    code = (
        f"import sys\nfrom star.cli import main\nassert main(['compare', *{list(map(str, folders))!r}]) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
