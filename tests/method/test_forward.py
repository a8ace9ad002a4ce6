"""Forward-process objectives: closed forms and the published ones, by float64 and autograd."""

import functools

import numpy as np
import pytest
import torch

from star.method.forward import (
    awm_loss,
    clean_error,
    nft_loss,
    noised,
    old_share,
    optimality,
    softly_clipped,
    step_levels,
    stratified_levels,
)

LEVELS = torch.tensor([0.4, 1.0], dtype=torch.float64)
ADVANTAGES = torch.tensor([[1.5], [-0.5]], dtype=torch.float64)
MAPS = torch.tensor([[[0.4, 1.6, 1.2, 0.8]], [[2.0, 0.0, 1.0, 1.0]]], dtype=torch.float64)
ONES = torch.ones_like(MAPS)


def drawn(count, *shape, kind=torch.float64):
    generator = torch.Generator().manual_seed(count)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(kind) for _ in range(count)
    ]


def spread_out(maps):
    """Return maps of four locations as images of 4 x 4, (B, 1, 4, 4)."""
    return maps.view(2, 1, 2, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)


def awm(velocity, old, clean, noise, advantages, weights, level_scale=True):
    return awm_loss(velocity, noise - clean, advantages, weights, level_scale, patch=2)


def nft(velocity, old, clean, noise, advantages, weights, limit=5.0, beta=0.1):
    levels = LEVELS.to(clean.dtype)
    images = noised(clean, noise, levels), clean, levels
    return nft_loss(velocity, old, *images, advantages, weights, limit, beta, patch=2)


LOSSES = [awm, functools.partial(awm, level_scale=False), nft, functools.partial(nft, beta=1.0)]


def test_noise_is_mixed_in_by_level():
    clean, noise = drawn(2, 3, 2, 4, 4)
    levels = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    found = noised(clean, noise, levels)
    assert torch.equal(found[0], clean[0]) and torch.equal(found[2], noise[2])
    assert torch.allclose(found[1], 0.75 * clean[1] + 0.25 * noise[1])


SIGMAS = [1.0, 0.9, 0.7, 0.4, 0.1, 0.0]


@pytest.mark.parametrize("count", [1, 4, 9])
def test_each_equal_part_of_the_schedule_has_one_level(count):
    """Of five steps: positions 0 to 4 of the noise levels before the last."""
    found = stratified_levels(SIGMAS, count, np.random.default_rng(0))
    assert sorted(found, reverse=True) == found and found[-1] >= 0.1 and found[0] <= 1.0
    positions = np.interp([-level for level in found], [-s for s in SIGMAS[:5]], range(5))
    assert [int(position / 4 * count) for position in positions] == list(range(count))


def test_levels_of_steps_are_different_ones_and_fall():
    found = [step_levels(SIGMAS, 4, np.random.default_rng(seed)) for seed in range(200)]
    assert all(len(set(levels)) == 4 for levels in found)
    assert all(sorted(levels, reverse=True) == levels for levels in found)
    assert {*sum(found, [])} == {*SIGMAS[:5]}, "pure noise among them, the image not"


def test_an_advantage_is_cut_softly_below_three():
    values = torch.tensor([-100.0, -0.03, 0.0, 0.03, 3.0])
    assert softly_clipped(values).tolist() == pytest.approx([-3, -0.03, 0, 0.03, 2.2848], rel=1e-4)


@pytest.mark.parametrize("maps", [ONES, MAPS])
def test_the_first_gradient_of_awm_is_the_weighted_error(maps):
    """``2 A w_p (v - Y)_p / rms``, spread evenly over the elements."""
    velocity, clean, noise = drawn(3, 2, 3, 4, 4)
    velocity.requires_grad_()
    awm(velocity, velocity.detach(), clean, noise, ADVANTAGES, maps).backward()
    error = velocity.detach() - (noise - clean)
    rms = error.square().mean((1, 2, 3), keepdim=True).sqrt()
    places = ADVANTAGES.view(2, 1, 1, 1) * spread_out(maps)
    assert torch.allclose(velocity.grad, 2 * places * error / rms / error.numel(), atol=1e-15)


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("maps", [ONES, MAPS])
def test_the_first_gradient_of_nft_is_the_weighted_error(maps, beta):
    """``2 A w_p (v - Y)_p t / mean |v - Y|`` whatever beta: ``x_0(v) - x_0 = t (Y - v)``."""
    velocity, clean, noise = drawn(3, 2, 3, 4, 4)
    velocity.requires_grad_()
    loss = nft(velocity, velocity.detach(), clean, noise, ADVANTAGES, maps, beta=beta)
    loss.backward()
    error = velocity.detach() - (noise - clean)
    size = error.abs().mean((1, 2, 3), keepdim=True)
    places = ADVANTAGES.view(2, 1, 1, 1) * spread_out(maps) * LEVELS.view(2, 1, 1, 1)
    assert torch.allclose(velocity.grad, 2 * places * error / size / error.numel(), atol=1e-14)
    # Both policies are the old one, so no image is better or worse yet.
    whole = (LEVELS * (error.square() / size).mean((1, 2, 3))).mean()
    assert loss.item() == pytest.approx(5 / beta * whole.item(), rel=1e-12)


def published_awm(velocity, old, clean, noise, advantages):
    return (advantages * (velocity - (noise - clean)).pow(2).mean(dim=(1, 2, 3))).mean()


def published_nft(velocity, old, clean, noise, advantages, beta):
    """From forward.md's equations, term by term."""
    t = LEVELS.to(clean.dtype)[:, None, None, None]
    x_t = (1 - t) * clean + t * noise
    r = torch.clamp(torch.clamp(advantages, -5, 5) / 10 + 0.5, 0, 1)
    losses = []
    for v in (beta * velocity + (1 - beta) * old, (1 + beta) * old - beta * velocity):
        x_0 = x_t - t * v
        with torch.no_grad():
            width = (x_0 - clean).abs().mean(dim=(1, 2, 3), keepdim=True).clip(min=1e-5)
        losses.append(((x_0 - clean) ** 2 / width).mean(dim=(1, 2, 3)))
    return ((r * losses[0] / beta + (1 - r) * losses[1] / beta) * 5).mean()


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("ours", "published"),
    [
        (functools.partial(awm, level_scale=False), published_awm),
        *(
            (functools.partial(nft, beta=beta), functools.partial(published_nft, beta=beta))
            for beta in (0.1, 1.0)
        ),
    ],
)
def test_maps_of_ones_are_the_published_loss_and_gradient_bit_for_bit(ours, published, kind):
    velocity, *others = drawn(4, 2, 3, 4, 4, kind=kind)
    advantages = torch.tensor([7.0, -0.6], dtype=kind)  # one beyond what NFT tells apart
    found, wanted = [], []
    for out, loss in (
        (found, lambda v: ours(v, *others, advantages[:, None], ONES.to(kind))),
        (wanted, lambda v: published(v, *others, advantages)),
    ):
        v = velocity.clone().requires_grad_()
        out += [loss(v), *torch.autograd.grad(loss(v), v)]
    assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_maps_give_each_location_its_own_chance_in_nft(beta):
    """In float64, patch by patch, of a policy that has moved; one location is beyond the limit."""
    velocity, old, clean, noise = drawn(4, 2, 3, 4, 4)
    advantages = torch.tensor([[2.0], [-4.0]], dtype=torch.float64)
    total = 0.0
    for i in range(2):
        t = LEVELS[i]
        x_t = (1 - t) * clean[i] + t * noise[i]
        losses = []
        for v in (
            beta * velocity[i] + (1 - beta) * old[i],
            (1 + beta) * old[i] - beta * velocity[i],
        ):
            error = x_t - t * v - clean[i]
            losses.append(error**2 / max(error.abs().mean(), 1e-5))
        for p in range(4):
            rows, columns = slice(p // 2 * 2, p // 2 * 2 + 2), slice(p % 2 * 2, p % 2 * 2 + 2)
            a = np.clip((advantages[i, 0] * MAPS[i, 0, p]).item(), -5, 5)
            good, bad = (loss[:, rows, columns].mean().item() for loss in losses)
            r = a / 10 + 0.5
            total += 5 * (r * good + (1 - r) * bad) / beta / (2 * 4)
    found = nft(velocity, old, clean, noise, advantages, MAPS, beta=beta)
    assert found.item() == pytest.approx(total, rel=1e-12)


def test_the_chance_of_a_good_image_and_the_scale_of_an_error():
    advantages = torch.tensor([-9.0, -5.0, 0.0, 1.0, 5.0, 9.0])
    wanted = [0.0, 0.0, 0.5, 0.6, 1.0, 1.0]
    assert optimality(advantages, 5.0).tolist() == pytest.approx(wanted, abs=1e-7)
    clean, noise = drawn(2, 2, 3, 4, 4)
    exact = clean_error(noise - clean, noised(clean, noise, LEVELS), clean, LEVELS)
    assert exact.abs().max() < 1e-20, "divided by no less than 1e-5"


@pytest.mark.parametrize("loss", LOSSES)
def test_clauses_add_up_to_their_sum(loss):
    given = drawn(4, 2, 3, 4, 4)
    parts = torch.tensor([[1.0, 0.5], [-0.25, -0.25]], dtype=torch.float64)
    for maps in (ONES, MAPS):
        both = loss(*given, parts, maps.expand(-1, 2, -1))
        assert torch.allclose(both, loss(*given, parts.sum(1, True), maps))


def test_the_old_policy_follows_as_published():
    """Of GenEval and PickScore; of OCR, which begins at 75."""
    first = [old_share(k, 0, 0.001, 0.5) for k in (0, 1, 100, 499, 500, 10_000)]
    assert first == pytest.approx([0, 0.001, 0.1, 0.499, 0.5, 0.5], abs=1e-12)
    second = [old_share(k, 75, 0.0075, 0.999) for k in (0, 74, 75, 76, 175, 208, 209, 5000)]
    assert second == pytest.approx([0, 0, 0, 0.0075, 0.75, 0.9975, 0.999, 0.999], abs=1e-12)
