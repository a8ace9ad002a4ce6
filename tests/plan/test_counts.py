"""Images, batches, updates and sequences, worked by hand."""

import dataclasses
from pathlib import Path

import pytest
import torch

from star.cli import main
from star.config.reading import load_params
from star.plan.counts import Counts, Passes, count, count_passes
from tests.helpers.training import changed, small, trainer

PARAMS = load_params(Path("presets/miniature-full.yaml"))
PUBLISHED = changed(
    PARAMS,
    model={"guidance_scale": 4.5},
    rollout={"steps": 10, "window": [0, 9], "same_latent": False, "batch": 9},
    train={"prompts_per_epoch": 48, "group_size": 24, "epochs": 100, "kl_beta": 0.04},
)


@pytest.mark.parametrize(
    ("processes", "own", "accumulation"), [(1, 128, 64), (8, 16, 8), (32, 4, 2)]
)
def test_the_arithmetic_of_the_published_recipe(processes, own, accumulation):
    """48 x 24 = 1,152 images = 128 batches of 9; 64 of them an update."""
    assert count(PUBLISHED, processes) == Counts(
        processes=processes,
        groups=48,
        images_per_epoch=1152,
        batches_per_epoch=128,
        batches_per_process=own,
        batches_per_update=64,
        accumulation=accumulation,
        updates_per_epoch=2,
        updates=200,
        images=115_200,
    )


def test_passes_of_the_published_recipe():
    """Each image: 10 steps of rollout, 9 of update and of its KL, with two branches of guidance."""
    tested = 192 + 96 + 384
    expected = Passes(
        115_200 * 10 * 2,
        115_200 * 9 * 2,
        115_200 * 9 * 2,
        tested * PARAMS.evaluate.steps * 2,
        21 * 24 * PUBLISHED.rollout.steps * 2,  # every 5 of 100 epochs, and before the first
    )
    assert count_passes(PUBLISHED) == expected


def test_passes_that_a_group_shares():
    """The longer run: 8 x 16 images, one noise a group, 8 steps of which the first two are trained.

    There is no guidance. The groups' first step is one: 8 + 7 x 128 sequences to draw, 8 + 128 to
    learn, 4 for the KL's log (a batch's).
    """
    found = count_passes(PARAMS)
    assert found == Passes(45 * (8 + 7 * 128), 45 * (8 + 128), 45 * 4, 672 * 8, 10 * 24 * 8)
    guided = count_passes(changed(PARAMS, allocation={"source": "guidance"}))
    assert guided.rollout - found.rollout == 2 * found.update, "two more passes a trained step"
    no_curve = {"kl_form": "none", "evaluate_every": 0}
    alone = changed(PARAMS, rollout={"same_latent": False}, train=no_curve)
    expected = Passes(45 * 8 * 128, 45 * 2 * 128, 0, 672 * 8, 0)
    assert count_passes(alone) == expected


def test_a_sliding_window_moves_what_is_shared():
    """Window [0, 2] of 4 steps over 4 epochs starts at 0, 1, 0, 1; so far a group is one."""
    slid = changed(PARAMS, rollout={"steps": 4, "slide_every": 1}, train={"epochs": 4})
    assert count_passes(slid).rollout == 2 * (8 + 3 * 128) + 2 * (2 * 8 + 2 * 128)


@pytest.mark.parametrize(
    ("algorithm", "steps", "forward", "expected"),
    [
        ("flow_grpo", 10, {}, (20, 18, 18)),
        ("awm", 14, {"draws": 6}, (14, 6, 6)),
        ("nft", 10, {"draws": 9}, (10 + 9, 9, 9)),
    ],
)
def test_passes_of_an_image_that_docs_algorithms_says(algorithm, steps, forward, expected):
    """With maps; only Flow-GRPO has guidance and a KL."""
    changes = {"algorithm": algorithm, "updates_per_epoch": 1}
    if algorithm != "flow_grpo":
        changes["kl_beta"] = 0.0
    params = changed(
        PUBLISHED,
        model={"guidance_scale": 4.5 if algorithm == "flow_grpo" else 1.0},
        rollout={"steps": steps},
        train=changes,
        forward={**forward, "anchor_to": "base"},
    )
    found = count_passes(params)
    assert [n // 115_200 for n in (found.rollout, found.update, found.reference)] == [*expected]


OLD = {"anchor_to": "old"}


@pytest.mark.parametrize(
    ("algorithm", "train", "forward", "allocation"),
    [
        ("flow_grpo", {"kl_beta": 0.1}, {}, {}),
        ("flow_grpo", {"updates_per_epoch": 1, "reuse_rollout": True}, {}, {"source": "guidance"}),
        ("awm", {"updates_per_epoch": 1}, OLD, {}),
        ("awm", {"updates_per_epoch": 1}, OLD, {"source": "shuffled"}),
        ("awm", {"updates_per_epoch": 1}, OLD, {"temporal": "joint"}),
        ("awm", {"updates_per_epoch": 1}, {"anchor_to": "base"}, {"source": "guidance"}),
        ("awm", {}, {"anchor_to": "base"}, {"lam": 0.0}),
        ("awm", {}, OLD, {"lam": 0.0}),
        ("nft", {}, {}, {}),
        ("nft", {}, {"anchor": 0.0}, {"source": "guidance"}),
    ],
)
def test_an_epoch_takes_the_passes_that_are_planned(algorithm, train, forward, allocation):
    """Sequences that go through the transformer of a training, with and without a graph."""
    params = small(algorithm, train={"epochs": 1, **train}, forward=forward, allocation=allocation)
    run = trainer(params, **allocation)
    passed = dict.fromkeys(("rollout", "update", "reference"), 0)

    def counted(module, arguments, given):
        own = module.transformer_blocks[0].attn.to_q.disable_adapters
        kind = "reference" if own else "update" if torch.is_grad_enabled() else "rollout"
        passed[kind] += len(given["hidden_states"])

    run.policy.transformer.register_forward_pre_hook(counted, with_kwargs=True)
    run.train_epoch()
    planned = count_passes(dataclasses.replace(params, allocation=run.allocation))
    assert passed == {kind: getattr(planned, kind) for kind in passed}


@pytest.mark.parametrize(
    ("batch", "updates", "options", "named"),
    [
        (9, 2, [], "use a batch of 1, 2, 3, 4, 6, 8, 12, 24, 48, 72,"),
        (7, 2, [], "use one of 1, 2, 3, 4, 6, 8, 12, 24, 48,"),
        (288, 3, [], "one of 1, 2, 4, or"),
        (8, 2, ["--processes", "7"], "launch 1, 2, 3, 4, 6, 8, 9, 12, 18, 24, 36, 72, or"),
    ],
)
def test_numbers_that_do_not_divide_are_refused_with_those_that_do(
    default_values, write_params, capsys, batch, updates, options, named
):
    default_values["train"] |= {
        **{"prompts_per_epoch": 48, "group_size": 24},
        "updates_per_epoch": updates,
    }
    default_values["rollout"]["batch"] = batch
    assert main(["plan", "--params", str(write_params(default_values)), *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("star plan: error: ") and named in error and error.count("\n") == 1
