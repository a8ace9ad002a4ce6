"""Do relevance maps lie on what the prompt names?  ``python -m benchmarks.maps [--params FILE] [--prompts N]``.

Draws the first test prompts of the GenEval-style and the OCR task with the base model and prints, for each denoising
step, the Pearson correlation of a picture's relevance map (Method, D2) with the share of each image token that its
finished picture covers with objects (GenEval) or black letters (OCR): means over pictures, as one JSON object.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import torch

from star.attention import CoreKeys
from star.core import core_token_weights, extract_core
from star.miniature.templates import coverage
from star.miniature.world import PALETTE
from star.params import Params, load_params
from star.policy import SD3Policy, load_policy
from star.prompts.prepare import prepare
from star.rollout import trace_relevance
from star.runtime import keep_freed_memory, stay_offline
from star.seeds import seed_of

REACH = 90.0  # RGB distance to black within which a pixel of a sign is a letter's


def drawn_share(task: str, image: np.ndarray, side: int) -> np.ndarray:
    """Share of each of side x side tokens that objects or letters cover: float (side * side,)."""
    if task == "ocr":
        covered = np.linalg.norm(image.astype(float) - PALETTE["black"], axis=-1) < REACH
    else:
        covered = coverage(image)
    token = len(image) // side
    return covered.reshape(side, token, side, token).mean((1, 3)).ravel()


def correlations(policy: SD3Policy, params: Params, task: str, count: int) -> list[float]:
    """Mean correlation at each denoising step; pictures without anything drawn are left out."""
    records = [dataclasses.replace(r, core=extract_core(r)) for r in prepare(task, params)[1][:count]]
    weights = [
        core_token_weights(record, policy.tokenizers, policy.text_lengths, params.core.weights).weights[None]
        for record in records
    ]
    maps, images = trace_relevance(
        policy,
        [record.prompt for record in records],
        [seed_of(params.seed, "evaluate", record.id, 0) for record in records],
        params.evaluate.steps,
        CoreKeys.from_weights(torch.from_numpy(np.stack(weights))),
        params.allocation,
    )
    side = int(maps.shape[-1] ** 0.5)
    shares = [drawn_share(task, image, side) for image in images]
    found = [
        [np.corrcoef(relevance, share)[0, 1] for relevance in trace[:, 0].numpy()]
        for trace, share in zip(maps, shares, strict=True)
        if share.std() > 0
    ]
    return np.mean(found, axis=0).round(3).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--prompts", type=int, default=48, help="prompts a task")
    options = parser.parse_args()
    stay_offline()
    keep_freed_memory()
    params = load_params(options.params)
    policy = load_policy(params.model, torch.device("cpu"))
    tasks = ("geneval", "ocr")
    print(json.dumps({task: correlations(policy, params, task, options.prompts) for task in tasks}))


if __name__ == "__main__":
    main()
