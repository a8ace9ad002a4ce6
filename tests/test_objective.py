"""Advantages and surrogates: closed forms, the clip, and identity D6 of the Method section."""

import math

import pytest
import torch

from star.objective import group_advantages, kl_penalty, local_surrogate, patch_mean, scalar_surrogate
from star.sde import Transition


def test_advantages_by_hand():
    rewards = torch.tensor([0.0, 1.0, 0.5, 0.5])
    spread = rewards.std(correction=0) + 1e-4
    expected = torch.tensor([-0.5, 0.5, 0.0, 0.0]) / spread
    assert torch.allclose(group_advantages(rewards, 2, 5.0), expected)


def test_advantages_are_clipped_and_a_flat_batch_teaches_nothing():
    rewards = torch.zeros(400)
    rewards[0] = 1.0
    assert group_advantages(rewards, 400, 5.0).max() == 5.0
    assert torch.equal(group_advantages(torch.full((8,), 0.7), 4, 5.0), torch.zeros(8))


def test_patch_mean_is_row_major_and_averages_channels():
    values = torch.arange(2 * 4 * 4, dtype=torch.float64).view(1, 2, 4, 4)
    expected = [values[0, :, y : y + 2, x : x + 2].mean() for y in (0, 2) for x in (0, 2)]
    assert torch.allclose(patch_mean(values, 2)[0], torch.stack(expected))


def gradient(loss, parameter):
    return torch.autograd.grad(loss, parameter, retain_graph=True)[0]


@pytest.fixture
def setting():
    """A toy policy: log-probs of 6 rollouts at 16 locations, nonlinear in 5 parameters, in float64."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    features = torch.randn(6, 16, 5, generator=generator, dtype=torch.float64)
    advantage = torch.randn(6, generator=generator, dtype=torch.float64)
    weights = torch.rand(6, 16, generator=generator, dtype=torch.float64) + 0.1
    weights = weights / weights.mean(1, keepdim=True)
    log_prob = torch.sin(features @ theta)
    return theta, log_prob, log_prob.detach(), advantage, weights


def test_identity_d6_uniform_weights(setting):
    theta, new, old, advantage, _ = setting
    local = local_surrogate(new, old, advantage, torch.ones_like(old), 1e-2).loss
    scalar = scalar_surrogate(new, old, advantage, 1e-2).loss
    assert torch.allclose(gradient(local, theta), gradient(scalar, theta), atol=1e-12)


def test_identity_d6_any_weights(setting):
    """At theta_old: the gradient of the weighted scalar ratio exp(mean_p w_p (l_p - l_old_p))."""
    theta, new, old, advantage, weights = setting
    local = local_surrogate(new, old, advantage, weights, 1e-2).loss
    weighted = -(advantage * ((weights * (new - old)).mean(1)).exp()).mean()
    assert torch.allclose(gradient(local, theta), gradient(weighted, theta), atol=1e-12)


def test_first_ratio_is_exactly_one(setting):
    _, new, old, advantage, weights = setting
    assert torch.equal(scalar_surrogate(new, old, advantage, 1e-4).ratio, torch.ones(6, dtype=torch.float64))
    assert torch.equal(local_surrogate(new, old, advantage, weights, 1e-4).ratio, torch.ones_like(old))


@pytest.mark.parametrize(("advantage", "log_ratio", "expected"), [(1, 0.5, -1.2), (1, -0.5, -math.exp(-0.5))])
def test_clip_binds_only_where_the_policy_already_moved_the_right_way(advantage, log_ratio, expected):
    old = torch.zeros(1, 4, dtype=torch.float64)
    surrogate = scalar_surrogate(old + log_ratio, old, torch.tensor([float(advantage)], dtype=torch.float64), 0.2)
    assert surrogate.loss.item() == pytest.approx(expected)
    assert surrogate.clipped.item() == 1.0


def test_local_clip_range_grows_with_the_square_root_of_the_locations():
    old = torch.zeros(1, 16, dtype=torch.float64)
    new = old + math.log(1 + 0.039)
    one = torch.ones(1, dtype=torch.float64)
    assert local_surrogate(new, old, one, torch.ones_like(old), 0.01).clipped.item() == 0.0
    assert local_surrogate(new + 0.01, old, one, torch.ones_like(old), 0.01).clipped.item() == 1.0


def test_exact_kl_is_the_gaussian_one():
    generator = torch.Generator().manual_seed(4)
    mean, reference = torch.randn(2, 3, 2, 4, 4, generator=generator, dtype=torch.float64)
    transition = Transition(mean, noise_scale=0.8, step=0.1)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, transition.deviation),
        torch.distributions.Normal(reference, transition.deviation),
    ).mean()
    assert torch.allclose(kl_penalty(transition, reference, "exact"), expected)
    assert torch.allclose(kl_penalty(transition, reference, "published"), expected * transition.step)
