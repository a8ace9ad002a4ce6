"""An update by the rollout's own forward passes: the same bits, and no graph left over."""

import gc
import weakref

import pytest
import torch

from tests.helpers.training import (
    Clauses,
    adapter_bytes,
    push,
    scored,
    small,
    timeless,
    trainer,
)

STAR = {"source": "attention", "objective": "local"}
SETTINGS = {
    "flow_grpo": {},
    "star": {"methods": {"m": STAR}},
    "joint": {"methods": {"m": {**STAR, "temporal": "joint"}}},
    "random_tokens": {"methods": {"m": {**STAR, "source": "random_tokens"}}},
    "other_rollout": {"methods": {"m": {**STAR, "source": "other_rollout"}}},
    "guidance maps": {"methods": {"m": {**STAR, "source": "guidance"}}},
    "clause_wise": {"methods": {"m": {**STAR, "clause_wise": True}}},
    "weighted": {"methods": {"m": {**STAR, "objective": "weighted"}}},
    "KL": {"methods": {"m": {**STAR, "kl_beta": 0.1}}},
    "kl_mask": {"train": {"trust": "kl_mask", "step_weight": "noise", "zero_advantage": "drop"}},
    "guidance": {"model": {"guidance_scale": 3.0}, "train": {"kl_beta": 0.1}},
    "checkpointing": {"model": {"gradient_checkpointing": True}, "methods": {"m": STAR}},
    "bf16": {"model": {"precision": "bf16"}, "methods": {"m": STAR}},
    "no shared noise": {"rollout": {"same_latent": False, "last_step": "sde", "batch": 4}},
    "later window": {"rollout": {"steps": 5, "window": [1, 3], "sampler": "cps"}},
}


def run_of(reuse: bool, **sections):
    """Return a training of one update an epoch, by the method ``m`` if there is one."""
    train = {"updates_per_epoch": 1, "reuse_rollout": reuse, **sections.pop("train", {})}
    params = small(train=train, **sections)
    name = "m" if "m" in params.methods else "flow_grpo"
    return trainer(params.with_method(name), name, reward=Clauses())


@pytest.mark.parametrize("name", SETTINGS)
def test_reused_passes_train_as_the_update_s_own_bit_for_bit(name):
    """Lines of the log, adapter and average, of three epochs."""
    found = []
    for reuse in (False, True):
        run = run_of(reuse, **SETTINGS[name])
        lines = [timeless(run.train_epoch()) for _ in range(3)]
        found.append((lines, adapter_bytes(run)))
    assert found[0] == found[1]
    assert lines[0]["first_ratio_error"] == 0.0 < lines[2]["grad_norm"]


def test_the_gradients_of_every_step_are_those_of_a_pass_of_its_own():
    """Of a policy off the base, batch by batch and step by step."""
    gradients = []
    for reuse in (False, True):
        run = run_of(reuse, methods={"m": STAR})
        push(run)
        steps = []
        for item in scored(run):
            for row in range(2):
                run.algorithm.term(item, row, False).loss.backward()
                steps.append([p.grad.clone() for p in run.parameters if p.grad is not None])
                run.optimizer.zero_grad()
        gradients.append(steps)
    pairs = zip(*gradients, strict=True)
    assert all(torch.equal(a, b) for one, two in pairs for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_graph_is_gone_once_its_gradients_are_there(checkpointing):
    """Counted are the tensors that enter the blocks of the trained steps."""
    run = run_of(True, model={"gradient_checkpointing": checkpointing}, methods={"m": STAR})
    entered: list[weakref.ref] = []
    block = run.policy.transformer.transformer_blocks[1]

    def watch(module, arguments, given):
        if torch.is_grad_enabled():
            entered.append(weakref.ref(given["hidden_states"] if given else arguments[0]))

    def alive() -> int:
        gc.collect()
        return sum(each() is not None for each in entered)

    hook = block.register_forward_pre_hook(watch, with_kwargs=True)
    items = scored(run)
    hook.remove()
    assert alive() == len(entered) == 4, "two batches of two steps"
    for done in range(4):
        run.algorithm.term(items[done // 2], done % 2, False).loss.backward()
        assert alive() == 3 - done
