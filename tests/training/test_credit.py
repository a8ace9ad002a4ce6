"""Credit: whose maps and advantages a rollout gets, also of several processes and clauses."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from star.method.allocation import allocation_weights
from star.method.attention import record_core_attention
from star.policy.rollout import relevance_of
from star.rewards.base import RewardResult
from star.system.errors import StarError
from star.system.processes import Processes
from tests.helpers.training import Clauses, Redness, geneval_records, scored, small, trainer


def test_clause_wise_maps_and_advantages_of_a_batch():
    """Advantages of a rollout's clauses add up to its own; a batch keeps a row for each clause."""
    params = small(train={"advantage_clip": 100.0})
    wise, whole = (scored(trainer(params, reward=Clauses(), clause_wise=w)) for w in (True, False))
    for clauses, one in zip(wise, whole, strict=True):
        assert clauses.weights.shape[2] == clauses.advantages.shape[1] <= 2
        assert torch.allclose(clauses.advantages.sum(1), one.advantages[:, 0], atol=1e-4)
        assert torch.allclose(clauses.weights.mean(3), torch.ones(1))
    assert any(item.weights.shape[2] == 2 for item in wise)


def test_clause_wise_with_a_reward_that_knows_no_clauses_is_refused():
    with pytest.raises(StarError, match="clause_wise: prompt .* 2 clauses, .* reward scores 1;"):
        trainer(reward=Redness(), clause_wise=True).train_epoch()


def test_the_map_of_a_step_spreads_the_advantage_of_that_step(monkeypatch):
    """Seen again, with the latents that the step was drawn from."""
    run = trainer(small(rollout={"window": [1, 3], "steps": 4}))
    item, given, objective = scored(run)[0], [], run.algorithm.objective

    def noted(log_ratio, advantage, weights, *trust):
        given.append(weights)
        return objective(log_ratio, advantage, weights, *trust)

    monkeypatch.setattr(run.algorithm, "objective", noted)
    core, trajectory = run.credit.core_keys(item.batch.records, False), item.trajectory
    for row in range(2):
        run.algorithm.surrogate(item, row)
        timestep = run.algorithm.roller.schedule.timesteps[1 + row]
        with torch.no_grad(), record_core_attention(run.policy.transformer, core, "all") as seen:
            run.policy.velocity(trajectory.latents[row], timestep, trajectory.conditioning)
        maps = relevance_of([seen.mass], core, run.allocation)
        expected = allocation_weights(maps, run.allocation.lam)[:, 0]
        assert torch.allclose(given[row], expected, rtol=1e-3)
    assert not torch.allclose(given[0], given[1], rtol=1e-2)


def test_a_kind_of_span_weighs_in_the_map_as_core_weights_says():
    painted = next(
        record
        for record in geneval_records()
        if {"color", "object"} <= {span.kind for span in record.core}
    )

    def seen(**weights):
        run = trainer(small(core={"weights": weights}), records=[painted])
        total = run.credit.core_keys([painted], False).weight.sum()
        return total, run.sample(run.plan.batches(0)[0]).relevance

    (objects, of_objects), (colors, of_colors) = seen(object=1.0), seen(color=1.0)
    total, both = seen(object=1.0, color=0.25)
    assert total == objects + 0.25 * colors
    mean = (objects * of_objects + 0.25 * colors * of_colors) / total
    assert torch.allclose(both, mean, rtol=1e-4)
    assert not torch.allclose(of_objects, of_colors, rtol=1e-2)


@pytest.mark.parametrize("clause_wise", [False, True])
def test_random_tokens_are_words_besides_the_core(clause_wise):
    def places(run):
        keys = [run.credit.core_keys([record], clause_wise) for record in geneval_records()]
        return [set(key.index[key.weight.sum(1) > 0].tolist()) for key in keys]

    run = trainer(source="random_tokens")
    clip, _, t5 = run.policy.tokenizers
    for record, own, other in zip(geneval_records(), places(trainer()), places(run), strict=True):
        special = []  # beginning, end and padding
        for tokenizer, length in zip((clip, t5), run.policy.text_lengths, strict=True):
            filled = {"padding": "max_length", "max_length": length, "truncation": True}
            tokens = tokenizer(record.prompt, **filled)["input_ids"]
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
def test_two_processes_give_the_credit_that_one_gives(batch):
    """With the maps of others, in batches of one and of two clauses; a group may lie on both."""
    params = small(rollout={"batch": batch}, train={"zero_advantage": "drop"})
    run = trainer(params, source="other_rollout", clause_maps="own")
    planned, generator = run.plan.batches(0), torch.Generator().manual_seed(0)
    maps = [
        torch.rand(batch, 2, 1 + number % 2, 16, generator=generator)
        for number in range(len(planned))
    ]
    drawn = [SimpleNamespace(relevance=relevance) for relevance in maps]
    scores = torch.rand(len(planned), batch, generator=generator).numpy()
    scores[: 4 // batch] = 0.5  # the first group
    results = [RewardResult(row.astype(np.float32), [{}] * batch) for row in scores]
    alone = run.credit.weigh(0, planned, drawn, results)
    factors = torch.cat([item.factors for item in alone])
    assert factors.tolist() == [0.0] * 4 + [2.0] * 4 + [1.0] * 8, "two groups an update"
    padded = [torch.nn.functional.pad(m, (0, 0, 0, 2 - m.shape[2])) for m in maps]
    others = torch.cat(padded).roll(4, dims=0).split(batch)  # of the group before
    for item, own, other in zip(alone, maps, others, strict=True):
        kept = other[:, :, : own.shape[2]]  # a missing clause's map is flat
        expected = allocation_weights(kept, run.allocation.lam, clause_maps="own")
        assert torch.equal(item.weights, expected)
    given, barrier = {}, threading.Barrier(2)

    def share(rank):
        one = copy.copy(run.credit)
        one.processes = Processes(rank, 2, Thread(rank, given, barrier))
        parts = (one.processes.shard(whole, 2) for whole in (drawn, results))
        return one.weigh(0, planned, *parts)

    with ThreadPoolExecutor(2) as pool:
        for rank, found in enumerate(pool.map(share, range(2))):
            expected = Processes(rank, 2).shard(alone, 2)
            assert len(found) == len(expected) == 8 // batch
            for one, other in zip(found, expected, strict=True):
                assert torch.equal(one.weights, other.weights)
                assert torch.allclose(one.advantages, other.advantages)
                assert torch.equal(one.factors, other.factors)
