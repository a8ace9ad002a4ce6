"""What the rules share: which code a rule runs, one run at a time, and where two parameter values differ."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from star.errors import StarError
from workflow import support

ROOT = Path(__file__).resolve().parents[1]


def test_code_files_follow_lazy_imports_and_take_data_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {
        "star/__init__.py": "",
        "star/errors.py": "",
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


def test_models_of_a_reward_are_inputs_where_they_are_directories(tmp_path: Path, default_values: dict) -> None:
    for name in ("detector", "colors", "taste"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").touch()
        (tmp_path / name / "README.md").touch()
    rewards = default_values["rewards"]
    rewards["preference"]["path"] = str(tmp_path / "taste")
    rewards["geneval"] |= {"path": str(tmp_path / "detector"), "color_path": str(tmp_path / "colors")}

    def folders(*tasks: str) -> list[str]:
        return [Path(file).parent.name for file in support.reward_model_files(default_values, *tasks)]

    assert folders("geneval") == ["detector", "colors"]
    assert folders("ocr") == []
    assert folders("geneval", "preference") == ["detector", "colors", "taste"]
    rewards["geneval"] |= {"path": "owner/hub-id", "color_path": None}
    assert folders("geneval") == []


def test_one_run_at_a_time_and_none_after_a_kill(tmp_path: Path) -> None:
    lock = tmp_path / "folder" / "lock"
    program = (
        "import sys; from pathlib import Path; from workflow import support\n"
        f"support.take_lock(Path({str(lock)!r})); print('taken', flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "DVC_STAGE": "train"}
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "taken\n"
        with pytest.raises(StarError, match=rf"dvc repro \(process {owner.pid}\) is at work"):
            support.take_lock(lock)
        owner.kill()
        owner.wait()
    os.close(support.take_lock(lock))


def test_differing_keys_are_dotted() -> None:
    left = {"a": {"b": 1, "c": [1]}, "d": None}
    assert list(support.differing_keys(left, {"a": {"b": 1, "c": [1]}, "d": None})) == []
    assert list(support.differing_keys(left, {"a": {"b": 2, "c": [1]}, "e": 0})) == ["a.b", "d", "e"]
