"""What the rules share: the code and the models on which a rule depends, and prompt files."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from star.system.errors import StarError
from tests.helpers.smoke import set_values
from workflow import support
from workflow.dependencies import RULES, Rule


def test_the_digest_follows_every_file_of_the_packages_but_what_dvc_ignores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(name: str, text: str = "") -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")

    monkeypatch.setattr(support, "ROOT", tmp_path)
    rule = Rule("core.smk", "star.prompts.start", ("star/prompts", "star/alone.py"), ())
    monkeypatch.setitem(RULES, "extract_core", rule)
    write(".dvcignore", "*.pyc\nstar/prompts/messages.py\n")
    for name in ("star/prompts/start.py", "star/prompts/part/words.txt", "star/alone.py"):
        write(name)
    digests = [support.code_digest("extract_core")]
    for name, counts in {
        "star/prompts/messages.py": False,
        "star/prompts/__pycache__/start.pyc": False,
        "star/report/page.py": False,
        "star/prompts/new.py": True,
        "star/prompts/part/words.txt": True,
        "star/alone.py": True,
    }.items():
        write(name, "changed")
        digests.append(support.code_digest("extract_core"))
        assert (digests[-1] != digests[-2]) == counts, name


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
        files = support.reward_model_files(default_values, *tasks)
        return [Path(file).parent.name for file in files]

    assert folders("geneval") == ["detector", "colors"]
    assert folders("ocr") == []
    assert folders("geneval", "preference") == ["detector", "colors", "taste"]
    rewards["geneval"] |= {"path": "owner/hub-id", "color_path": None}
    assert folders("geneval") == []


def test_the_adapter_of_a_methods_start_is_an_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, default_values: dict
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("models/one", "models/two/adapter"):
        (tmp_path / name).mkdir(parents=True)
        for file in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
            (tmp_path / name / file).touch()
    names = ["adapter_config.json", "adapter_model.safetensors"]
    assert support.initial_adapter_files(default_values, {}) == []
    default_values["train"]["init_adapter"] = "models/one"
    for changes, folder in (({}, "one"), ({"init_adapter": "models/two"}, "two/adapter")):
        expected = [f"models/{folder}/{name}" for name in names]
        assert support.initial_adapter_files(default_values, changes) == expected
    assert support.initial_adapter_files(default_values, {"init_adapter": None}) == []


@pytest.mark.parametrize(
    "outside",
    ["signs.txt", "data/prompts/../signs.txt", "/etc/passwd", "data/prompts/fetched/signs.txt"],
)
def test_own_prompt_files_must_be_where_dvc_looks(outside: str, default_values: dict) -> None:
    default_values["prompts"]["ocr"]["test_file"] = outside
    with pytest.raises(StarError, match=r"prompts\.ocr\.test_file"):
        support.prompt_files(default_values, "ocr")


@pytest.mark.parametrize("key", ["url", "sha256"])
def test_address_and_checksum_of_a_prompt_set_are_parameters(
    key: str, default_values: dict
) -> None:
    source = {"url": "http://127.0.0.1:1/signs.txt", "sha256": "0" * 64}
    default_values["prompts"]["ocr"]["test_file"] = source
    before = support.sections(default_values, "prepare_prompts", task="ocr")
    source[key] += "1"
    assert support.sections(default_values, "prepare_prompts", task="ocr") != before


@pytest.mark.parametrize(
    ("changes", "given", "expected"),
    [
        ({}, {"seed": 0}, None),
        ({}, {"seed": 3}, "--config seed: "),
        ({}, {"sede": 3}, "--config sede: "),
        ({"train.epochs": -1}, {}, "train.epochs: -1 "),
        ({"prompts.ocr.test_file": "signs.txt"}, {}, "prompts.ocr.test_file: 'signs.txt' "),
        *(
            ({key: folder}, {}, f"train.init_adapter: '{folder}' is not below models; copy it")
            for key in ("train.init_adapter", "study.methods.star.init_adapter")
            for folder in ("results/train/ocr-star/adapter", "models", "models/../start")
        ),
    ],
)
def test_parameters_and_settings_of_snakemake_are_checked(
    changes: dict, given: dict, expected: str | None, write_params: Callable, default_values: dict
) -> None:
    path = write_params(default_values)
    set_values(path, changes)
    with pytest.raises(StarError, match=expected) if expected else nullcontext():
        support.checked_values(given, path)
