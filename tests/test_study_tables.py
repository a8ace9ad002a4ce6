"""The study's tables and image in the docs, made of a study of made-up runs."""

import re
import shutil
from pathlib import Path

import pytest

from docs import draw_study, study_tables
from star.config.reading import load_params
from star.study.page import write_study
from tests.helpers.results import METHODS, write_params, write_study_runs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of a study, where its generators look for them."""
    params = load_params(write_params(tmp_path))
    runs = write_study_runs(params.study, tmp_path / "runs")
    write_study(params, runs, tmp_path / "study" / "index.html")
    shutil.copytree(tmp_path / "study", tmp_path / "study/again")
    monkeypatch.chdir(tmp_path)
    for module in (study_tables, draw_study):
        monkeypatch.setattr(module, "FOLDER", tmp_path / "study")
        monkeypatch.setattr(module, "PARAMS", Path("params.yaml"))
    return tmp_path / "study"


def cells(lines: list[str]) -> dict[str, list[str]]:
    """Return the cells of a table's rows by the first, with plain spaces and minus signs."""
    plain = (line.replace("\N{NO-BREAK SPACE}", " ").replace("−", "-") for line in lines)
    rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in plain)
    return {first: others for first, *others in rows}


def test_scores_have_each_reference_once(folder: Path) -> None:
    found = cells(study_tables.scores("geneval"))
    assert list(found)[2:] == [f"`{name}`" for name in METHODS]
    assert found["`flow_grpo`"] == ["0.510", "", "", "", "", ""]
    gain, over = "**+0.200 (+0.200 to +0.200)**", "**+0.300 (+0.300 to +0.300)**"
    assert found["`star`"] == ["0.710", gain, "", over, "0.38 (0.38 to 0.38)", ""]
    assert found["`lost`"][-2:] == ["not reached", ""]
    shares = ["0.30 (0.30 to 0.31)", "0.40 (0.40 to 0.40)"]
    assert found["`awm_star`"] == ["0.810", over, gain, "", *shares]
    assert found["`awm`"][2:] == ["", "", "0.50 (0.50 to 0.50)", ""]


def test_rewards_are_those_of_the_training(folder: Path) -> None:
    """Half of the made-up epochs reward the final score, half 0.2 less."""
    found = cells(study_tables.rewards("ocr"))
    gain, over = "**+0.200 (+0.200 to +0.200)**", "**+0.300 (+0.300 to +0.300)**"
    assert found["`flow_grpo`"] == ["0.410", "", ""]
    assert found["`star`"] == ["0.610", gain, over]
    assert found["`awm_star`"] == ["0.710", gain, ""]


def test_finding_has_both_aims(folder: Path) -> None:
    found = cells(study_tables.finding())
    assert found["`awm`: share of the images of `flow_grpo`"] == ["0.50 (0.50 to 0.50)"] * 2
    assert not any(row.startswith("`awm_star`") for row in found), "the best may be a control"
    assert found["`star`: share of the images of `flow_grpo`"] == ["0.38 (0.38 to 0.38)"] * 2
    assert found["`star` minus `flow_grpo`"] == ["**+0.200 (+0.200 to +0.200)**"] * 2


def test_other_seeds_have_rows_of_their_own(folder: Path) -> None:
    """Of the methods that they have; the made-up ones lack `awm` on both tasks."""
    file = folder / "again/scores.csv"
    text = re.sub(r"^\w+,awm,.*\n", "", file.read_text(), flags=re.M)
    file.write_text(re.sub("^(ocr,star,)0.71", r"\g<1>0.72", text, flags=re.M))
    for part, score in (".", "0.710"), ("again", "0.720"):
        assert cells(study_tables.scores("ocr", part))["`star`"][0] == score
    heads = [line.split(" | ")[0].strip("| ") for line in study_tables.finding()[2:6]]
    assert [head.partition(":")[0] for head in heads] == [
        "`awm`",
        "`star`",
        "the same, ten other seeds",
        "`star` minus `flow_grpo`",
    ]


def test_a_method_that_did_not_run_on_a_task_is_left_out_there(folder: Path) -> None:
    for file in (folder / "scores.csv", folder / "curves.csv", folder / "watch.csv"):
        lines = file.read_text().splitlines()
        kept = [line for line in lines if not line.startswith("geneval,lost,")]
        assert len(kept) < len(lines)
        file.write_text("\n".join(kept) + "\n")
    for table in (study_tables.scores, study_tables.rewards, study_tables.watched):
        assert "`lost`" not in cells(table("geneval")) and "`lost`" in cells(table("ocr"))
    draw_study.main()
    assert (folder / "curves.svg").read_text().count(">lost<") == 1


@pytest.mark.parametrize(("task", "figures"), [("ocr", 6), ("geneval", 5)])
def test_watched_figures_are_changes_from_base(folder: Path, task: str, figures: int) -> None:
    found = cells(study_tables.watched(task))
    assert found["base model"][-1] == "1.500" and len(found["base model"]) == figures
    assert found["`awm`"][-1] == "**-1.000 (-1.000 to -1.000)**"


def test_the_image_has_a_panel_for_methods_and_for_controls(folder: Path) -> None:
    draw_study.main()
    image = (folder / "curves.svg").read_text()
    titles = [
        f"{task}, {name}"
        for task in ("GenEval", "OCR")
        for name in ("flow_grpo", "flow_grpo, controls", "awm")
    ]
    assert re.findall(r'class="title"[^>]*>([^<]+)', image) == titles
    assert image.count('role="img"') == len(titles)
