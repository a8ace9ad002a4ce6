"""The study's committed figures: README and the image say what the tables say."""

import csv
import re
from pathlib import Path

import pytest

from docs import draw_study, study_rates

ROOT = Path(__file__).resolve().parents[1]
STUDY = ROOT / "docs/study"


def shown(row: dict[str, str], name: str) -> str:
    """A difference as README writes it: bold where zero is outside; empty where there is none."""
    if not row[name]:
        return ""
    mean, low, high = (float(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    text = f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"
    return f"**{text}**" if low > 0 or high < 0 else text


@pytest.mark.parametrize(("task", "first"), [("ocr", 1), ("geneval", 4)])
def test_readme_has_the_scores_of_the_study(task, first):
    with open(STUDY / "scores.csv", encoding="utf-8", newline="") as stream:
        rows = {row["method"]: row for row in csv.DictReader(stream) if row["task"] == task}
    lines = re.findall(
        r"^\| `(\w+)` (\|.*)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    cells = {
        name: [cell.strip() for cell in rest.split("|")] for name, rest in lines if name in rows
    }
    assert cells.keys() == rows.keys()
    for name, row in rows.items():
        graded, to_flow_grpo, to_control = cells[name][first : first + 3]
        assert graded == f"{float(row['graded']):.3f}", name
        if name not in (
            "shuffled",
            "clauses_shuffled",
        ):  # controls are compared with nothing in README
            assert to_flow_grpo == shown(row, "to_flow_grpo"), name
            assert name == "flow_grpo" or to_control == shown(row, "to_control"), name


def test_the_image_of_the_curves_is_that_of_the_table(tmp_path, monkeypatch):
    (tmp_path / "curves.csv").write_bytes((STUDY / "curves.csv").read_bytes())
    monkeypatch.setattr(draw_study, "FOLDER", tmp_path)
    draw_study.main()
    assert (tmp_path / "curves.svg").read_text() == (STUDY / "curves.svg").read_text()


def test_the_tables_of_other_rates_are_those_of_the_curves(capsys):
    study_rates.main()
    printed = capsys.readouterr().out.split("\n\n")
    page = (STUDY / "README.md").read_text(encoding="utf-8")
    assert len(printed) == 2 and all(table.strip() in page for table in printed)
