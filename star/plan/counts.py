"""How many: images, batches, optimizer steps, and sequences that go through the transformer.
Closed form."""

from dataclasses import dataclass

from star.config.params import TASKS, AllocationParams, Params
from star.training.batches import check_processes, window_start


@dataclass(frozen=True)
class Counts:
    """The arithmetic of one training. `accumulation`: rollout batches of a process between its
    optimizer steps."""

    processes: int
    groups: int
    images_per_epoch: int
    batches_per_epoch: int
    batches_per_process: int
    batches_per_update: int
    accumulation: int
    updates_per_epoch: int
    updates: int
    images: int


@dataclass(frozen=True)
class Passes:
    """Sequences (one image's image and text tokens, of one guidance branch) through the
    transformer.

    Of one training, all processes together: rollout, with what a control's maps cost; update,
    forward and backward; reference, forward without the adapter, for the KL. evaluation: of one
    checkpoint on all benchmarks, without the few images more that its diversities take."""

    rollout: int
    update: int
    reference: int
    evaluation: int


def count(params: Params, processes: int) -> Counts:
    """The arithmetic of ``processes`` that train together.

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


def branches(params: Params) -> int:
    """Sequences an image: with guidance a conditional and an unconditional one."""
    return 2 if params.model.guidance_scale > 1 else 1


def shared(params: Params) -> int:
    """Rollouts that are one up to the first stochastic step: those of a group in a batch, with
    `same_latent`."""
    return min(params.rollout.batch, params.train.group_size) if params.rollout.same_latent else 1


def count_passes(params: Params, allocation: AllocationParams) -> Passes:
    """Of one method."""
    rollout, train = params.rollout, params.train
    images, distinct = params.images_per_epoch, params.images_per_epoch // shared(params)
    trained = rollout.window[1] - rollout.window[0]
    update = distinct + (trained - 1) * images
    drawn = 0
    for epoch in range(train.epochs):
        alike = window_start(rollout, epoch) + 1  # steps up to the first stochastic one
        drawn += alike * distinct + (rollout.steps - alike) * images
    maps = (
        2 * update * train.epochs if allocation.source == "guidance" and allocation.lam > 0 else 0
    )
    # Without a weight the KL is logged all the same, of the epoch's first batch and step.
    judged = update if train.kl_beta > 0 else rollout.batch // shared(params)
    reference = 0 if train.kl_form == "none" else judged
    counts = params.evaluate.images_per_prompt
    tested = sum(getattr(params.prompts, task).test * counts[task] for task in TASKS)
    each = branches(params)
    return Passes(
        rollout=each * drawn + maps,
        update=each * update * train.epochs,
        reference=each * reference * train.epochs,
        evaluation=each * tested * params.evaluate.steps,
    )
