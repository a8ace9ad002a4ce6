"""Compare how much gradient each method makes of the same rollouts.

    python -m benchmarks.credit geneval > benchmarks/figures/credit-geneval.json

Every method of the study meets the same rollouts of the base model. What differs is the gradient
that its maps make of an epoch's rewards. Let ``g`` be a method's gradient of an epoch. ``G`` is
that of ``flow_grpo``, whose mean points where the reward rises, over *other* epochs:

    efficiency = mean <g, G> / sqrt(mean <g, g>),   as a ratio to flow_grpo's own.

Where noise dominates the gradient, the images that a gain costs go with its inverse square: 1.2 is
0.7 of them. Two more methods, ``star_precise`` and ``star_clauses_precise``, show what perfect maps
would be worth. Their maps are of what the finished image shows, in place of attention: where all
objects are, or each one's; for text, each letter's place. Intervals are 90 % bootstraps over
epochs.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.maps import owned, pooled
from star.config.params import Params
from star.config.reading import load_params
from star.policy.rollout import Trajectory, relevance_of, watched
from star.policy.sd3 import load_policy
from star.prompts.core_content import with_core
from star.prompts.prepare import prepare
from star.prompts.records import PromptRecord
from star.rewards.exact_detector import ExactDetector
from star.rewards.factory import build_reward
from star.system.runtime import keep_freed_memory, stay_offline
from star.training.trainer import Trainer

REFERENCE = "flow_grpo"
PRECISE = {
    "star_precise": "star",
    "star_clauses_precise": "star_clauses",
}  # maps of the finished image


def seen_relevance(run: Trainer, trajectory: Trajectory, records: Sequence[PromptRecord]) -> Tensor:
    """Return the relevance that the run's allocation would have read here: (B, T, K, P)."""
    core, masses = run.credit.core_keys(records, run.allocation.clause_wise), []
    timesteps = run.policy.schedule(run.params.rollout.steps).timesteps
    for row in range(trajectory.steps):
        alike = trajectory.shared if row == 0 else 1
        x, conditioning = trajectory.latents[row][::alike], trajectory.conditioning[::alike]
        timestep = timesteps[trajectory.first + row]
        with (
            torch.no_grad(),
            watched(run.policy, x, timestep, conditioning, core[::alike], run.allocation) as seen,
        ):
            run.policy.velocity(x, timestep, conditioning)
        masses.append(seen().repeat_interleave(alike, dim=0))
    return relevance_of(masses, core, run.allocation)


def precise_relevance(
    trajectory: Trajectory, records: Sequence[PromptRecord], clauses: int, shape: torch.Size
) -> Tensor:
    """Return what each clause covers of the finished image, the same at every step.

    It is flat where the image does not show the clause.
    """
    detector, side = ExactDetector(), int(shape[3] ** 0.5)
    maps = torch.ones(len(records), clauses, shape[3])
    for row, record, image in zip(maps, records, trajectory.images, strict=True):
        masks = [pooled(mask.astype(float), side) for mask in owned(record, image, detector)]
        if masks and clauses == 1:
            masks = [np.sum(masks, axis=0)]
        for k, mask in enumerate(masks):
            row[k] = torch.from_numpy(mask)
    return maps[:, None].expand(-1, shape[1], -1, -1)


def gradient(run: Trainer, scored: Sequence) -> np.ndarray:
    """Return the gradient of an epoch's surrogate at the policy that drew its rollouts.

    All parameters are in a row: float32 (parameters,).
    """
    steps = scored[0].trajectory.steps
    for item in scored:
        for row in range(steps):
            (run.algorithm.term(item, row, False).loss / (len(scored) * steps)).backward()
    flat = torch.cat(
        [
            torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
            for p in run.parameters
        ]
    )
    run.optimizer.zero_grad()
    return flat.numpy()


def gradients(
    params: Params, task: str, epochs: int, chosen: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return each method's gradients of the same rollouts, (epochs, parameters)."""
    records = with_core(prepare(task, params.prompts, params.seed)[0])
    methods = {
        name: dataclasses.replace(params.allocation, **changes)
        for name, changes in params.study.methods.items()
    }
    reward = build_reward(task, params.rewards)
    run = Trainer(
        params, methods[REFERENCE], records, reward, load_policy(params.model, torch.device("cpu"))
    )
    found: dict[str, list[np.ndarray]] = {name: [] for name in (REFERENCE, *chosen)}
    for epoch in tqdm(range(epochs), desc=task, unit="epoch"):
        run.epoch = epoch
        batches = run.plan.batches(epoch)
        run.allocate(methods[REFERENCE])
        plain = [cast(Trajectory, run.sample(batch)) for batch in batches]
        results = [
            reward.submit(t.images, b.records).result() for t, b in zip(plain, batches, strict=True)
        ]
        for name, gathered in found.items():
            run.allocate(methods[PRECISE.get(name, name)])
            drawn = plain
            if run.allocation.uses_maps:
                maps = [
                    seen_relevance(run, t, b.records) for t, b in zip(plain, batches, strict=True)
                ]
                if name in PRECISE:
                    maps = [
                        precise_relevance(t, b.records, seen.shape[2], seen.shape)
                        for t, b, seen in zip(plain, batches, maps, strict=True)
                    ]
                drawn = [
                    dataclasses.replace(t, relevance=m) for t, m in zip(plain, maps, strict=True)
                ]
            gathered.append(gradient(run, run.credit.weigh(epoch, batches, drawn, results)))
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
    parser.add_argument("--epochs", type=int, default=96)
    parser.add_argument(
        "--methods", nargs="+", help="default: all of `study`, and the two with maps of the image"
    )
    options = parser.parse_args()
    stay_offline()
    keep_freed_memory()
    params = dataclasses.replace(
        load_params(options.params), seed=1
    )  # rollouts that no committed run has seen
    chosen = options.methods or [
        name for name in (*params.study.methods, *PRECISE) if name != REFERENCE
    ]
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
