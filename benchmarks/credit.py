"""Compare how much gradient each method makes of the same rollouts.

    python -m benchmarks.credit geneval > benchmarks/figures/credit-geneval.json
    python -m benchmarks.credit geneval --model models/crowded --algorithm awm \\
        --methods star shuffled star_places star_clauses_places

Every allocation of the study meets the same rollouts of the base model. What differs is the
gradient that its maps make of an epoch's rewards. Let ``g`` be a method's gradient of an epoch.
``G`` is that of ``flow_grpo``, the method without maps (of either algorithm), whose mean points
where the reward rises, over *other* epochs:

    efficiency = mean <g, G> / sqrt(mean <g, g>),   as a ratio to flow_grpo's own.

Where noise dominates the gradient, the images that a gain costs go with its inverse square: 1.2 is
0.7 of them. Two more methods, ``star_precise`` and ``star_clauses_precise``, show what perfect maps
would be worth. Their maps are of what the finished image shows, in place of attention: where all
objects are, or each one's; for text, each letter's place. ``star_places`` and
``star_clauses_places`` are for the crowded world alone. Their maps are of its places: those of the
prompt's objects, and those where objects that are missing would be. Intervals are 90 % bootstraps
over epochs.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.maps import owned, pooled
from star.config.params import AllocationParams, Params
from star.config.reading import load_params
from star.miniature.world import BOARD, GRID, GRID_SIZE, LETTER_SLOTS, SIZE
from star.policy.rollout import Trajectory, relevance_of, watched
from star.policy.sd3 import load_policy
from star.prompts.core_content import with_core
from star.prompts.prepare import prepare
from star.prompts.records import PromptRecord
from star.rewards.exact_detector import ExactDetector
from star.rewards.factory import build_reward
from star.system.runtime import keep_freed_memory, stay_offline
from star.training.algorithm import Algorithm, Scored
from star.training.forward_process import Noised
from star.training.trainer import ALGORITHMS, Trainer

REFERENCE = "flow_grpo"
THRESHOLD = 0.3  # score of a detection that counts

Masks = Callable[[PromptRecord, np.ndarray, ExactDetector], list[np.ndarray]]


def places(record: PromptRecord, image: np.ndarray, detector: ExactDetector) -> list[np.ndarray]:
    """Return each clause's places in an image of the crowded world, bool (height, width).

    A letter has its slot; the last one also those behind it, where letters are too many. An object
    that is missing has all free places where the prompt allows it.
    """
    masks = []
    if "text" in record.metadata:
        word, middle = record.metadata["text"], (BOARD[1] + BOARD[3]) // 2
        for letter, x in enumerate(LETTER_SLOTS[: len(word)]):
            mask = np.zeros((SIZE, SIZE), bool)
            end = x + 6 if letter + 1 < len(word) else BOARD[2]
            mask[middle - 9 : middle + 9, x - 6 : end] = True
            masks.append(mask)
        return masks
    include = record.metadata["include"]
    found: list[set[int]] = [set() for _ in include]
    for detection in detector.detect(image[None])[0]:
        x, y = np.reshape(detection.box, (2, 2)).mean(0)
        place = int(np.argmin([np.hypot(x - u, y - v) for u, v in GRID]))
        for clause, its in zip(include, found, strict=True):
            if detection.name == clause["class"] and detection.score > THRESHOLD:
                its.add(place)
    free = set(range(len(GRID))) - set().union(*found)
    for index, clause in enumerate(include):
        its = set(found[index])
        if len(its) < clause["count"]:
            fit = free
            if len(include) == 2 and (others := found[1 - index]):
                fit = {p for p in free if any(_related(include, index, p, q) for q in others)}
            its |= fit or free
        masks.append(_covered(its))
    return masks


def _related(include: Sequence[dict], index: int, place: int, other: int) -> bool:
    """Tell whether clause ``index`` may stand at a place if the other clause's object has one."""
    second, first = (place, other) if index == 1 else (other, place)
    dx, dy = np.subtract(GRID[second], GRID[first])
    sides = {"left of": dx < 0, "right of": dx > 0, "above": dy < 0, "below": dy > 0}
    asked = "position" not in include[1] or sides[include[1]["position"][0]]
    return bool(asked) and (dx == 0) != (dy == 0)


def _covered(chosen: set[int]) -> np.ndarray:
    mask, half = np.zeros((SIZE, SIZE), bool), GRID_SIZE // 2 + 1
    for x, y in (GRID[place] for place in chosen):
        mask[y - half : y + half, x - half : x + half] = True
    return mask


PRECISE: dict[str, tuple[str, Masks]] = {  # the method whose maps these replace
    "star_precise": ("star", owned),
    "star_clauses_precise": ("star_clauses", owned),
    "star_places": ("star", places),
    "star_clauses_places": ("star_clauses", places),
}


def seen_relevance(
    run: Trainer, drawn: Trajectory | Noised, records: Sequence[PromptRecord]
) -> Tensor:
    """Return the relevance that the run's allocation would have read here: (B, T, K, P)."""
    core, masses = run.credit.core_keys(records, run.allocation.clause_wise), []
    timesteps = run.policy.schedule(run.params.rollout.steps).timesteps
    for row in range(drawn.steps):
        alike = 1
        timestep: float | Tensor
        if isinstance(drawn, Noised):
            x, timestep = drawn.at(row), run.policy.timesteps(drawn.levels[row])
        else:
            alike = drawn.shared if row == 0 else 1
            x, timestep = drawn.latents[row][::alike], timesteps[drawn.first + row]
        inputs = x, timestep, drawn.conditioning[::alike]
        with torch.no_grad(), watched(run.policy, *inputs, core[::alike], run.allocation) as seen:
            run.policy.velocity(*inputs)
        masses.append(seen().repeat_interleave(alike, dim=0))
    return relevance_of(masses, core, run.allocation)


def precise_relevance(
    images: np.ndarray, records: Sequence[PromptRecord], masks_of: Masks, shape: torch.Size
) -> Tensor:
    """Return what each clause covers of the finished image, (B, T, K, P), the same at every step.

    It is flat where the image does not show the clause.
    """
    detector, side, clauses = ExactDetector(), int(shape[3] ** 0.5), shape[2]
    maps = torch.ones(len(records), clauses, shape[3])
    for row, record, image in zip(maps, records, images, strict=True):
        masks = masks_of(record, image, detector)
        if masks and clauses == 1:
            masks = [np.any(masks, axis=0)]
        if masks:
            row.zero_()  # clauses of longer prompts
        for k, mask in enumerate(masks):
            row[k] = torch.from_numpy(pooled(mask.astype(float), side))
    return maps[:, None].expand(-1, shape[1], -1, -1)


def once(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a function that gives the first call's result for ever."""
    found: list[Tensor] = []

    def call(*arguments: object) -> Tensor:
        if not found:
            found.append(function(*arguments))
        return found[0]

    return call


def gradient_of_each(
    run: Trainer, each: Mapping[str, tuple[Algorithm, Sequence[Scored]]]
) -> dict[str, np.ndarray]:
    """Return the gradients of the methods' surrogates at the policy that drew the rollouts.

    They share a forward pass. All parameters are in a row: float32 (parameters,).
    """
    items = list(zip(*(scored for _, scored in each.values()), strict=True))
    steps, velocity_of = items[0][0].trajectory.steps, run.policy.velocity
    sums = {name: np.zeros(sum(p.numel() for p in run.parameters), np.float32) for name in each}
    for same in items:
        for row in range(steps):
            run.policy.velocity = once(velocity_of)  # type: ignore[method-assign]
            for (name, (algorithm, _)), item in zip(each.items(), same, strict=True):
                loss = algorithm.term(item, row, False).loss / (len(items) * steps)
                found = torch.autograd.grad(
                    loss, run.parameters, retain_graph=True, materialize_grads=True
                )
                sums[name] += torch.cat([grad.flatten() for grad in found]).numpy()
    run.policy.velocity = velocity_of  # type: ignore[method-assign]
    return sums


def allocations(params: Params) -> dict[str, AllocationParams]:
    """Return the study's methods that change nothing but the allocation."""
    own = {field.name for field in dataclasses.fields(AllocationParams)}
    return {
        name: dataclasses.replace(params.allocation, **changes)
        for name, changes in params.study.methods.items()
        if changes.keys() <= own
    }


def gradients(
    params: Params, task: str, epochs: int, chosen: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return each method's gradients of the same rollouts, (epochs, parameters)."""
    records = with_core(prepare(task, params.prompts, params.seed)[0])
    methods = allocations(params)
    reward = build_reward(task, params.rewards)
    run = Trainer(
        params, methods[REFERENCE], records, reward, load_policy(params.model, torch.device("cpu"))
    )
    found: dict[str, list[np.ndarray]] = {name: [] for name in (REFERENCE, *chosen)}
    for epoch in tqdm(range(epochs), desc=task, unit="epoch"):
        run.epoch = epoch
        batches = run.plan.batches(epoch)
        run.allocate(methods[REFERENCE])
        plain = [cast(Trajectory | Noised, run.sample(batch)) for batch in batches]
        results = [
            reward.submit(t.images, b.records).result() for t, b in zip(plain, batches, strict=True)
        ]
        each = {}
        for name in found:
            like, masks = PRECISE.get(name, (name, None))
            run.allocate(methods[like])
            drawn = plain
            if run.allocation.uses_maps:
                maps = [
                    seen_relevance(run, t, b.records) for t, b in zip(plain, batches, strict=True)
                ]
                if masks:
                    maps = [
                        precise_relevance(t.images, b.records, masks, seen.shape)
                        for t, b, seen in zip(plain, batches, maps, strict=True)
                    ]
                drawn = [
                    dataclasses.replace(t, relevance=m) for t, m in zip(plain, maps, strict=True)
                ]
            each[name] = run.algorithm, run.credit.weigh(epoch, batches, drawn, results)
        for name, gradient in gradient_of_each(run, each).items():
            found[name].append(gradient)
    reward.close()
    return {name: np.stack(rows) for name, rows in found.items()}


def efficiency(own: np.ndarray, reference: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return ``mean <g, G> / sqrt(mean <g, g>)`` for each row of ``counts``.

    Pairs of an epoch with itself are left out: they share their noise.

    Args:
        counts: how often each epoch was drawn, (draws, epochs).
    """
    products = (own @ reference.T).astype(np.float64)
    np.fill_diagonal(products, 0.0)
    aligned = np.einsum("ra,ab,rb->r", counts, products, counts) / (
        counts.sum(1) ** 2 - (counts**2).sum(1)
    )
    return aligned / np.sqrt(counts @ np.square(own, dtype=np.float64).sum(1) / counts.sum(1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=("geneval", "ocr"))
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--model", help="default: model.path")
    parser.add_argument("--algorithm", choices=list(ALGORITHMS), help="default: train.algorithm")
    parser.add_argument("--epochs", type=int, default=96)
    parser.add_argument(
        "--methods", nargs="+", help="default: all of `study`, and the two with maps of the image"
    )
    options = parser.parse_args()
    stay_offline()
    keep_freed_memory()
    read = load_params(options.params)
    model, algorithm = options.model or read.model.path, options.algorithm or read.train.algorithm
    params = dataclasses.replace(
        read,
        seed=1,  # rollouts that no committed run has seen
        model=dataclasses.replace(read.model, path=model),
        train=dataclasses.replace(read.train, algorithm=algorithm),
    )
    every = (*allocations(params), "star_precise", "star_clauses_precise")
    chosen = options.methods or [name for name in every if name != REFERENCE]
    found = gradients(params, options.task, options.epochs, chosen)
    drawn = np.random.default_rng(0).multinomial(
        options.epochs, np.full(options.epochs, 1 / options.epochs), size=1000
    )
    counts = np.vstack([np.ones(options.epochs), drawn])  # the first row is every epoch once
    base = efficiency(found[REFERENCE], found[REFERENCE], counts)
    result = {}
    for name, rows in found.items():
        ratios = efficiency(rows, found[REFERENCE], counts) / base
        low, high = np.percentile(ratios[1:], [5, 95])
        result[name] = {
            "efficiency": round(ratios[0], 3),
            "low": round(low, 3),
            "high": round(high, 3),
        }
    json.dump(
        {"epochs": options.epochs, "images": options.epochs * params.images_per_epoch, **result},
        sys.stdout,
    )
    print()


if __name__ == "__main__":
    main()
