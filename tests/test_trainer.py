"""The trainer on the miniature, two epochs at a time: ratios, lam = 0, determinism, resume, what is left behind."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from star.core import extract_core
from star.errors import StarError
from star.params import load_params
from star.policy import load_policy
from star.prompts.prepare import prepare
from star.rewards.base import RewardResult, finished
from star.trainer import Trainer, plan_epoch, train

BASE = load_params(Path("params.yaml"))


class Redness:
    """A smooth reward that every picture has: share of red, so that groups have variance on any base model."""

    name = "redness"

    def submit(self, images, records):
        scores = (images[..., 0].astype(np.float32) - images[..., 2]).mean((1, 2)) / 255
        return finished(RewardResult(scores, [{} for _ in records]))

    def close(self):
        pass


def small(**train_changes):
    settings = {"epochs": 2, "prompts_per_epoch": 4, "group_size": 4, "updates_per_epoch": 2, "sample_every": 1}
    return dataclasses.replace(
        BASE,
        rollout=dataclasses.replace(BASE.rollout, steps=4, window=[0, 2], batch=8),
        train=dataclasses.replace(BASE.train, **(settings | {"save_every": 1, "tracker": "none"} | train_changes)),
        prompts=dataclasses.replace(BASE.prompts, geneval=dataclasses.replace(BASE.prompts.geneval, train=32, test=12)),
    )


@pytest.fixture(scope="module")
def records():
    return [dataclasses.replace(r, core=extract_core(r)) for r in prepare("geneval", small())[0]]


def trainer(params, method, records):
    return Trainer(params, params.methods[method], records, Redness(), load_policy(params.model, torch.device("cpu")))


def adapter_bytes(run):
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in run.parameters)).hexdigest()


@pytest.mark.parametrize("method", ["star", "flow_grpo"])
def test_first_ratio_is_exactly_one_and_every_parameter_moves(method, records):
    run = trainer(small(learning_rate=1e-2), method, records)
    before = [p.detach().clone() for p in run.parameters]
    lines = [run.train_epoch(), run.train_epoch()]
    assert [line["first_ratio_error"] for line in lines] == [0.0, 0.0]
    assert lines[1]["ratio_max"] > 1 > lines[1]["ratio_min"], "the second update of an epoch is off-policy"
    names = [name for name, p in run.policy.transformer.named_parameters() if p.requires_grad]
    moved = {name: bool((p != b).any()) for name, p, b in zip(names, run.parameters, before, strict=True)}
    last = f"transformer_blocks.{len(run.policy.transformer.transformer_blocks) - 1}.attn.add_q_proj"
    assert [name for name, did in moved.items() if not did and not name.startswith(last)] == []
    assert (lines[0]["map_entropy"] is None) == (method == "flow_grpo")


def test_no_strength_is_flow_grpo_bit_for_bit(records):
    params = small(learning_rate=1e-2)
    flat = dataclasses.replace(params, allocation=dataclasses.replace(params.allocation, lam=0.0))
    runs = [trainer(flat, "star", records), trainer(params, "flow_grpo", records)]
    lines = [[run.train_epoch() for _ in range(2)][-1] for run in runs]
    assert adapter_bytes(runs[0]) == adapter_bytes(runs[1])
    assert lines[0]["reward_mean"] == lines[1]["reward_mean"]


def test_star_differs_from_flow_grpo(records):
    runs = [trainer(small(learning_rate=1e-2), method, records) for method in ("star", "flow_grpo")]
    for run in runs:
        run.train_epoch()
    assert adapter_bytes(runs[0]) != adapter_bytes(runs[1])


def test_resumed_equals_uninterrupted(tmp_path, records):
    straight = trainer(small(), "star", records)
    lines = [straight.train_epoch() for _ in range(3)]
    first = trainer(small(), "star", records)
    first.train_epoch()
    first.save(tmp_path / "state.safetensors")
    second = trainer(small(), "star", records)
    second.restore(tmp_path / "state.safetensors")
    resumed = [second.train_epoch() for _ in range(2)]
    assert adapter_bytes(second) == adapter_bytes(straight)
    assert all(torch.equal(a, b) for a, b in zip(second.average.values, straight.average.values, strict=True))
    timeless = ("seconds", "images_per_s")
    for ours, theirs in zip(resumed, lines[1:], strict=True):
        assert {k: v for k, v in ours.items() if k not in timeless} == {
            k: v for k, v in theirs.items() if k not in timeless
        }


def test_a_training_raises_its_reward(records):
    run = trainer(small(learning_rate=3e-3, group_size=8, prompts_per_epoch=2), "star", records[:2])
    rewards = [run.train_epoch()["reward_mean"] for _ in range(8)]
    assert np.mean(rewards[-2:]) > np.mean(rewards[:2])


def test_kl_is_logged_and_zero_at_the_base(records):
    for beta in (0.0, 0.1):
        run = trainer(small(kl_beta=beta, updates_per_epoch=1), "star", records)
        assert run.train_epoch()["kl"] == 0.0
        assert run.train_epoch()["kl"] > 0.0


def test_train_leaves_adapter_log_samples_and_maps(tmp_path, records):
    work, output = tmp_path / "state", tmp_path / "out"
    train(small(), "geneval", "star", records, work, output)
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert [line["images"] for line in lines] == [16, 32]
    assert (output / "adapter" / "pytorch_lora_weights.safetensors").is_file()
    assert (output / "samples" / "epoch_0002.png").is_file()
    entries = json.loads((output / "maps" / "maps.json").read_text())
    assert {entry["epoch"] for entry in entries} == {0, 1, 2}
    assert all((output / "maps" / name).is_file() for entry in entries for name in [entry["final"], *entry["maps"]])
    assert not work.exists()


def test_plan_repeats_prompts_in_groups_and_shares_the_start(records):
    params = small()
    batches = plan_epoch(records, params, 0) + plan_epoch(records, params, 1)
    assert [len(batch.records) for batch in batches] == [8] * 4
    for batch in batches:
        for group in range(0, 8, 4):
            assert len({r.id for r in batch.records[group : group + 4]}) == 1
            assert len(set(batch.start_seeds[group : group + 4])) == 1
    assert len({seed for batch in batches for seed in batch.step_seeds}) == 32
    assert len({r.id for batch in batches for r in batch.records}) == 8
    apart = dataclasses.replace(params, rollout=dataclasses.replace(params.rollout, same_latent=False))
    assert len(set(plan_epoch(records, apart, 0)[0].start_seeds)) == 8


def test_bad_requests(tmp_path, records):
    with pytest.raises(StarError, match="no method 'ppo'"):
        train(small(), "geneval", "ppo", records, tmp_path / "s", tmp_path / "o")
    with pytest.raises(StarError, match="belongs to task geneval, not ocr"):
        train(small(), "ocr", "star", records, tmp_path / "s", tmp_path / "o")
    assert not (tmp_path / "o").exists()
