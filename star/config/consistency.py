"""The rules between parameters: what one key cannot say alone, of sums that must divide and names
that must exist."""

import dataclasses
import math
from typing import TYPE_CHECKING

from star.system.errors import StarError, shown

if TYPE_CHECKING:  # they are of the module that calls this one
    from star.config.params import GenevalParams, Params, RolloutParams, StudyParams, TrainParams

LONGEST_NAME = 255  # bytes of a file's name, on Linux
STUDY_REFERENCES = ("flow_grpo", "shuffled")  # methods with which the study compares the others
TEMPLATE_SIDE = 64  # pixels, the only images that the second reader `template` reads


def check_consistency(params: "Params", where: str) -> None:
    """Raise `StarError` for the first rule that the parameters of the file ``where`` break."""
    _check_batches(params, where)
    _check_rollout(params.rollout, where)
    _check_kl(params.train, where)
    _check_names(params, where)
    _check_geneval(params.rewards.geneval, params.prompts.world, where)
    _check_second_readers(params, where)
    _check_methods(params, where)
    _check_study(params.study, where)
    _check_runs(params, where)


def _check_batches(params: "Params", where: str) -> None:
    images, batch, group = params.images_per_epoch, params.rollout.batch, params.train.group_size
    if images % batch:
        raise StarError(
            f"{where}: rollout.batch {batch} does not divide train.prompts_per_epoch x train.group_size = {images}; "
            f"use one of {_fitting_batches(images, group)}"
        )
    if batch % group and group % batch:
        raise StarError(
            f"{where}: rollout.batch {batch} and train.group_size {group}: one must divide the other; "
            f"use a batch of {_fitting_batches(images, group)}"
        )
    if (images // batch) % params.train.updates_per_epoch:
        raise StarError(
            f"{where}: train.updates_per_epoch {params.train.updates_per_epoch} does not divide the {images // batch} "
            f"rollout batches of an epoch; use one of {_listed(_divisors(images // batch))}, or change rollout.batch"
        )


def _fitting_batches(images: int, group: int) -> str:
    return _listed([n for n in _divisors(images) if n % group == 0 or group % n == 0])


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def _listed(values: list[int]) -> str:
    return ", ".join(map(str, values))


def _check_rollout(rollout: "RolloutParams", where: str) -> None:
    first, end = rollout.window
    if not 0 <= first < end <= rollout.steps - 1:
        raise StarError(
            f"{where}: rollout.window [{first}, {end}] must be 0 <= first < end <= rollout.steps - 1 = "
            f"{rollout.steps - 1} (the last step is never stochastic: its log-prob explodes)"
        )
    if rollout.sampler == "cps" and rollout.noise_level > 1:
        raise StarError(
            f"{where}: rollout.noise_level {rollout.noise_level}: the sampler cps replaces a share of the "
            "noise; use at most 1"
        )


def _check_kl(train: "TrainParams", where: str) -> None:
    if train.kl_form == "none" and train.kl_beta > 0:
        raise StarError(
            f"{where}: train.kl_beta {train.kl_beta} wants a train.kl_form: published or exact"
        )


def _check_names(params: "Params", where: str) -> None:
    for key, path in params.paths():
        long = next((part for part in path.split("/") if len(part.encode()) > LONGEST_NAME), None)
        if long is not None:
            raise StarError(
                f"{where}: {key}: {shown(long)} is longer than {LONGEST_NAME} bytes; give a shorter name"
            )


def _check_geneval(geneval: "GenevalParams", world: str, where: str) -> None:
    key = "rewards.geneval"
    if geneval.detector == "mask2former":
        for name, example in (
            ("path", "facebook/mask2former-swin-small-coco-instance"),
            ("color_path", "openai/clip-vit-large-patch14"),
        ):
            if getattr(geneval, name) is None:
                raise StarError(
                    f"{where}: {key}.{name}: mask2former wants a directory or hub id, e.g. {example}"
                )
        return
    for name in ("path", "revision", "color_path", "color_revision"):
        value = getattr(geneval, name)
        if value is not None:
            raise StarError(
                f"{where}: {key}.{name} {value!r}: the detector exact opens no model; set null, or use "
                f"{key}.detector mask2former"
            )
    if world != "miniature":
        raise StarError(
            f"{where}: {key}.detector exact knows only the classes of prompts.world miniature, not of {world}; "
            "use mask2former"
        )


def _check_second_readers(params: "Params", where: str) -> None:
    for section, reader in (
        ("evaluate", params.evaluate.second_reader),
        ("study", params.study.second_reader),
    ):
        if reader == "template" and params.model.resolution != TEMPLATE_SIDE:
            raise StarError(
                f"{where}: {section}.second_reader template reads the miniature's signs of {TEMPLATE_SIDE} pixels, "
                f"model.resolution is {params.model.resolution}; use ppocrv6"
            )


def _check_methods(params: "Params", where: str) -> None:
    for key, changes in (
        ("allocation", {}),
        *((f"methods.{name}", section) for name, section in params.methods.items()),
        *((f"study.methods.{name}", section) for name, section in params.study.methods.items()),
    ):
        method = dataclasses.replace(params.allocation, **changes)
        if not any(method.encoders.values()):
            raise StarError(
                f"{where}: {key}: encoders are all 0, which leaves no core token; raise one"
            )
        if method.source == "guidance" and method.clause_wise and method.clause_maps == "share":
            raise StarError(
                f"{where}: {key}: with source guidance every clause has one map, so clause_maps share leaves none; "
                "set clause_maps to own, or clause_wise to false"
            )
        if method.temporal == "joint" and method.clause_wise and method.clause_maps == "share":
            raise StarError(
                f"{where}: {key}: a clause's share of the others' relevance is of one step, so temporal joint has "
                "nothing to compare over steps; set clause_maps to own, or temporal to per_step"
            )
        if method.objective == "scalar" and method.source != "uniform":
            raise StarError(
                f"{where}: {key}: the scalar objective has no place for maps of source {method.source}; "
                "use weighted or local, or the source uniform"
            )


def _check_study(study: "StudyParams", where: str) -> None:
    for name in STUDY_REFERENCES:
        if name not in study.methods:
            raise StarError(
                f"{where}: study.methods has no {name!r}: the study compares with flow_grpo and shuffled"
            )
    if study.aim not in study.methods or study.aim in STUDY_REFERENCES:
        raise StarError(
            f"{where}: study.aim {study.aim!r} is not one of study.methods besides {' and '.join(STUDY_REFERENCES)}"
        )
    if study.learning_rate in study.other_rates:
        raise StarError(
            f"{where}: study.other_rates has study.learning_rate {study.learning_rate:g} again"
        )
    if study.rate_seeds > study.seeds:
        raise StarError(
            f"{where}: study.rate_seeds {study.rate_seeds} is more than study.seeds {study.seeds}: rates are compared "
            "over the same seeds"
        )


def _check_runs(params: "Params", where: str) -> None:
    for task, methods in params.runs.items():
        for name in methods:
            if name not in params.methods:
                known = ", ".join(params.methods)
                raise StarError(
                    f"{where}: runs.{task}: no method {name!r} under `methods`; known: {known}"
                )
