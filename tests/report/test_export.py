"""The exported folder: what it holds, that plain diffusers loads it, and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import StableDiffusion3Pipeline

from star.cli import main
from star.config.params import fingerprint
from star.config.reading import load_params
from star.report.export import export_adapter
from star.training.resume import parameter_sections
from tests.helpers.training import policy_of

PARAMS = load_params(Path("params.yaml"))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """The folders of a training of a fresh adapter and of its evaluation, with made-up figures."""
    folder = tmp_path_factory.mktemp("export")
    policy = policy_of(PARAMS.model, precision="no")
    policy.add_adapter(seed=0)
    policy.save_adapter(folder / "training/adapter")
    recorded = parameter_sections(PARAMS.with_method("star"), "ocr")
    recorded |= {"task": "ocr", "method": "star", "code": "0"}
    (folder / "training/parameters.json").write_text(json.dumps(recorded))
    log = {"epoch": 45, "images": 5760, "updates": 90}
    (folder / "training/log.jsonl").write_text(json.dumps(log) + "\n")
    figures = {"reward": {"mean": 0.5, "low": 0.25, "high": 0.75}}
    scores = {"checkpoint": "ocr-star", "task": "ocr", "method": "star"}
    scores |= {"benchmarks": {"ocr": figures, "geneval": {"tags": {}}}}
    evaluated = (PARAMS.model, PARAMS.rewards, PARAMS.evaluate, PARAMS.seed)
    scores |= {"params_fingerprint": fingerprint(*evaluated)}
    (folder / "evaluation").mkdir()
    (folder / "evaluation/scores.json").write_text(json.dumps(scores))
    return folder


@pytest.fixture
def trained(fresh, tmp_path):
    return shutil.copytree(fresh, tmp_path / "done")


def export(folder):
    training, evaluation, output = (
        str(folder / name) for name in ("training", "evaluation", "out")
    )
    return main(["export", "--training", training, "--evaluation", evaluation, "--output", output])


def test_card_has_the_hub_s_front_matter_scores_and_parameters(trained):
    assert export(trained) == 0
    front, text = (trained / "out" / "README.md").read_text(encoding="utf-8").split("---\n")[1:]
    assert yaml.safe_load(front)["library_name"] == "diffusers"
    assert "base_model" not in yaml.safe_load(front)  # models/miniature is no id of the hub
    assert f"num_inference_steps={PARAMS.evaluate.steps}," in text
    assert f"max_sequence_length={PARAMS.model.t5_tokens}," in text
    assert "torch_dtype=torch.float32)" in text and "whose code is not the training's" in text
    assert "| ocr | reward | 0.5000 | 0.2500 to 0.7500 |" in text
    assert "45 epochs, 5,760 images, 90 updates" in text
    assert load_params(trained / "out" / "params.yaml") == PARAMS
    recorded = [trained / part / "parameters.json" for part in ("out", "training")]
    assert recorded[0].read_bytes() == recorded[1].read_bytes()


def test_plain_diffusers_loads_the_folder(trained):
    export(trained)
    pipe = StableDiffusion3Pipeline.from_pretrained(PARAMS.model.path, dtype=torch.float32)
    pipe.load_lora_weights(trained / "out")
    config = pipe.transformer.peft_config["default_0"]
    assert config.lora_alpha == config.r == PARAMS.model.lora_rank


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


SCORES, RECORD = "evaluation/scores.json", "training/parameters.json"
STAR = PARAMS.with_method("star").train
FASTER = dataclasses.asdict(STAR) | {"learning_rate": 1.0}


@pytest.mark.parametrize(
    ("files", "changes", "message"),
    [
        ([SCORES], None, "scores.json: no such file"),
        ([SCORES], {"method": None}, "scores.json: an evaluation of base"),
        (
            [SCORES],
            {"task": "geneval", "checkpoint": "geneval-star"},
            "scores of geneval-star (task geneval, method star), but",
        ),
        (
            [SCORES],
            {"method": "flow_grpo", "checkpoint": "ocr-flow_grpo"},
            "of ocr-flow_grpo (task ocr, method flow_grpo)",
        ),
        ([SCORES], {"checkpoint": "images"}, "scores of images"),
        ([SCORES], {"params_fingerprint": "0"}, "another model, rewards, evaluate or seed"),
        ([SCORES, RECORD], {"method": "ppo", "checkpoint": "ocr-ppo"}, "no method 'ppo' under"),
        ([RECORD], {"train": FASTER}, f"learning_rate 1.0 -> {STAR.learning_rate}; give"),
    ],
)
def test_what_does_not_belong_together_is_refused(trained, capsys, files, changes, message):
    for file in files:
        if changes is None:
            (trained / file).unlink()
        else:
            edit(trained / file, **changes)
    assert export(trained) == 1 and message in capsys.readouterr().err
    assert not (trained / "out").exists()


@pytest.mark.parametrize(("given", "used"), [("abc", None), (None, "abc")])
def test_a_hub_model_is_named_with_its_revision(trained, given, used):
    """The parameters' or, where they want the newest, the one that the training found."""
    edit(trained / "training" / "adapter" / "base.json", revision=used)
    model = dataclasses.replace(PARAMS.model, path="owner/model", revision=given)
    params = dataclasses.replace(PARAMS, model=model)
    recorded = parameter_sections(params.with_method("star"), "ocr")
    edit(trained / "training" / "parameters.json", **recorded)
    edit(
        trained / "evaluation" / "scores.json",
        params_fingerprint=fingerprint(model, params.rewards, params.evaluate, params.seed),
    )
    export_adapter(
        params, Path("params.yaml"), trained / "training", trained / "evaluation", trained / "out"
    )
    text = (trained / "out" / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\nbase_model: owner/model\n")
    assert 'from_pretrained("owner/model", revision="abc", torch_dtype=torch.float32)' in text
