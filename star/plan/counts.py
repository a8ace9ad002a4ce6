"""Numbers of images, batches, optimizer steps and sequences, in closed form and without torch."""

import math
from dataclasses import dataclass

from star.config.params import TASKS, ModelParams, Params
from star.training.batches import check_processes, looks_ahead, window_start


@dataclass(frozen=True)
class Counts:
    """The arithmetic of one training."""

    processes: int
    groups: int
    images_per_epoch: int
    batches_per_epoch: int
    batches_per_process: int
    batches_per_update: int
    accumulation: int  # rollout batches of a process between its optimizer steps
    updates_per_epoch: int
    updates: int
    images: int


@dataclass(frozen=True)
class Passes:
    """Sequences through the transformer: an image's image and text tokens, of one guidance branch.

    Those of a training are of all processes together.
    """

    rollout: int  # without those that the update reuses; with what a control's maps cost
    update: int  # forward and backward
    reference: int  # forward of the base, for the KL, or of the anchor
    evaluation: int  # of one checkpoint on all benchmarks, except its diversity images
    held_out: int  # as the training goes on, at most


def count(params: Params, processes: int) -> Counts:
    """Count what ``processes`` do that train together.

    Raises:
        StarError: they cannot share the batches; names the numbers that can.
    """
    check_processes(params.train, params.rollout, processes)
    train, images = params.train, params.images_per_epoch
    batches = images // params.rollout.batch
    share = batches // train.updates_per_epoch
    return Counts(
        processes=processes,
        groups=train.prompts_per_epoch,
        images_per_epoch=images,
        batches_per_epoch=batches,
        batches_per_process=batches // processes,
        batches_per_update=share,
        accumulation=share // processes,
        updates_per_epoch=train.updates_per_epoch,
        updates=train.updates_per_epoch * train.epochs,
        images=images * train.epochs,
    )


def branches(model: ModelParams) -> int:
    """Return the sequences of an image: with guidance a conditional and an unconditional one."""
    return 2 if model.guidance_scale > 1 else 1


def shared(params: Params) -> int:
    """Return how many rollouts are one up to the first stochastic step.

    With `same_latent` they are those of a group in a batch.
    """
    same = params.rollout.same_latent and params.train.algorithm == "flow_grpo"
    return min(params.rollout.batch, params.train.group_size) if same else 1


def trained_steps(params: Params) -> int:
    """Return how often an image is trained in an epoch: steps, or noise levels."""
    if params.train.algorithm == "flow_grpo":
        return params.rollout.window[1] - params.rollout.window[0]
    return params.forward.draws


def tested_images(params: Params) -> int:
    """Return the images of one evaluation."""
    counts = params.evaluate.images_per_prompt
    return sum(getattr(params.prompts, task).test * counts[task] for task in TASKS)


def held_out_images(params: Params) -> int:
    """Return the held-out images that a training draws, at its start and end, too."""
    train = params.train
    if not train.evaluate_every:
        return 0
    return (1 + math.ceil(train.epochs / train.evaluate_every)) * train.evaluate_prompts


def count_passes(params: Params) -> Passes:
    """Count the sequences of a training by one method, and of an evaluation."""
    allocation, train, each = params.allocation, params.train, branches(params.model)
    flow = train.algorithm == "flow_grpo"
    rollout, update, reference = _flow_grpo(params) if flow else _forward_process(params)
    guided = allocation.source == "guidance" and allocation.uses_maps
    return Passes(
        rollout=each * rollout + (2 * update if guided else 0),
        update=each * update,
        reference=each * reference,
        evaluation=each * tested_images(params) * params.evaluate.steps,
        held_out=each * held_out_images(params) * params.rollout.steps,
    )


def _flow_grpo(params: Params) -> tuple[int, int, int]:
    """Count a training's steps of rollout, update and KL, with what a group shares."""
    rollout, train = params.rollout, params.train
    images, distinct = params.images_per_epoch, params.images_per_epoch // shared(params)
    update = distinct + (trained_steps(params) - 1) * images
    drawn = 0
    for epoch in range(train.epochs):
        equal = window_start(rollout, epoch) + 1  # steps up to the first stochastic one
        drawn += equal * distinct + (rollout.steps - equal) * images
    if train.reuse_rollout:
        drawn -= update * train.epochs
    # Without a weight the KL is logged all the same, of the epoch's first batch and step.
    judged = update if train.kl_beta > 0 else rollout.batch // shared(params)
    reference = 0 if train.kl_form == "none" else judged
    return drawn, update * train.epochs, reference * train.epochs


def _forward_process(params: Params) -> tuple[int, int, int]:
    """Count the same of awm and nft: each noise level is one, in all that looks at it."""
    forward, images = params.forward, params.images_per_epoch * params.train.epochs
    trained = images * forward.draws
    ahead = trained if looks_ahead(params, params.allocation) else 0
    anchored = forward.anchor_to != "old" and forward.anchor > 0
    return images * params.rollout.steps + ahead, trained, trained if anchored else 0
