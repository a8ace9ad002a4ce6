"""What the rules share: which code a rule runs, one run at a time, and where two parameter values
differ."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from star.system.errors import StarError
from workflow import support

ROOT = Path(__file__).resolve().parents[2]


def test_code_files_follow_lazy_imports_and_take_data_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {
        "star/__init__.py": "",
        "star/system/errors.py": "",
        "star/start.py": "import star.errors\ndef f():\n    from star.part.lazy import g",
        "star/part/__init__.py": "",
        "star/part/lazy.py": "import json\ng = 1",
        "star/part/words.txt": "word",
        "star/part/other.py": "",
        "star/unused.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setitem(support.ENTRY, "train_policy", "star.start")
    assert support.code_files("train_policy", tmp_path) == [
        "star/__init__.py",
        "star/part/__init__.py",
        "star/part/lazy.py",
        "star/part/words.txt",
        "star/start.py",
    ]


def test_models_of_a_reward_are_inputs_where_they_are_directories(
    tmp_path: Path, default_values: dict
) -> None:
    for name in ("detector", "colors", "taste"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").touch()
        (tmp_path / name / "README.md").touch()
    rewards = default_values["rewards"]
    rewards["preference"]["path"] = str(tmp_path / "taste")
    rewards["geneval"] |= {
        "path": str(tmp_path / "detector"),
        "color_path": str(tmp_path / "colors"),
    }

    def folders(*tasks: str) -> list[str]:
        return [
            Path(file).parent.name for file in support.reward_model_files(default_values, *tasks)
        ]

    assert folders("geneval") == ["detector", "colors"]
    assert folders("ocr") == []
    assert folders("geneval", "preference") == ["detector", "colors", "taste"]
    rewards["geneval"] |= {"path": "owner/hub-id", "color_path": None}
    assert folders("geneval") == []


@pytest.mark.parametrize("cmd", ["snakemake", "dvc repro"])
def test_entries_that_a_kill_left_in_dvcs_table_are_in_nobodys_way(tmp_path, monkeypatch, cmd):
    from workflow import dvc_lock

    monkeypatch.chdir(tmp_path)
    table = tmp_path / ".dvc/tmp/rwlock"
    table.parent.mkdir(parents=True)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    pid = (
        os.getpid() if cmd == "snakemake" else ended.pid
    )  # of Snakemake's even where the number is another's now
    results = str(tmp_path / "results")
    table.write_text(json.dumps({"write": {results: {"pid": pid, "cmd": cmd}}, "read": {}}))
    dvc_lock.hold()
    assert json.loads(table.read_text())["write"] == {
        results: {"pid": os.getpid(), "cmd": "snakemake"}
    }
    dvc_lock.release(os.getpid())
    assert not json.loads(table.read_text())["write"]


def test_a_table_of_dvcs_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    from workflow import dvc_lock

    monkeypatch.chdir(tmp_path)
    table = tmp_path / ".dvc/tmp/rwlock"
    table.parent.mkdir(parents=True)
    table.write_text("{")
    for use in (dvc_lock.hold, dvc_lock.release):
        with pytest.raises(
            StarError, match=r"\.dvc/tmp/rwlock: .*; delete it if no DVC command runs"
        ):
            use()
