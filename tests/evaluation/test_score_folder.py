"""A folder of images from outside: every bad one is refused before a reward is built."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from star.cli import main
from star.config.reading import load_params
from star.evaluation.score_folder import score_folder
from star.prompts.prepare import prepare
from star.prompts.records import write_records
from star.system.errors import StarError
from tests.helpers.lines import read_lines

PARAMS = load_params(Path("params.yaml"))


def folder_of(path: Path, records) -> Path:
    """Noise, one image a record."""
    path.mkdir()
    for i, record in enumerate(records):
        noise = np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(path / f"{record.id}_0.png")
    return path


def test_a_bad_image_costs_no_scoring(tmp_path, monkeypatch):
    records = prepare("ocr", PARAMS.prompts, PARAMS.seed)[1][:3]
    folder, output = folder_of(tmp_path / "images", records), tmp_path / "out"
    last = folder / f"{records[-1].id}_0.png"
    built = "star.evaluation.score_folder.build_reward"
    monkeypatch.setattr(built, lambda *_: pytest.fail("a reward was built"))
    last.write_bytes(last.read_bytes()[:-5000])
    with pytest.raises(StarError, match=last.name):
        score_folder(PARAMS, "ocr", records, folder, output)
    last.unlink()
    with pytest.raises(StarError, match=f"1 of 3 .*{last.name}"):
        score_folder(PARAMS, "ocr", records, folder, output)
    with pytest.raises(StarError, match=f"{records[0].id}.*geneval"):
        score_folder(PARAMS, "geneval", records, folder, output)
    assert not output.exists()


def test_the_command_scores_a_folder(tmp_path, capsys):
    records = prepare("geneval", PARAMS.prompts, PARAMS.seed)[1][:2]
    write_records(tmp_path / "test.jsonl", records)
    folder = folder_of(tmp_path / "images", records)
    files = ["--prompts", str(tmp_path / "test.jsonl"), "--images", str(folder)]
    output = tmp_path / "out"
    assert main(["score", "--task", "geneval", *files, "--output", str(output)]) == 0
    scores = json.loads((output / "scores.json").read_text())
    assert list(scores["benchmarks"]) == ["geneval"] and scores["images"] == str(folder)
    assert scores["benchmarks"]["geneval"]["strict"]["mean"] == 0  # noise shows nothing
    assert [x["id"] for x in read_lines(output / "images.jsonl")] == [r.id for r in records]
    assert '"geneval_strict"' in capsys.readouterr().out
