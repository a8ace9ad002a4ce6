"""The trainer on the miniature, two epochs at a time: ratios, lam = 0, determinism, resume, what is
left behind."""

import copy
import dataclasses
import hashlib
import json
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from star.config.params import load_params
from star.method.allocation import allocation_weights
from star.method.attention import record_core_attention
from star.method.objective import local_surrogate, patch_mean
from star.policy.rollout import relevance_of
from star.policy.sd3 import load_policy
from star.prompts.core_content import with_core
from star.prompts.prepare import prepare
from star.rewards.base import RewardResult, finished
from star.system.errors import StarError
from star.system.processes import Processes
from star.training.batches import check_other_prompts, epoch_prompts, plan_epoch, window_start
from star.training.checkpoint import load_state, save_state
from star.training.loop import train
from star.training.trainer import Trainer, overlaps

BASE = load_params(Path("params.yaml"))


class Redness:
    """A smooth reward that every image has: share of red, so that groups have variance on any
    base model."""

    name = "redness"

    def submit(self, images, records):
        scores = (images[..., 0].astype(np.float32) - images[..., 2]).mean((1, 2)) / 255
        return finished(RewardResult(scores, [{} for _ in records]))

    def close(self):
        pass


def small(**train_changes):
    settings = {
        "epochs": 2,
        "prompts_per_epoch": 4,
        "group_size": 4,
        "updates_per_epoch": 2,
        "sample_every": 1,
    }
    return dataclasses.replace(
        BASE,
        rollout=dataclasses.replace(BASE.rollout, steps=4, window=[0, 2], batch=8),
        train=dataclasses.replace(
            BASE.train, **(settings | {"save_every": 1, "tracker": "none"} | train_changes)
        ),
        prompts=dataclasses.replace(
            BASE.prompts, geneval=dataclasses.replace(BASE.prompts.geneval, train=32, test=12)
        ),
    )


@pytest.fixture(scope="module")
def records():
    return with_core(prepare("geneval", small().prompts, small().seed)[0])


def trainer(params, method, records, reward=None, **allocation):
    if allocation:
        params = dataclasses.replace(
            params, allocation=dataclasses.replace(params.allocation, **allocation)
        )
    return Trainer(
        params,
        params.method(method),
        records,
        reward or Redness(),
        load_policy(params.model, torch.device("cpu")),
    )


def exact(**train_changes):
    """As `small`, in float32 on every machine."""
    return dataclasses.replace(
        small(**train_changes), model=dataclasses.replace(BASE.model, precision="no")
    )


def adapter_bytes(run):
    return hashlib.sha256(
        b"".join(p.detach().numpy().tobytes() for p in run.parameters)
    ).hexdigest()


def push(run):
    """Move the adapter at random: a policy that is neither the base nor the one before."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in run.parameters:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def scored(run):
    """The epoch up to its update."""
    batches = plan_epoch(run.records, run.params, run.epoch)
    trajectories = [run.sample(batch) for batch in batches]
    results = [
        run.reward.submit(t.images, b.records).result()
        for t, b in zip(trajectories, batches, strict=True)
    ]
    return run.weigh(batches, trajectories, results)


@pytest.mark.parametrize("method", ["star", "flow_grpo"])
def test_first_ratio_is_exactly_one_and_every_parameter_moves(method, records):
    run = trainer(small(learning_rate=1e-2), method, records)
    before = [p.detach().clone() for p in run.parameters]
    lines = [run.train_epoch(), run.train_epoch()]
    assert [line["first_ratio_error"] for line in lines] == [0.0, 0.0]
    assert lines[1]["ratio_max"] > 1 > lines[1]["ratio_min"], (
        "the second update of an epoch is off-policy"
    )
    names = [name for name, p in run.policy.transformer.named_parameters() if p.requires_grad]
    moved = {
        name: bool((p != b).any()) for name, p, b in zip(names, run.parameters, before, strict=True)
    }
    last = (
        f"transformer_blocks.{len(run.policy.transformer.transformer_blocks) - 1}.attn.add_q_proj"
    )
    assert [name for name, did in moved.items() if not did and not name.startswith(last)] == []
    assert (lines[0]["map_entropy"] is None) == (method == "flow_grpo")


class Clauses(Redness):
    """The same reward, with shares of two clauses: the left and the right half of the image."""

    def submit(self, images, records):
        redness = (images[..., 0].astype(np.float32) - images[..., 2]) / 255
        halves = np.stack([half.mean((1, 2)) / 2 for half in np.split(redness, 2, axis=2)], axis=1)
        scores = halves.sum(1)
        shares = [
            pair if len(record.metadata["include"]) == 2 else pair.sum(keepdims=True)
            for pair, record in zip(halves, records, strict=True)
        ]
        return finished(RewardResult(scores, [{} for _ in records], shares))


SETTINGS = {
    "shuffled": {"source": "shuffled"},
    "other_rollout": {"source": "other_rollout"},
    "random_tokens": {"source": "random_tokens"},
    "time_averaged": {"source": "time_averaged"},
    "guidance": {"source": "guidance"},
    "ones": {"source": "uniform", "objective": "local"},
    "weighted": {"objective": "weighted"},
    "joint": {"temporal": "joint"},
    "clause_wise": {"clause_wise": True},
    "clause_maps": {"clause_wise": True, "clause_maps": "own"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_variant_starts_at_ratio_one_and_trains_otherwise_than_star(name, records):
    runs = [
        trainer(
            dataclasses.replace(small(learning_rate=1e-2), methods={"m": m}),
            "m",
            records,
            Clauses(),
        )
        for m in ({}, SETTINGS[name])
    ]
    lines = [run.train_epoch() for run in runs]
    assert lines[0]["first_ratio_error"] == lines[1]["first_ratio_error"] == 0.0
    assert lines[0]["reward_mean"] == lines[1]["reward_mean"], (
        "the same images, whatever the allocation"
    )
    assert adapter_bytes(runs[0]) != adapter_bytes(runs[1])


def test_clause_wise_is_star_where_there_is_one_clause(records):
    single = [record for record in records if len(record.metadata["include"]) == 1]
    runs = [
        trainer(small(learning_rate=1e-2), "star", single, Clauses(), clause_wise=clause_wise)
        for clause_wise in (False, True)
    ]
    for run in runs:
        run.train_epoch()
    assert adapter_bytes(runs[0]) == adapter_bytes(runs[1])


def test_clause_wise_maps_and_advantages_of_a_batch(records):
    """Advantages of a rollout's clauses add up to its own; the batch keeps a row a clause."""
    run = trainer(small(advantage_clip=100.0), "star", records, Clauses(), clause_wise=True)
    whole = trainer(small(advantage_clip=100.0), "star", records, Clauses())
    both = [scored(each) for each in (run, whole)]
    for clauses, one in zip(*both, strict=True):
        assert clauses.weights.shape[2] == clauses.advantages.shape[1] <= 2
        assert torch.allclose(clauses.advantages.sum(1), one.advantages[:, 0], atol=1e-4)
        assert torch.allclose(clauses.weights.mean(3), torch.ones(1))
    assert any(item.weights.shape[2] == 2 for item in both[0])


def test_the_map_of_a_step_spreads_the_advantage_of_that_step(records, monkeypatch):
    """Looked at again, with the latents that the step was drawn from."""
    params = exact()
    params = dataclasses.replace(params, rollout=dataclasses.replace(params.rollout, window=[1, 3]))
    run = trainer(params, "star", records)
    item, given, compute = scored(run)[0], [], run.compute_surrogate
    monkeypatch.setattr(
        run, "compute_surrogate", lambda d, a, w, clip: (given.append(w), compute(d, a, w, clip))[1]
    )
    core, trajectory = run.core_keys(item.batch.records, clause_wise=False), item.trajectory
    for row in range(2):
        run.surrogate(item, row)
        timestep = run.schedule.timesteps[1 + row]
        with (
            torch.no_grad(),
            record_core_attention(run.policy.transformer, core, run.allocation.blocks) as seen,
        ):
            run.policy.velocity(trajectory.latents[row], timestep, trajectory.conditioning)
        maps = relevance_of([seen.mass], core, run.allocation)
        assert torch.allclose(
            given[row], allocation_weights(maps, run.allocation.lam)[:, 0], rtol=1e-3
        )
    assert not torch.allclose(given[0], given[1], rtol=1e-2)


def test_a_kind_of_span_weighs_in_the_map_as_core_weights_says(records):
    """The map is the mean over core tokens, weighted with their kind."""
    painted = next(
        record for record in records if {"color", "object"} <= {span.kind for span in record.core}
    )

    def seen(**weights):
        params = dataclasses.replace(exact(), core=dataclasses.replace(BASE.core, weights=weights))
        run = trainer(params, "star", [painted])
        batch = plan_epoch([painted], params, 0)[0]
        return run.core_keys([painted], clause_wise=False).weight.sum(), run.sample(batch).relevance

    (objects, of_objects), (colors, of_colors) = seen(object=1.0), seen(color=1.0)
    total, both = seen(object=1.0, color=0.25)
    assert total == objects + 0.25 * colors
    assert torch.allclose(
        both, (objects * of_objects + 0.25 * colors * of_colors) / total, rtol=1e-4
    )
    assert not torch.allclose(of_objects, of_colors, rtol=1e-2)


@pytest.mark.parametrize("clause_wise", [False, True])
def test_random_tokens_are_words_besides_the_core(records, clause_wise):
    def places(source):
        run = trainer(dataclasses.replace(small(), methods={"m": {"source": source}}), "m", records)
        keys = [run.core_keys([record], clause_wise) for record in records]
        return run, [set(key.index[key.weight.sum(1) > 0].tolist()) for key in keys]

    (_, core), (run, drawn) = places("attention"), places("random_tokens")
    clip, _, t5 = run.policy.tokenizers
    for record, own, other in zip(records, core, drawn, strict=True):
        special = []  # beginning, end and padding
        for tokenizer, length in zip((clip, t5), run.policy.text_lengths, strict=True):
            tokens = tokenizer(
                record.prompt, padding="max_length", max_length=length, truncation=True
            )["input_ids"]
            special += [token in tokenizer.all_special_ids for token in tokens]
        assert other and not own & other and not any(special[place] for place in other)


class Thread:
    """The accelerator of one of two threads; what both give meets in ``given``."""

    def __init__(self, rank, given, barrier):
        self.rank, self.given, self.barrier = rank, given, barrier

    def both(self, tensor):
        self.given[self.rank] = tensor
        self.barrier.wait(timeout=60)
        found = [self.given[0], self.given[1]]
        self.barrier.wait(timeout=60)
        return found

    def pad_across_processes(self, tensor, dim):
        missing = max(each.shape[dim] for each in self.both(tensor)) - tensor.shape[dim]
        return torch.nn.functional.pad(tensor, (0, 0) * (tensor.dim() - 1 - dim) + (0, missing))

    def gather(self, tensor):
        return torch.cat(self.both(tensor))


@pytest.mark.parametrize("batch", [2, 4])
def test_two_processes_exchange_the_maps_that_one_does(records, batch):
    """Batches of one and of two clauses, of which each process has one kind; a group of four may
    lie on both."""
    params = dataclasses.replace(small(), rollout=dataclasses.replace(small().rollout, batch=batch))
    run, generator = trainer(params, "star", records), torch.Generator().manual_seed(0)
    drawn = [
        torch.rand(batch, 2, 1 + number % 2, 16, generator=generator)
        for number in range(16 // batch)
    ]
    alone = run.maps_of_others(drawn)
    padded = torch.cat(
        [torch.nn.functional.pad(maps, (0, 0, 0, 2 - maps.shape[2])) for maps in drawn]
    )
    for maps, own, expected in zip(alone, drawn, padded.roll(4, dims=0).split(batch), strict=True):
        assert torch.equal(maps, expected[:, :, : own.shape[2]]), "a missing clause's map is flat"
    given, barrier = {}, threading.Barrier(2)

    def share(rank):
        one = copy.copy(run)
        one.processes = Processes(rank, 2, Thread(rank, given, barrier))
        return one.maps_of_others(one.processes.shard(drawn, 2))

    with ThreadPoolExecutor(2) as pool:
        for rank, found in enumerate(pool.map(share, range(2))):
            expected = Processes(rank, 2).shard(alone, 2)
            assert len(found) == len(expected) == 8 // batch
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_clause_wise_with_a_reward_that_knows_no_clauses_is_refused(records):
    with pytest.raises(
        StarError,
        match="clause_wise: prompt .* has 2 clauses, and the reward redness gives shares for 1",
    ):
        trainer(small(), "star", records, Redness(), clause_wise=True).train_epoch()


@pytest.mark.parametrize("sampler", ["dance", "cps"])
def test_every_sampler_starts_at_ratio_one(sampler, records):
    params = small(learning_rate=1e-2)
    params = dataclasses.replace(
        params, rollout=dataclasses.replace(params.rollout, sampler=sampler, noise_level=0.5)
    )
    assert trainer(params, "star", records).train_epoch().first_ratio_error == 0.0


def test_the_window_slides_and_starts_over(records):
    rollout = dataclasses.replace(BASE.rollout, steps=4, window=[0, 2], slide_every=2, batch=8)
    assert [window_start(rollout, epoch) for epoch in range(6)] == [0, 0, 1, 1, 0, 0], (
        "never the last step"
    )
    assert window_start(dataclasses.replace(rollout, slide_every=0, window=[1, 3]), 100) == 1
    run = trainer(dataclasses.replace(small(), rollout=rollout), "star", records)
    run.epoch = 2
    assert run.sample(plan_epoch(records, run.params, 2)[0]).first == 1
    assert run.train_epoch().first_ratio_error == 0.0


def test_rollouts_that_the_update_computes_otherwise_are_not_learnt_from(records, monkeypatch):
    run = trainer(small(clip_range=1e-4), "flow_grpo", records)
    before, transition = adapter_bytes(run), run.transition

    def slightly_off(item, row):
        exact = transition(item, row)
        return dataclasses.replace(exact, mean=exact.mean + 1e-2)

    monkeypatch.setattr(run, "transition", slightly_off)
    with pytest.raises(StarError, match=r"epoch 1: ratios are off 1 by up to .* model\.compile"):
        run.train_epoch()
    assert adapter_bytes(run) == before


def test_normalised_ratios_train(records):
    line = trainer(small(normalise_ratio=True, learning_rate=1e-2), "star", records).train_epoch()
    assert line["first_ratio_error"] == 0.0 and line["ratio_max"] > 1


@pytest.mark.parametrize("normalised", [False, True])
def test_the_loss_of_a_policy_that_moved_is_the_formula_s(normalised, records):
    run = trainer(exact(normalise_ratio=normalised), "star", records)
    item = scored(run)[0]
    push(run)
    for row in range(2):
        found, now = run.surrogate(item, row)
        old, x = item.trajectory.means[row], item.trajectory.latents[row + 1]
        densities = [
            torch.distributions.Normal(mean, now.deviation).log_prob(x) for mean in (now.mean, old)
        ]
        forms = [densities[0] - densities[1], (now.mean - old) * (x - old) / now.deviation]
        by_location = patch_mean(forms[normalised], run.policy.patch)
        expected = local_surrogate(
            by_location, item.advantages, item.weights[:, row], run.params.train.clip_range
        )
        assert torch.allclose(found.ratio, expected.ratio, rtol=1e-4)
        assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-3)
        other = patch_mean(forms[not normalised], run.policy.patch).exp()
        assert not torch.allclose(found.ratio, other, rtol=1e-3)


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
    save_state(tmp_path / "state.safetensors", *first.state())
    second = trainer(small(), "star", records)
    second.restore(*load_state(tmp_path / "state.safetensors"))
    resumed = [second.train_epoch() for _ in range(2)]
    assert adapter_bytes(second) == adapter_bytes(straight)
    assert all(
        torch.equal(a, b)
        for a, b in zip(second.average.values, straight.average.values, strict=True)
    )
    timeless = ("seconds", "images_per_s")
    for ours, theirs in zip(resumed, lines[1:], strict=True):
        assert {k: v for k, v in ours.items() if k not in timeless} == {
            k: v for k, v in theirs.items() if k not in timeless
        }


def test_the_state_of_a_training_on_another_base_is_refused(records):
    state = trainer(small(), "star", records).state()
    policy = load_policy(BASE.model, torch.device("cpu"))
    policy.transformer.transformer_blocks[2].norm1.linear.weight.data += 1e-3
    other = Trainer(small(), BASE.method("star"), records, Redness(), policy)
    with pytest.raises(
        StarError, match="the state of a training on another base model; set model.path"
    ):
        other.restore(*state)


class Slow(Redness):
    """Redness that takes until the last batch is drawn: nobody may ask for it earlier."""

    def __init__(self, events, batches):
        self.events, self.batches = events, batches

    def submit(self, images, records):
        self.events.append("submit")
        return Late(self, super().submit(images, records).result())


class Late(Future):
    def __init__(self, slow, scored):
        super().__init__()
        self.slow, self.scored = slow, scored

    def result(self, timeout=None):
        drawn = self.slow.events.count("draw")
        assert drawn == self.slow.batches, (
            "the trainer waits for a reward while there are images to draw"
        )
        self.slow.events.append("result")
        return self.scored


@pytest.mark.parametrize(
    ("overlap", "order"), [(True, ["draw", "submit"] * 4), (False, ["draw"] * 4 + ["submit"] * 4)]
)
def test_batches_are_drawn_while_the_ones_before_are_scored(records, monkeypatch, overlap, order):
    """Beside a GPU; on a CPU scoring begins after the last batch. The epoch is the same."""
    monkeypatch.setattr("star.training.trainer.overlaps", lambda device: overlap)
    events: list[str] = []
    params = dataclasses.replace(small(), rollout=dataclasses.replace(small().rollout, batch=4))
    run = trainer(params, "flow_grpo", records, Slow(events, batches=4))
    sample = run.sample
    monkeypatch.setattr(run, "sample", lambda batch: (events.append("draw"), sample(batch))[1])
    line = run.train_epoch()
    assert events == order + ["result"] * 4
    assert line["first_ratio_error"] == 0.0 and line["images"] == 16


def test_scoring_overlaps_beside_any_device_but_the_cpu():
    assert overlaps(torch.device("cuda", 1)) and not overlaps(torch.device("cpu"))


def test_a_training_raises_its_reward(records):
    run = trainer(small(learning_rate=3e-3, group_size=8, prompts_per_epoch=2), "star", records[:2])
    rewards = [run.train_epoch().reward_mean for _ in range(8)]
    assert np.mean(rewards[-2:]) > np.mean(rewards[:2])


def test_kl_is_logged_and_zero_at_the_base(records):
    for beta in (0.0, 0.1):
        run = trainer(small(kl_beta=beta, updates_per_epoch=1), "star", records)
        assert run.train_epoch().kl == 0.0
        assert run.train_epoch().kl > 0.0


def test_the_kl_is_in_the_loss_in_the_form_that_is_asked_for(records):
    """A policy off the base, before its first update, and one step: the exact form has its
    length."""
    lines = []
    for beta, form in ((0.0, "published"), (0.5, "published"), (0.5, "exact")):
        params = exact(kl_beta=beta, kl_form=form, updates_per_epoch=1)
        params = dataclasses.replace(
            params, rollout=dataclasses.replace(params.rollout, window=[0, 1])
        )
        run = trainer(params, "star", records)
        push(run)
        lines.append(run.train_epoch())
    without, *penalised = lines
    step = run.schedule.sigmas[0] - run.schedule.sigmas[1]
    assert penalised[1]["kl"] == pytest.approx(penalised[0]["kl"] / step, rel=1e-4)
    for line in penalised:
        assert (
            line["loss"] - without["loss"] == pytest.approx(0.5 * line["kl"], rel=1e-2)
            and line["kl"] > 0
        )


class Indifferent(Redness):
    """All images have one score, so that the penalty alone can teach."""

    def submit(self, images, records):
        return finished(RewardResult(np.zeros(len(images), np.float32), [{} for _ in records]))


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_the_gradient_of_the_kl_leads_back_to_the_base(beta, records):
    settings = {"kl_beta": beta, "weight_decay": 0.0, "learning_rate": 3e-3, "clip_range": 1e3}
    run = trainer(exact(**settings), "star", records, Indifferent())
    push(run)
    before, items = adapter_bytes(run), scored(run)
    lines = [run.update(items) for _ in range(3)]
    if beta:
        assert lines[2]["kl"] < 0.8 * lines[0]["kl"]
    else:
        assert adapter_bytes(run) == before and lines[0]["grad_norm"] == 0.0


def test_without_a_kl_form_there_is_no_second_forward_pass(records, monkeypatch):
    run = trainer(small(kl_form="none"), "star", records)
    monkeypatch.setattr(run.policy, "reference", None)
    assert run.train_epoch().kl is None


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"ema_every": 2}, 3 / 12),
        ({"ema_every": 2, "ema_decay": 0.125}, 0.125),
        ({"ema_every": 3}, 1.0),
    ],
)
def test_the_average_of_an_epoch_of_two_updates_is_what_is_exported(
    tmp_path, records, changes, kept
):
    run = trainer(exact(learning_rate=1e-2, **changes), "flow_grpo", records)
    start = [p.detach().clone() for p in run.parameters]
    run.train_epoch()
    averaged = [
        kept * a + (1 - kept) * b.detach() for a, b in zip(start, run.parameters, strict=True)
    ]
    own = adapter_bytes(run)
    (tmp_path / "log.jsonl").touch()
    run.export(tmp_path, tmp_path / "out")
    assert adapter_bytes(run) == own, "the training goes on with its own"
    transformer = load_policy(
        run.params.model, torch.device("cpu"), tmp_path / "out" / "adapter"
    ).transformer
    exported = [p for name, p in transformer.named_parameters() if "lora_" in name]
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(exported, averaged, strict=True))
    assert not all(
        torch.allclose(a, b, atol=1e-3) for a, b in zip(exported, run.parameters, strict=True)
    )


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
    assert all(
        (output / "maps" / name).is_file()
        for entry in entries
        for name in [entry["final"], *entry["maps"]]
    )
    assert [file.name for file in work.glob("state-*")] == ["state-000002.safetensors"]


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
    apart = dataclasses.replace(
        params, rollout=dataclasses.replace(params.rollout, same_latent=False)
    )
    assert len(set(plan_epoch(records, apart, 0)[0].start_seeds)) == 8


def test_bad_requests(tmp_path, records):
    with pytest.raises(StarError, match="no method 'ppo'"):
        train(small(), "geneval", "ppo", records, tmp_path / "s", tmp_path / "o")
    with pytest.raises(StarError, match="belongs to task geneval, not ocr"):
        train(small(), "ocr", "star", records, tmp_path / "s", tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_less_memory_trains_alike(records):
    """Checkpointing, slicing and graph capture change how a model runs, and not what it learns."""
    changes = {
        "gradient_checkpointing": True,
        "vae_slicing": True,
        "compile": "aot_eager",
        "precision": "no",
    }
    plain = dataclasses.replace(small(), model=dataclasses.replace(BASE.model, precision="no"))
    spared = dataclasses.replace(small(), model=dataclasses.replace(BASE.model, **changes))
    lines = [trainer(params, "star", records).train_epoch() for params in (plain, spared)]
    torch.compiler.reset()
    for key in ("reward_mean", "grad_norm", "ratio_max", "map_entropy"):
        assert lines[1][key] == pytest.approx(lines[0][key], rel=1e-3), key


def test_the_prompts_of_an_epoch_go_through_the_set_in_a_new_order_each_pass(records):
    params = small(prompts_per_epoch=4)
    six = records[:6]
    taken = [record.id for epoch in range(6) for record in epoch_prompts(six, params, epoch)]
    passes = [taken[i : i + 6] for i in range(0, 24, 6)]
    assert all(sorted(p) == sorted(r.id for r in six) for p in passes) and passes[0] != passes[1]


@pytest.mark.parametrize(("count", "prompts_per_epoch"), [(8, 1), (1, 4)])
def test_maps_of_others_need_another_prompt_in_every_epoch(records, count, prompts_per_epoch):
    params = small(prompts_per_epoch=prompts_per_epoch)
    other = dataclasses.replace(params.allocation, source="other_rollout")
    check_other_prompts(records[:count], params, params.allocation)
    with pytest.raises(StarError, match=r"other_rollout: all rollouts of epoch 1 have one prompt"):
        check_other_prompts(records[:count], params, other)


def test_one_epoch_of_one_prompt_is_found_before_the_first(records):
    """Of three prompts in pairs, some pair is the last of a pass and the first of the next, which
    may be the same."""
    params = small(epochs=40, prompts_per_epoch=2)
    other = dataclasses.replace(params.allocation, source="other_rollout")
    same = next(
        e for e in range(40) if len({r.id for r in epoch_prompts(records[:3], params, e)}) == 1
    )
    with pytest.raises(StarError, match=f"all rollouts of epoch {same + 1} have one prompt"):
        check_other_prompts(records[:3], params, other)
