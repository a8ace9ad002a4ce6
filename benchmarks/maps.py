"""Measure whether relevance maps lie on what the prompt names.

    python -m benchmarks.maps > benchmarks/figures/maps.json

Draws test prompts with the base model. Correlates relevance maps (Method, D2) with the share of
each image token that the finished image covers. Figures are means over images at each denoising
step, for each transformer block and for the blocks of ``params.yaml``:

- ``covers``: the map of the whole core, with all objects (GenEval) or all ink (OCR).
- ``own``: the same after the mean over images is taken from both; 0 is a map that only knows where
  things usually are.
- ``tells_apart``: of each clause the map less the mean of the others', with what the clause names
  less what the others name. That is the objects of its class (GenEval prompts with two classes,
  both found by the exact detector), or the ink at the letter's place (OCR). 0 is a map that cannot
  say which clause owns a place.

Also by encoder, ``clip`` tokens alone and ``t5`` tokens alone. For GenEval also by kind of token:
``object`` nouns alone, and words of ``color``, ``count`` and ``relation`` alone, on the prompts
that have them. A count or a relation is of one clause, so these say nothing of which clause owns a
place.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from star.config.params import Params
from star.config.reading import load_params
from star.method.attention import CoreKeys
from star.method.seeds import seed_of
from star.miniature.templates import coverage
from star.miniature.world import BOARD, LETTER_SLOTS, PALETTE
from star.policy.rollout import trace_relevance
from star.policy.sd3 import SD3Policy, load_policy
from star.prompts.core_content import with_core
from star.prompts.core_tokens import clause_records, require_core_tokens
from star.prompts.prepare import prepare
from star.prompts.records import PromptRecord
from star.rewards.exact_detector import ExactDetector
from star.system.runtime import keep_freed_memory, stay_offline

# Kinds of span that only some of GenEval's prompts have: the tags of those.
TAGS = {"color": ("colors", "color_attr"), "count": ("counting",), "relation": ("position",)}
REACH = 90.0  # RGB distance to black within which a pixel of a sign is a letter's


def pooled(covered: np.ndarray, side: int) -> np.ndarray:
    """Return the share of each of side x side tokens that is covered.

    (height, width) -> float (side * side,).
    """
    token = len(covered) // side
    return covered.reshape(side, token, side, token).mean((1, 3)).ravel()


def ink(image: np.ndarray) -> np.ndarray:
    """Return which pixels of the board are a letter's, bool (height, width)."""
    black = np.linalg.norm(image.astype(float) - PALETTE["black"], axis=-1) < REACH
    black[: BOARD[1]] = black[BOARD[3] :] = False
    return black


def owned(record: PromptRecord, image: np.ndarray, detector: ExactDetector) -> list[np.ndarray]:
    """Return what each clause of a record covers of its image, bool (height, width).

    The list is empty where clauses cannot be told apart.
    """
    if "text" in record.metadata:
        black, x = ink(image), np.arange(image.shape[1])
        nearest = np.abs(x[:, None] - np.array(LETTER_SLOTS)).argmin(1)
        return [black & (nearest == letter) for letter in range(len(record.metadata["text"]))]
    found = detector.detect(image[None])[0]
    names = [clause["class"] for clause in record.metadata["include"]]
    masks = [[d.mask for d in found if d.name == name and d.score > 0.3] for name in names]
    if len(set(names)) < len(names) or not all(masks):
        return []
    return [np.any(mask, axis=0) for mask in masks]


def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the correlation over the last axis; 0 where one of the two is flat."""
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    size = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.divide((a * b).sum(-1), size, out=np.zeros_like(size), where=size > 0)


def figures(
    policy: SD3Policy,
    params: Params,
    records: Sequence[PromptRecord],
    kinds: Mapping[str, float],
    encoders: Mapping[str, float],
    blocks: Sequence[int],
) -> dict[str, list[float] | int]:
    """Return the three correlations at each denoising step.

    ``apart`` is how many images tell clauses apart.
    """

    def weights(record: PromptRecord) -> np.ndarray:
        return require_core_tokens(
            record, policy.tokenizers, policy.text_lengths, kinds, encoders
        ).weights

    def parts(record: PromptRecord) -> list[PromptRecord]:
        """Return the record, and each of its clauses if all have a span of these kinds."""
        clauses = clause_records(record)
        told = all(any(kinds[span.kind] > 0 for span in clause.core or ()) for clause in clauses)
        return [record, *clauses] if told else [record]

    clauses = [
        torch.from_numpy(np.stack([weights(part) for part in parts(record)])) for record in records
    ]
    traced, images = trace_relevance(
        policy,
        [record.prompt for record in records],
        [seed_of(params.seed, "evaluate", record.id, 0) for record in records],
        params.evaluate.steps,
        CoreKeys.from_weights(torch.nn.utils.rnn.pad_sequence(clauses, batch_first=True)),
        dataclasses.replace(params.allocation, blocks=list(blocks)),
    )
    maps, detector = traced.numpy(), ExactDetector()  # maps: (images, steps, 1 + clauses, tokens)
    side = int(maps.shape[-1] ** 0.5)
    wholes, apart = [], []
    for record, trace, image in zip(records, maps, images, strict=True):
        wholes.append(pooled(ink(image) if "text" in record.metadata else coverage(image), side))
        truth = np.array(
            [pooled(mask.astype(float), side) for mask in owned(record, image, detector)]
        )
        if len(truth) > 1 and len(parts(record)) > 1:
            shown = trace[:, 1 : 1 + len(truth)]
            apart.append(
                correlation(shown - shown.mean(1, keepdims=True), truth - truth.mean(0)).mean(1)
            )
    whole, core = np.stack(wholes)[:, None], maps[:, :, 0]
    means = {
        "covers": correlation(core, whole).mean(0),
        "own": correlation(core - core.mean(0), whole - whole.mean(0)).mean(0),
    }
    if apart:
        means["tells_apart"] = np.mean(apart, axis=0)
    return {name: steps.astype(float).round(3).tolist() for name, steps in means.items()} | {
        "apart": len(apart)
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--prompts", type=int, default=96, help="prompts a task")
    options = parser.parse_args()
    stay_offline()
    keep_freed_memory()
    params = load_params(options.params)
    policy = load_policy(params.model, torch.device("cpu"))
    count = len(policy.transformer.transformer_blocks)
    chosen = (
        range(count)
        if params.allocation.blocks == "all"
        else [int(b) for b in params.allocation.blocks]
    )
    core = (params.core.weights, params.allocation.encoders)
    read = {
        "core": core,
        "clip": (core[0], {"clip": 1.0, "t5": 0.0}),
        "t5": (core[0], {"clip": 0.0, "t5": 1.0}),
    }
    by_kind = {
        kind: ({k: float(k == kind) for k in core[0]}, core[1]) for kind in ("object", *TAGS)
    }
    result: dict[str, dict] = {}
    for task, reads in (("geneval", read | by_kind), ("ocr", read)):
        tested = with_core(prepare(task, params.prompts, params.seed)[1])
        for name, (kinds, encoders) in reads.items():
            # Prompts of GenEval come in turns of their tags, so that any first few have them all.
            fit = [r for r in tested if name not in TAGS or r.metadata["tag"] in TAGS[name]]
            for blocks in (("chosen", chosen), *((str(b), [b]) for b in range(count))):
                found = figures(policy, params, fit[: options.prompts], kinds, encoders, blocks[1])
                result.setdefault(f"{task} {name}", {})[blocks[0]] = found
    print(json.dumps(result))


if __name__ == "__main__":
    main()
