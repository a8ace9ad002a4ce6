"""Rollouts: the ODE outside the window, noise inside, and what a group shares."""

import dataclasses

import numpy as np
import pytest
import torch

from star.method.attention import CoreKeys
from star.method.sde import ode_step
from star.policy.rollout import Roller
from star.system.errors import StarError
from tests.helpers.training import (
    BASE,
    PROMPTS,
    assert_same_images,
    core_keys,
    policy_of,
    stock_images,
)


def roller(policy, **settings):
    return Roller(policy, dataclasses.replace(BASE.rollout, **settings))


def test_rollout_without_noise_is_the_stock_pipeline():
    """A tiny noise level: the log-ratio needs a positive std, the image must be the ODE's."""
    drawn = roller(policy_of(), steps=6, window=[0, 3], noise_level=1e-6).draw(
        PROMPTS, [1, 2], [3, 4], 0, None, BASE.allocation
    )
    assert_same_images(drawn.images, stock_images(6))


def test_a_step_with_almost_no_noise_is_refused():
    """DanceGRPO's constant noise of a hundredth, over an eighth of the time."""
    settings = {"sampler": "dance", "noise_level": 0.01, "steps": 8}
    with pytest.raises(StarError, match="rollout.window: step 0 has a standard deviation of 0.002"):
        roller(policy_of(), **settings).check_noise()
    roller(policy_of(), sampler="dance", noise_level=0.3).check_noise()


def test_there_is_no_noise_outside_of_the_window():
    policy = policy_of()
    schedule, conditioning = policy.schedule(5), policy.encode(PROMPTS)

    @torch.no_grad()
    def ode(x, steps):
        for t in steps:
            velocity = policy.velocity(x, schedule.timesteps[t], conditioning)
            x = ode_step(x, velocity, schedule.sigmas[t], schedule.sigmas[t + 1])
        return x

    draw = roller(policy, steps=5, window=[1, 3]).draw
    runs = [draw(PROMPTS, [1, 2], seeds, 1, None, BASE.allocation) for seeds in ([3, 4], [5, 6])]
    for run in runs:
        assert torch.equal(run.latents[0], ode(policy.noise([1, 2]), range(1)))
        assert np.array_equal(run.images, policy.decode(ode(run.latents[2], range(3, 5))))
    assert (runs[0].latents[1] - runs[1].latents[1]).abs().mean() > 0.1, "inside there is"


@pytest.mark.parametrize("window", [[0, 2], [1, 4]])
@pytest.mark.parametrize("sampler", ["flow_sde", "cps"])
def test_a_stochastic_last_step_adds_its_noise_after_all_others_and_is_not_trained(window, sampler):
    policy, core = policy_of(), CoreKeys.from_weights(core_keys(policy_of(), weights=True))
    ode, sde = (
        roller(policy, steps=5, window=window, sampler=sampler, last_step=how)
        for how in ("ode", "sde")
    )
    given = PROMPTS, [1, 2], [3, 4], window[0], core, BASE.allocation
    without, drawn = ode.draw(*given), sde.draw(*given)
    for name in ("latents", "means", "relevance"):
        assert torch.equal(getattr(without, name), getattr(drawn, name)), name
    assert drawn.steps == window[1] - window[0]
    x, conditioning = drawn.latents[-1], drawn.conditioning
    with torch.no_grad():
        for t in range(window[1], 4):
            velocity = policy.velocity(x, sde.schedule.timesteps[t], conditioning)
            x = ode_step(x, velocity, *sde.schedule.sigmas[t : t + 2])
        step = sde.transition(x, 4, conditioning, 1)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    for _ in range(drawn.steps + 1):
        noise = torch.stack([torch.randn(policy.latent_shape, generator=g) for g in generators])
    assert np.array_equal(drawn.images, policy.decode(step.sample(noise)))
    assert np.array_equal(drawn.images, without.images) == (sampler == "cps")


@pytest.mark.parametrize("window", [[0, 2], [1, 3]])
def test_what_a_group_shares_is_run_once_and_changes_nothing(window):
    """Groups side by side share their first passes; the same in another order share none."""
    policy = policy_of()

    def run(order, step_seeds):
        core = CoreKeys.from_weights(core_keys(policy, weights=True)[order])
        prompts, starts = [PROMPTS[i] for i in order], [1 + i for i in order]
        settings = prompts, starts, step_seeds, window[0], core, BASE.allocation
        return roller(policy, steps=4, window=window).draw(*settings)

    together, apart = run([0, 0, 1, 1], [3, 4, 5, 6]), run([0, 1, 0, 1], [3, 5, 4, 6])
    assert (together.shared, apart.shared) == (2, 1)
    order = [0, 2, 1, 3]
    assert torch.allclose(together.latents, apart.latents[:, order], atol=1e-4)
    assert torch.allclose(together.means, apart.means[:, order], atol=1e-4)
    assert torch.allclose(together.relevance, apart.relevance[order], rtol=1e-3)
