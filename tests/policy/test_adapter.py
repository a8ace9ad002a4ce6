"""Adapters: plain diffusers takes them, equal ones are equal bytes, wrong ones are named."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from star.policy.adapter import (
    ADAPTER_FILE,
    PEFT_CONFIG,
    PEFT_FILE,
    base_fingerprint,
    full_strength,
    read_adapter,
)
from star.policy.rollout import sample_images
from star.policy.sd3 import load_policy
from star.system.errors import StarError
from tests.helpers.training import (
    CPU,
    EXACT,
    PROMPTS,
    ROOT,
    assert_same_images,
    policy_of,
    stock_images,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a fresh adapter."""
    folder, policy = tmp_path_factory.mktemp("adapter"), policy_of()
    policy.add_adapter(seed=0)
    policy.save_adapter(folder)
    return folder


@pytest.fixture
def adapter(saved, tmp_path):
    """A copy of it, free to be changed."""
    return shutil.copytree(saved, tmp_path / "adapter")


def test_round_trip_through_plain_diffusers(tmp_path):
    policy = policy_of()
    base = sample_images(policy, PROMPTS, [1, 2], 4)
    parameters = policy.add_adapter(seed=0)
    assert np.array_equal(sample_images(policy, PROMPTS, [1, 2], 4), base), "a fresh one is nothing"
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    trained = sample_images(policy, PROMPTS, [1, 2], 4)
    assert (trained != base).mean() > 0.01
    with policy.reference():
        assert np.array_equal(sample_images(policy, PROMPTS, [1, 2], 4), base)
    policy.save_adapter(tmp_path)
    assert_same_images(trained, stock_images(4, adapter=tmp_path))
    loaded = load_policy(EXACT, CPU, tmp_path)
    assert np.array_equal(sample_images(loaded, PROMPTS, [1, 2], 4), trained)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The images of an adapter of strength 2, its folder, and one in PEFT's form."""
    policy, folder = policy_of(), tmp_path_factory.mktemp("trained")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.add_adapter(seed=0):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    policy.save_adapter(folder / "ours")
    (folder / "peft").mkdir()
    weights = {f"base_model.model.{key}": value for key, value in policy.adapter_state().items()}
    save_file(weights, folder / "peft" / PEFT_FILE)
    config = policy.transformer.peft_config["default"].to_dict()
    (folder / "peft" / PEFT_CONFIG).write_text(
        json.dumps({**full_strength(config), "lora_alpha": 32})
    )
    return sample_images(policy, PROMPTS, [1, 2], 4), folder


def test_programs_that_do_not_read_alpha_draw_the_same_images(trained, tmp_path):
    images, folder = trained
    save_file(load_file(folder / "ours" / ADAPTER_FILE), tmp_path / ADAPTER_FILE)
    assert_same_images(images, stock_images(4, adapter=tmp_path))


@pytest.mark.parametrize("form", ["ours", "peft"])
def test_both_forms_are_evaluated_and_started_from(trained, form):
    images, folder = trained
    loaded = load_policy(EXACT, CPU, folder / form)
    assert np.array_equal(sample_images(loaded, PROMPTS, [1, 2], 4), images)
    started = policy_of()
    started.add_adapter(seed=1)
    started.start_from(folder / form)
    assert np.array_equal(sample_images(started, PROMPTS, [1, 2], 4), images)
    other = policy_of(dataclasses.replace(EXACT, lora_rank=4))
    other.add_adapter(seed=1)
    with pytest.raises(StarError, match="has rank 16; set model.lora_rank to 16"):
        other.start_from(folder / form)


def test_a_strength_that_is_not_alpha_by_rank_is_refused(trained, tmp_path):
    peft = shutil.copytree(trained[1] / "peft", tmp_path / "peft")
    config = json.loads((peft / PEFT_CONFIG).read_text())
    (peft / PEFT_CONFIG).write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(StarError, match="use_dora is not supported"):
        read_adapter(peft)


@pytest.mark.slow
def test_the_same_adapter_gives_the_same_bytes_in_another_process(saved, tmp_path):
    program = (
        "import sys; from pathlib import Path; from tests.helpers.training import policy_of\n"
        "policy = policy_of(); policy.add_adapter(0); policy.save_adapter(Path(sys.argv[1]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-c", program, tmp_path]
    subprocess.run(command, check=True, env=environment, cwd=ROOT)
    for file in saved.iterdir():
        assert file.read_bytes() == (tmp_path / file.name).read_bytes(), file.name


def test_it_leaves_the_image_only_attention_alone(saved):
    with safe_open(saved / ADAPTER_FILE, framework="pt") as opened:
        names = set(opened.keys())
    assert len(names) == 126 and not any("attn2" in name for name in names)


def test_one_of_another_base_is_refused_wherever_the_base_lies(saved, tmp_path):
    shutil.copytree(EXACT.path, tmp_path / "moved")
    moved = dataclasses.replace(EXACT, path=str(tmp_path / "moved"))
    load_policy(moved, CPU, saved)
    transformer = SD3Transformer2DModel.from_pretrained(EXACT.path, subfolder="transformer")
    transformer.proj_out.weight.data[0, 0] += 1e-3
    transformer.save_pretrained(tmp_path / "moved/transformer")
    with pytest.raises(StarError, match=f"another base, {EXACT.path}, and not on {moved.path}"):
        load_policy(moved, CPU, saved)


def test_a_base_is_told_from_one_that_was_trained_further_in_any_layer():
    policy = policy_of()
    known = base_fingerprint(policy.transformer)
    policy.add_adapter(seed=0)
    assert base_fingerprint(policy.transformer) == known, "an adapter is no part of the base"
    policy.transformer.transformer_blocks[3].attn.to_k.base_layer.weight.data += 1e-3
    assert base_fingerprint(policy.transformer) != known


@pytest.mark.parametrize("text", ["{", "[]", '{"path": "models/miniature"}'])
def test_one_that_does_not_say_its_base_readably_is_named(adapter, text):
    (adapter / "base.json").write_text(text)
    with pytest.raises(StarError, match="base.json: does not say which base"):
        load_policy(EXACT, CPU, adapter)


def test_one_that_is_cut_short_is_named(adapter):
    file = adapter / ADAPTER_FILE
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(StarError, match=f"{file}: not a readable LoRA adapter"):
        load_policy(EXACT, CPU, adapter)


QUERY = "blocks.0.attn.to_q."


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("transformer.", "unet.", r"126 keys belong to no .* \(unet\..*, and 0 are .* \(none\)"),
        (QUERY, "blocks.0.attn.query.", r"2 keys .*attn.query.lora_A.* 2 are missing .*to_q.lora"),
        (QUERY, "", r"0 keys belong to no .* 2 are missing \(.*blocks.0.attn.to_q.lora_A"),
        (f"{QUERY}lora_B", "", r"0 keys .* 1 are missing \(.*to_q.lora_B.weight\)"),
    ],
)
def test_one_of_other_layers_is_not_taken_for_the_base_model(adapter, old, new, message):
    """Keys are renamed, or left out where the new name is empty."""
    file = adapter / ADAPTER_FILE
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    kept = {key.replace(old, new, 1): t for key, t in tensors.items() if new or old not in key}
    save_file(kept, file, metadata=metadata)
    with pytest.raises(StarError, match=f"{file}: {message}"):
        load_policy(EXACT, CPU, adapter)
