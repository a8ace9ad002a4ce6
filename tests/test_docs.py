"""The study's image and page say what its committed tables say."""

from pathlib import Path

from docs import draw_study, study_rates

ROOT = Path(__file__).resolve().parents[1]
STUDY = ROOT / "docs/study"


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
