"""Measure what STAR costs on the miniature.

    python -m benchmarks.speed > benchmarks/figures/speed.json
    python -m benchmarks.speed --reuse > benchmarks/figures/reuse.json

All figures are ratios of runs interleaved in one process, medians over pairs with a 95 % interval,
the smallest and the largest pair:

- ``rollout``: images/s of `roll_out` with step means and maps, over images/s of the stock
  pipeline's ``__call__``. Model, steps, guidance, batch and precision are the same (at least 0.9
  wanted).
- ``epoch``: wall time of a STAR epoch over a uniform epoch (at most 1.03 wanted).
- ``reward``: for each task the wall time that scoring adds to an epoch, as a share of the epoch
  with a reward that costs nothing (at most 0.10 wanted).
- ``--reuse``: processor time of a Flow-GRPO epoch of one update over the same with
  `train.reuse_rollout` (at least 1.4 wanted), for the parameters' own steps and for Flow-GRPO's: 9
  of 10 are trained, and no noise is shared. Other programs lengthen it less than a wall clock.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from tqdm import tqdm

from star.config.params import Params
from star.config.reading import load_params
from star.doctor.measure import seconds
from star.doctor.random_weights import Free
from star.policy.sd3 import load_policy
from star.prompts.core_content import with_core
from star.prompts.prepare import prepare
from star.rewards.base import Reward
from star.rewards.factory import build_reward
from star.system.runtime import keep_freed_memory, stay_offline
from star.training.trainer import Trainer


def paired(first: Callable[[], float], second: Callable[[], float], pairs: int) -> dict[str, float]:
    """Return the ratio first/second of what the two return, run alternately.

    One pair goes uncounted. Every other pair begins with the second, so that a drift of the
    machine's speed favours neither.
    """

    def ratio(pair: int) -> float:
        if pair % 2:
            return first() / second()
        below = second()
        return first() / below

    return spread([ratio(pair) for pair in tqdm(range(pairs + 1), unit="pair", leave=False)][1:])


def spread(ratios: Sequence[float]) -> dict[str, float]:
    """Return the ``median`` of pairs, its 95 % bootstrap interval, and the smallest and largest."""
    drawn = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    middle = {"median": statistics.median(ratios), "low": float(low), "high": float(high)}
    return middle | {"min": min(ratios), "max": max(ratios), "pairs": len(ratios)}


def busy(work: Callable[[], object]) -> float:
    """Return the seconds of all processors that this process had for some work."""
    start = time.process_time()
    work()
    return time.process_time() - start


def trainer(params: Params, method: str, task: str, reward: Reward) -> Trainer:
    records = with_core(prepare(task, params.prompts, params.seed)[0])
    return Trainer(
        params,
        params.with_method(method).allocation,
        records,
        reward,
        load_policy(params.model, torch.device("cpu")),
    )


def rollout_ratio(params: Params, pairs: int) -> dict[str, float]:
    run = trainer(params, "star", "geneval", Free())
    batch = run.plan.batches(0)[0]
    pipe = StableDiffusion3Pipeline.from_pretrained(params.model.path, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)

    def stock() -> None:
        with run.policy.autocast():
            pipe(
                [record.prompt for record in batch.records],
                num_inference_steps=params.rollout.steps,
                guidance_scale=params.model.guidance_scale,
                height=params.model.resolution,
                width=params.model.resolution,
                max_sequence_length=params.model.t5_tokens,
                output_type="np",
            )

    # seconds(stock) / seconds(ours) is images/s of ours over images/s of stock
    return paired(lambda: seconds(stock), lambda: seconds(lambda: run.sample(batch)), pairs)


def epoch_ratio(params: Params, pairs: int) -> dict[str, float]:
    star, uniform = (trainer(params, method, "geneval", Free()) for method in ("star", "flow_grpo"))
    return paired(lambda: seconds(star.train_epoch), lambda: seconds(uniform.train_epoch), pairs)


def reward_share(params: Params, task: str, pairs: int) -> dict[str, float]:
    reward = build_reward(task, params.rewards)
    try:
        scored, free = (
            trainer(params, "flow_grpo", task, reward),
            trainer(params, "flow_grpo", task, Free()),
        )
        ratio = paired(
            lambda: seconds(scored.train_epoch), lambda: seconds(free.train_epoch), pairs
        )
    finally:
        reward.close()
    return {name: value - (name != "pairs") for name, value in ratio.items()}


def reuse_ratio(params: Params, pairs: int) -> dict[str, float]:
    """Return the processor time of an epoch over that of one with `train.reuse_rollout`."""
    own, reused = (
        trainer(
            dataclasses.replace(
                params,
                train=dataclasses.replace(params.train, updates_per_epoch=1, reuse_rollout=reuse),
            ),
            *("flow_grpo", "geneval", Free()),
        )
        for reuse in (False, True)
    )
    return paired(lambda: busy(own.train_epoch), lambda: busy(reused.train_epoch), pairs)


def reuse_figures(params: Params, pairs: int) -> dict[str, Any]:
    published = dataclasses.replace(params.rollout, steps=10, window=[0, 9], same_latent=False)
    cases = {"own window": params, "published": dataclasses.replace(params, rollout=published)}
    return {
        "images": params.images_per_epoch,
        **{
            name: {
                "steps": case.rollout.steps,
                "window": case.rollout.window,
                "same_latent": case.rollout.same_latent,
                **reuse_ratio(case, pairs),
            }
            for name, case in cases.items()
        },
        "load": os.getloadavg(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--reuse", action="store_true", help="only what train.reuse_rollout gains")
    options = parser.parse_args()
    stay_offline()
    keep_freed_memory()
    params = load_params(options.params)
    about = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    figures: dict[str, Any] = {"machine": f"{about}, no accelerator"}
    if options.reuse:
        figures |= reuse_figures(params, options.pairs)
        print(json.dumps(figures, indent=1))
        return
    figures |= {
        "rollout": rollout_ratio(params, options.pairs),
        "epoch": epoch_ratio(params, options.pairs),
        "reward": {task: reward_share(params, task, options.pairs) for task in params.runs},
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
