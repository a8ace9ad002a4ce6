"""The exported folder: what it holds, that plain diffusers loads it, and what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import StableDiffusion3Pipeline

from star.cli import main
from star.params import load_params
from star.policy import load_policy

PARAMS = load_params(Path("params.yaml"))


@pytest.fixture
def trained(tmp_path):
    """The folders of a training of a fresh adapter and of its evaluation, with made-up figures."""
    policy = load_policy(dataclasses.replace(PARAMS.model, precision="no"), torch.device("cpu"))
    policy.add_adapter(seed=0)
    policy.save_adapter(tmp_path / "training" / "adapter")
    log = {"epoch": 45, "images": 5760, "updates": 90}
    (tmp_path / "training" / "log.jsonl").write_text(json.dumps(log) + "\n")
    interval = {"mean": 0.5, "low": 0.25, "high": 0.75}
    scores = {"task": "ocr", "method": "star", "benchmarks": {"ocr": {"reward": interval}, "geneval": {"tags": {}}}}
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "scores.json").write_text(json.dumps(scores))
    return tmp_path


def export(folder):
    training, evaluation, output = (str(folder / name) for name in ("training", "evaluation", "out"))
    return main(["export", "--training", training, "--evaluation", evaluation, "--output", output])


def test_card_has_the_hub_s_front_matter_scores_and_parameters(trained):
    assert export(trained) == 0
    front, text = (trained / "out" / "README.md").read_text(encoding="utf-8").split("---\n")[1:]
    assert (
        yaml.safe_load(front)["base_model"] == PARAMS.model.path
        and yaml.safe_load(front)["library_name"] == "diffusers"
    )
    assert "| ocr | reward | 0.5000 | 0.2500 to 0.7500 |" in text and "45 epochs, 5,760 images, 90 updates" in text
    assert load_params(trained / "out" / "params.yaml") == PARAMS


def test_plain_diffusers_loads_the_folder(trained):
    export(trained)
    pipe = StableDiffusion3Pipeline.from_pretrained(PARAMS.model.path, dtype=torch.float32)
    pipe.load_lora_weights(trained / "out")
    assert pipe.transformer.peft_config["default_0"].lora_alpha == PARAMS.model.lora_alpha


def test_missing_files_and_an_evaluation_of_base_are_named(trained, capsys):
    scores = trained / "evaluation" / "scores.json"
    scores.write_text(json.dumps({"task": None, "method": None, "benchmarks": {}}))
    assert export(trained) == 1 and "an evaluation of the base model" in capsys.readouterr().err
    scores.unlink()
    assert export(trained) == 1 and "scores.json: no such file" in capsys.readouterr().err
    assert not (trained / "out").exists()
