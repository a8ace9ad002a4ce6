"""The page "STAR in your own trainer" runs, and its step is a real one."""

import re
from pathlib import Path

import pytest
import torch

PAGE = Path("docs/your-own-trainer.md")


@pytest.fixture(scope="module")
def ran() -> dict:
    (code,) = re.findall(r"```python\n(.+?)```", PAGE.read_text(encoding="utf-8"), re.S)
    torch.manual_seed(0)
    names: dict = {}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


def test_the_maps_have_mean_one_and_are_not_flat(ran):
    maps = ran["maps"]
    assert maps.shape == (8, 2, 1, 16)
    assert torch.allclose(maps.mean(3), torch.ones(8, 2, 1), atol=1e-5) and maps.std(3).min() > 0.05


def test_the_step_moves_the_adapter_and_nothing_else(ran):
    assert 0 < sum(p.grad.abs().sum().item() for p in ran["parameters"]) < float("inf")
    moved = [name for name, p in ran["transformer"].named_parameters() if p.grad is not None]
    assert moved and all(".lora_" in name for name in moved)


def test_the_ratio_of_an_update_on_the_old_policy_is_one(ran):
    assert ran["reward"].std() > 0 and ran["advantage"].abs().max() > 0.1
    with ran["torch"].no_grad():
        ran["transformer"].disable_adapters()
        step = ran["sampler"].transition(
            ran["latents"][0], ran["velocity"](ran["latents"][0], 0), 0
        )
    # The adapter began at zero, so without it the first step is the one that was drawn.
    assert torch.equal(step.mean, ran["means"][0])
