"""Compiled blocks: none runs as it is, so that rollout and update are one policy."""

import pytest
import torch
from torch._dynamo.exc import FailOnRecompileLimitHit

from star.policy import sd3
from star.policy.rollout import sample_images
from tests.helpers.training import short_model, small, trainer


@pytest.fixture
def compiling():
    """A training whose backend is off, by more with gradients; calls of graphs and of blocks."""
    calls = {"graphs": 0, "blocks": 0}

    def slightly_off(graph, _):
        def run(*arguments):
            calls["graphs"] += 1
            off = 2e-4 if torch.is_grad_enabled() else 1e-4
            return tuple(x + off if x.is_floating_point() else x for x in graph(*arguments))

        return run

    def counting(call):
        def inner(*arguments, **named):
            calls["blocks"] += 1
            return call(*arguments, **named)

        return inner

    # A block of each kind: first and next with a second attention, plain, last.
    model = {"path": short_model(1, 2), "compile": slightly_off}
    params = small(
        model=model,
        train={"kl_form": "published", "kl_beta": 0.04},
        allocation={"blocks": [1, 2]},
    )
    torch.compiler.reset()
    run = trainer(params)
    for block in run.policy.transformer.transformer_blocks:
        block._compiled_call_impl = counting(block._compiled_call_impl)
    yield run, calls
    torch.compiler.reset()


@pytest.mark.slow
def test_every_block_of_a_training_runs_compiled(compiling):
    """Sample sheet, rollouts read and not, updates, and the base model of the KL."""
    run, calls = compiling
    sample_images(run.policy, [record.prompt for record in run.records[:3]], [1, 2, 3], 2)
    assert calls["graphs"] == calls["blocks"] == 4 * 2
    line = run.train_epoch()
    assert line.first_ratio_error == 0 and line.kl > 0
    # Two batches of three steps in the rollout; of two in the update, each with the base model's.
    assert calls["graphs"] == calls["blocks"] == 4 * (2 + 2 * 3 + 2 * 2 * 2)


def test_what_is_not_compiled_any_more_is_an_error(monkeypatch):
    monkeypatch.setattr(sd3, "GRAPHS", 1)
    torch.compiler.reset()
    run = trainer(small(model={"compile": "eager"}))
    with pytest.raises(FailOnRecompileLimitHit):
        run.train_epoch()
    torch.compiler.reset()
