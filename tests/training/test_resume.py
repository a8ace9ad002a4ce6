"""Which states belong to a training: by parameters, prompts, models, precision and code."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from star.config.differences import described
from star.config.params import StudyRun
from star.prompts.records import write_records
from star.study.run import study_identity
from star.system import digests
from star.system.errors import StarError
from star.training.checkpoint import States
from star.training.resume import held_out_identity, state_folder, training_identity
from tests.helpers.training import BASE, ROOT, changed, geneval_records
from workflow.dependencies import RULES


@pytest.fixture
def prompts(tmp_path) -> Path:
    write_records(tmp_path / "prompts.jsonl", geneval_records())
    return tmp_path / "prompts.jsonl"


def test_changed_parameters_make_another_training_and_say_so(tmp_path, prompts, capsys):
    def identity(**train):
        params = changed(BASE, train=train)
        return training_identity(params.with_method("star"), "geneval", "star", prompts)

    first = state_folder(tmp_path / "state", "geneval-star", identity())
    States(first, 2, identity()).save(7, {"a": torch.ones(1)}, {"epoch": 7})
    assert state_folder(tmp_path / "state", "geneval-star", identity()) == first
    other = identity(learning_rate=0.5)
    assert state_folder(tmp_path / "state", "geneval-star", other) != first
    difference = f"train.learning_rate {BASE.train.learning_rate} -> 0.5"
    printed = "".join(capsys.readouterr())
    assert f"{first}: an unfinished training (epoch 7)" in printed and difference in printed
    States(first, 2, {}).finish()
    state_folder(tmp_path / "state", "geneval-star", other)
    assert "".join(capsys.readouterr()) == "", "one that is done is no unfinished one"
    with pytest.raises(StarError, match=f"a state of other parameters, {difference}; set them"):
        States(first, 2, other).newest()


def other_values(values):
    """Yield the values of a nested section, each time with one of them changed."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", {**values, key: v}) for name, v in other_values(value))
        else:
            changes = [*value, 1] if isinstance(value, list) else f"not {value}"
            yield key, {**values, key: changes}


@pytest.mark.parametrize("rule", ["train_policy", "study_run"])
def test_whatever_a_rule_depends_on_makes_another_training(prompts, rule):
    """Else Snakemake runs the rule again, and the finished state writes the old result."""
    values = dataclasses.asdict(BASE)
    run = StudyRun("ocr", "star", 0, 1e-3)

    def identity(values):
        params = dataclasses.replace(BASE, **{n: rebuilt(BASE, n, v) for n, v in values.items()})
        if rule == "study_run":
            return study_identity(params, run, prompts, prompts)
        more = held_out_identity(params, prompts)
        return training_identity(params.with_method("star"), "ocr", "star", prompts, **more)

    known = identity({})
    # How long to wait changes no result, and what the method itself says stands.
    methods = BASE.study.methods if rule == "study_run" else BASE.methods
    own = {f"{top}.{key}" for key in methods["star"] for top in ("allocation", "train", "forward")}
    without_effect = {"rewards.timeout", *own}
    for section in RULES[rule].sections:
        top, _, rest = section.format(task="ocr", method="star").partition(".")
        for key, other in other_values({top: values[top]}):
            name, _, more = key.partition(".")
            if not more.startswith(rest) or key in without_effect or "methods." in key:
                continue
            assert identity(other) != known, key


def rebuilt(params, name, value):
    """Return a section of the parameters with the values of a nested dict."""
    section = getattr(params, name)
    if not dataclasses.is_dataclass(section):
        return value
    fields = {key: rebuilt(section, key, inner) for key, inner in value.items()}
    return dataclasses.replace(section, **fields)


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_other_weights_and_another_precision_make_another_training(tmp_path, prompts, monkeypatch):
    """Of the models that a training opens, and of what `auto` stands for on this machine."""
    base, judge = tmp_path / "base", tmp_path / "judge"
    shutil.copytree(ROOT / "models/miniature", base)
    shutil.copytree(ROOT / "models/miniature-preference", judge)
    params = changed(
        BASE,
        model={"path": str(base), "precision": "auto"},
        rewards={"preference": changed(BASE.rewards, preference={"path": str(judge)}).preference},
    )

    def identity(task="preference", found=("amx_bf16",)):
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda: dict.fromkeys(found, True))
        return training_identity(params.with_method("star"), task, "star", prompts)

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    known, other_task = identity(), identity("ocr")
    assert described(known, identity(found=())) == "computing.precision bf16 -> no"
    flip_a_bit(judge / "model.safetensors")
    assert described(known, identity()).startswith("files.rewards.preference.path ")
    assert identity("ocr") == other_task
    flip_a_bit(base / "vae" / "diffusion_pytorch_model.safetensors")
    assert described(other_task, identity("ocr")).startswith("files.model.path ")
    prompts.write_text("")
    assert "prompts" in identity("ocr") and "prompts " in described(other_task, identity("ocr"))


def test_a_study_method_from_another_adapter_is_another_run(tmp_path, prompts):
    """The adapter of the method itself, by its files."""
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(b"0")
    study = changed(BASE.study, methods={"star": {"init_adapter": str(tmp_path)}})
    run, params = StudyRun("ocr", "star", 0, 1e-3), dataclasses.replace(BASE, study=study)
    known = study_identity(params, run, prompts, prompts)
    flip_a_bit(weights)
    found = study_identity(params, run, prompts, prompts)
    assert described(known, found).startswith("files.train.init_adapter ")


def test_code_is_what_python_reads_too(monkeypatch, tmp_path):
    """World, labels and words decide results; pages and caches do not."""
    monkeypatch.setattr(digests, "__file__", str(tmp_path / "system/digests.py"))
    found = [digests.code_digest()]
    for name in ("a.py", "world.yaml", "labels.txt", "page.css"):
        (tmp_path / name).write_text(name)
        found.append(digests.code_digest())
    assert len({*found}) == 4 and found[3] == found[4]
