"""The rules between parameters: what one key cannot say alone, of sums that must divide and names
that must exist."""

import math
from collections.abc import Iterable, Iterator

from star.config.params import (
    AllocationParams,
    GenevalParams,
    Params,
    RolloutParams,
    TrainParams,
)
from star.config.references import FIRST, shuffled_control, uniform_form

# Keys of `train` about a ratio's steps, and the values with which they ask for nothing.
OF_RATIOS = {"trust": "clip", "step_weight": "none", "zero_advantage": "keep"}
MINIATURE_SIDE = 64  # pixels of its images, the only ones that the reader `template` reads


def broken_rules(params: Params) -> Iterator[str]:
    """Yield a line for each rule that the parameters break: the key, its value and the fix."""
    yield from _rollout(params.rollout)
    yield from _detector(params.rewards.geneval, params.prompts.world)
    for key, reader in (
        ("evaluate.second_reader", params.evaluate.second_reader),
        ("study.second_reader", params.study.second_reader),
    ):
        if reader == "template" and params.model.resolution != MINIATURE_SIDE:
            yield (
                f"{key} template reads the miniature's signs of {MINIATURE_SIDE} pixels, "
                f"model.resolution is {params.model.resolution}; use ppocrv6"
            )
    yield from (f"allocation: {broken}" for broken in _allocation(params.allocation))
    yield from (everywhere := list(_training(params)))
    for key, changes in (
        *((f"methods.{name}", changes) for name, changes in params.methods.items()),
        *((f"study.methods.{name}", changes) for name, changes in params.study.methods.items()),
    ):
        changed = params.with_changes(changes)
        for broken in (*_allocation(changed.allocation), *_training(changed)):
            if broken not in everywhere:
                yield f"{key}: {broken}"
    yield from _study(params)
    for task, names in params.runs.items():
        for name in names:
            if name not in params.methods:
                known = ", ".join(params.methods)
                yield f"runs.{task}: no method {name!r} under `methods`; known: {known}"


def _training(params: Params) -> Iterator[str]:
    """Yield the broken rules of keys that a method may change, but for `allocation`'s own."""
    train = params.train
    yield from (*_batches(params.rollout, train), *_average(train))
    if train.kl_form == "none" and train.kl_beta > 0:
        yield f"train.kl_beta {train.kl_beta} wants a train.kl_form: published or exact"
    yield from (*_reuse(params), *_forward(params))


def _batches(rollout: RolloutParams, train: TrainParams) -> Iterator[str]:
    batch, group = rollout.batch, train.group_size
    images = train.prompts_per_epoch * group
    fitting = _listed(n for n in _divisors(images) if n % group == 0 or group % n == 0)
    if images % batch:
        yield (
            f"rollout.batch {batch} does not divide train.prompts_per_epoch x train.group_size = "
            f"{images}; use one of {fitting}"
        )
    elif batch % group and group % batch:
        yield (
            f"rollout.batch {batch} and train.group_size {group}: one must divide the other; "
            f"use a batch of {fitting}"
        )
    elif (images // batch) % train.updates_per_epoch:
        yield (
            f"train.updates_per_epoch {train.updates_per_epoch} does not divide the "
            f"{images // batch} rollout batches of an epoch; use one of "
            f"{_listed(_divisors(images // batch))}, or change rollout.batch"
        )


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _average(train: TrainParams) -> Iterator[str]:
    updates = train.epochs * train.updates_per_epoch
    if train.ema_every > updates:
        yield (
            f"train.ema_every {train.ema_every} is more than the training's {updates} updates: its "
            "adapter would stay the initial one; use a divisor of them"
        )


def _reuse(params: Params) -> Iterator[str]:
    train, model = params.train, params.model
    if not train.reuse_rollout:
        return
    if train.algorithm != "flow_grpo":
        yield (
            f"train.reuse_rollout: {train.algorithm} trains on images that it noises again, which "
            "no rollout passes; set it to false"
        )
    if train.updates_per_epoch > 1:
        yield (
            f"train.reuse_rollout: of the {train.updates_per_epoch} updates an epoch all but the "
            "first are by other weights than the rollout; set it to false, or "
            "train.updates_per_epoch to 1"
        )
    if model.compile != "no" and model.gradient_checkpointing and params.allocation.uses_maps:
        yield (
            f"train.reuse_rollout: blocks compiled by {model.compile} that read a map keep other "
            "tensors than those computed again; set model.gradient_checkpointing to false, or "
            'model.compile to "no"'
        )


def _forward(params: Params) -> Iterator[str]:
    algorithm, forward, steps = params.train.algorithm, params.forward, params.rollout.steps
    if algorithm == "flow_grpo":
        return
    for name, nothing in OF_RATIOS.items():
        if (value := getattr(params.train, name)) != nothing:
            yield (
                f"train.{name} {value} is of the algorithm flow_grpo alone; set it to {nothing} "
                f"with {algorithm}"
            )
    if params.train.kl_beta > 0:
        yield (
            f"train.kl_beta {params.train.kl_beta:g} is flow_grpo's, and {algorithm} has an anchor "
            "of its own; set train.kl_beta to 0, and weigh forward.anchor"
        )
    if params.model.guidance_scale > 1:
        yield (
            f"model.guidance_scale {params.model.guidance_scale:g}: {algorithm} would teach the "
            "guided velocity what the conditional one should be; set it to 1"
        )
    if params.allocation.objective == "weighted":
        yield f"objective weighted averages ratios, of which {algorithm} has none; use local"
    if algorithm == "nft" and forward.anchor_to == "ema":
        yield "forward.anchor_to ema is awm's; the old policy of nft is its average: take old"
    if forward.levels == "steps" and forward.draws > steps:
        yield (
            f"forward.draws {forward.draws} is more than the {steps} different levels of "
            "rollout.steps; lower it, or set forward.levels to stratified"
        )


def _rollout(rollout: RolloutParams) -> Iterator[str]:
    first, end = rollout.window
    last = rollout.window_limit
    if not 0 <= first < end <= last:
        yield (
            f"rollout.window [{first}, {end}] must be 0 <= first < end <= {last}: of "
            f"rollout.steps {rollout.steps} by {rollout.sampler}, later ones have no noise to "
            "speak of"
        )
    if rollout.sampler == "cps" and rollout.noise_level > 1:
        yield (
            f"rollout.noise_level {rollout.noise_level}: the sampler cps replaces a share of the "
            "noise; use at most 1"
        )


def _detector(geneval: GenevalParams, world: str) -> Iterator[str]:
    key = "rewards.geneval"
    if geneval.detector == "mask2former":
        if geneval.path is None:
            example = "facebook/mask2former-swin-small-coco-instance"
            yield f"{key}.path: mask2former wants a directory or hub id, e.g. {example}"
        if geneval.color_path is None:
            example = "openai/clip-vit-large-patch14"
            yield f"{key}.color_path: mask2former wants a directory or hub id, e.g. {example}"
        return
    for name in ("path", "revision", "color_path", "color_revision"):
        if (value := getattr(geneval, name)) is not None:
            yield (
                f"{key}.{name} {value!r}: the detector exact opens no model; set null, or use "
                f"{key}.detector mask2former"
            )
    if world != "miniature":
        yield (
            f"{key}.detector exact knows only the classes of prompts.world miniature, not of "
            f"{world}; use mask2former"
        )


def _allocation(method: AllocationParams) -> Iterator[str]:
    shares = method.clause_wise and method.clause_maps == "share"
    if not any(method.encoders.values()):
        yield "encoders are all 0, which leaves no core token; raise one"
    if method.source == "guidance" and shares:
        yield (
            "with source guidance every clause has one map, so clause_maps share leaves none; "
            "set clause_maps to own, or clause_wise to false"
        )
    if method.temporal == "joint" and shares:
        yield (
            "a clause's share of the others' relevance is of one step, so temporal joint has "
            "nothing to compare over steps; set clause_maps to own, or temporal to per_step"
        )
    if method.objective == "scalar" and method.source != "uniform":
        yield (
            f"the scalar objective has no place for maps of source {method.source}; "
            "use weighted or local, or the source uniform"
        )


def _study(params: Params) -> Iterator[str]:
    aim, methods = params.study.aim, params.study.methods
    for name in methods:
        if (images := params.of_study(name).images_per_epoch) != params.images_per_epoch:
            yield (
                f"study.methods.{name}: {images} images an epoch, the others have "
                f"{params.images_per_epoch}; the study compares by images: leave out "
                "prompts_per_epoch and group_size, or keep their product"
            )
    if FIRST not in methods:
        yield f"study.methods has no {FIRST!r}, with which the study compares"
    if aim not in methods:
        yield f"study.aim {aim!r} must be one of study.methods: {', '.join(methods)}"
    elif not (uniform_form(params, aim) and shuffled_control(params, aim)):
        yield (
            f"study.aim {aim!r} must be a method with maps, compared with the same by source "
            "uniform and by source shuffled; add these to study.methods, or name another"
        )
