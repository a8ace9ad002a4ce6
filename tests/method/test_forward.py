"""Forward-process objectives: closed forms, by float64 and autograd."""

import numpy as np
import pytest
import torch

from star.method.forward import awm_loss, noised, stratified_levels


def drawn(count, *shape):
    generator = torch.Generator().manual_seed(count)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def test_noise_is_mixed_in_by_level():
    clean, noise = drawn(2, 3, 2, 4, 4)
    levels = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    found = noised(clean, noise, levels)
    assert torch.equal(found[0], clean[0]) and torch.equal(found[2], noise[2])
    assert torch.allclose(found[1], 0.75 * clean[1] + 0.25 * noise[1])


@pytest.mark.parametrize("count", [1, 4, 9])
def test_each_equal_part_of_the_schedule_has_one_level(count):
    """Of five steps: positions 0 to 4 of the noise levels before the last."""
    sigmas = [1.0, 0.9, 0.7, 0.4, 0.1, 0.0]
    found = stratified_levels(sigmas, count, np.random.default_rng(0))
    assert sorted(found, reverse=True) == found and found[-1] >= 0.1 and found[0] <= 1.0
    positions = np.interp([-level for level in found], [-s for s in sigmas[:5]], range(5))
    assert [int(position / 4 * count) for position in positions] == list(range(count))


def loss_of(velocity, old, target, advantages, weights, anchor=0.0):
    return awm_loss(velocity, old, target, advantages, weights, anchor, patch=2)


def test_the_gradient_at_the_old_policy_is_the_weighted_error():
    """``2 A w_p (v - Y)_p / rms``, spread evenly over the elements; the anchor has none there."""
    velocity, target = drawn(2, 2, 3, 4, 4)
    velocity.requires_grad_()
    advantages = torch.tensor([[1.5], [-0.5]], dtype=torch.float64)
    weights = torch.tensor([[[0.4, 1.6, 1.2, 0.8]], [[2.0, 0.0, 1.0, 1.0]]], dtype=torch.float64)
    loss, drift = loss_of(velocity, velocity.detach(), target, advantages, weights, anchor=3.0)
    loss.backward()
    error = velocity.detach() - target
    rms = error.square().mean((1, 2, 3), keepdim=True).sqrt()
    places = weights.view(2, 1, 2, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    wanted = 2 * advantages.view(2, 1, 1, 1) * places * error / rms / error.numel()
    assert torch.allclose(velocity.grad, wanted, atol=1e-15) and drift == 0


def test_maps_of_ones_are_the_published_objective():
    velocity, old, target = drawn(3, 2, 3, 4, 4)
    advantages = torch.tensor([[1.5], [-0.5]], dtype=torch.float64)
    found, drift = loss_of(velocity, old, target, advantages, torch.ones(2, 1, 4), 0.5)
    error = (velocity - target).square().mean((1, 2, 3))
    moved = (velocity - old).square().mean()
    wanted = (advantages[:, 0] * error / error.sqrt()).mean() + 0.5 * moved
    assert torch.allclose(found, wanted) and torch.allclose(drift, moved)


def test_clauses_add_up_to_their_sum():
    velocity, old, target = drawn(3, 2, 3, 4, 4)
    parts = torch.tensor([[1.0, 0.5], [-0.25, -0.25]], dtype=torch.float64)
    ones = torch.ones(2, 2, 4, dtype=torch.float64)
    both = loss_of(velocity, old, target, parts, ones)[0]
    assert torch.allclose(both, loss_of(velocity, old, target, parts.sum(1, True), ones[:, :1])[0])
