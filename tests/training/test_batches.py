"""The plan of an epoch: prompts, seeds, batches, the window, and who shares the batches."""

import dataclasses

import pytest

from star.system.errors import StarError
from star.training.batches import EpochPlan, check_processes, window_start
from tests.helpers.training import BASE, geneval_records, small


def plan(count=32, rollout=None, **train):
    params = small(rollout=rollout or {}, train=train)
    return EpochPlan(geneval_records()[:count], params.seed, params.train, params.rollout)


def test_prompts_are_repeated_in_groups_that_share_the_start():
    batches = plan().batches(0) + plan().batches(1)
    assert [len(batch.records) for batch in batches] == [8] * 4
    assert [batch.number for batch in batches] == [0, 1, 0, 1]
    for batch in batches:
        for group in (slice(0, 4), slice(4, 8)):
            assert len({record.id for record in batch.records[group]}) == 1
            assert len(set(batch.start_seeds[group])) == 1
    assert len({seed for batch in batches for seed in batch.step_seeds}) == 32
    assert len({record.id for batch in batches for record in batch.records}) == 8
    assert len(set(plan(rollout={"same_latent": False}).batches(0)[0].start_seeds)) == 8


def test_each_pass_over_the_prompts_has_an_order_of_its_own():
    six = plan(6)
    taken = [record.id for epoch in range(6) for record in six.prompts(epoch)]
    passes = [taken[i : i + 6] for i in range(0, 24, 6)]
    assert all(sorted(one) == sorted(r.id for r in six.records) for one in passes)
    assert passes[0] != passes[1]
    assert {record.id for record in six.all_prompts()} == set(taken)


@pytest.mark.parametrize(("count", "prompts"), [(8, 1), (1, 4)])
def test_maps_of_others_need_another_prompt_in_every_epoch(count, prompts):
    with pytest.raises(StarError, match="other_rollout: epoch 1 has one prompt"):
        plan(count, prompts_per_epoch=prompts).check_other_prompts()
    plan(8).check_other_prompts()


def test_the_window_slides_and_starts_over():
    rollout = dataclasses.replace(BASE.rollout, steps=4, window=[0, 2], slide_every=2)
    starts = [window_start(rollout, epoch) for epoch in range(6)]
    assert starts == [0, 0, 1, 1, 0, 0], "never the last step"
    cps = dataclasses.replace(rollout, steps=5, sampler="cps")
    assert [window_start(cps, epoch) for epoch in range(6)] == [0, 0, 1, 1, 0, 0]
    assert window_start(dataclasses.replace(rollout, slide_every=0, window=[1, 3]), 100) == 1


@pytest.mark.parametrize(
    ("batch", "good", "bad", "fitting"), [(64, 1, 2, "1, or"), (8, 4, 3, "1, 2, 4, 8, or")]
)
def test_processes_that_cannot_share_are_refused_with_the_numbers_that_can(
    batch, good, bad, fitting
):
    """8 x 16 images and 2 updates an epoch: 64 images an update."""
    rollout = dataclasses.replace(BASE.rollout, batch=batch)
    check_processes(BASE.train, rollout, good)
    with pytest.raises(StarError, match=f"{bad} processes .* launch {fitting} lower rollout.batch"):
        check_processes(BASE.train, rollout, bad)
