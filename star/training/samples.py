"""Shows what a training learns: sample grids of fixed prompts and seeds, maps over the steps."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from star.config.params import AllocationParams
from star.method.allocation import allocation_weights
from star.method.attention import CoreKeys
from star.policy.rollout import sample_images, trace_relevance
from star.policy.sd3 import SD3Policy
from star.prompts.records import PromptRecord
from star.rewards.base import Reward
from star.system.files import write_text_atomic
from star.system.images import grid, overlay

SHEET_PROMPTS = 16  # images of a sample grid
MAP_PROMPTS = 3  # prompts whose maps are saved


def draw_samples(
    policy: SD3Policy,
    reward: Reward,
    records: Sequence[PromptRecord],
    seeds: Sequence[int],
    steps: int,
    core: CoreKeys | None,
    allocation: AllocationParams,
    epoch: int,
    folder: Path,
) -> dict[str, np.ndarray]:
    """Write ``samples/epoch_NNNN.png`` and, with maps, their overlays and ``maps/maps.json``.

    Args:
        records: the prompts to draw, one image each; the first `MAP_PROMPTS` get maps.
        seeds: of each image's noise.
        core: core tokens of the records; None for an allocation without maps.
        allocation: how maps become weights; the controls' rearrangements are not shown.

    Returns:
        The grid, ``samples``, and of each prompt with maps the overlays of all steps in a row,
        ``maps/i``: uint8 (height, width, 3).
    """
    prompts = [record.prompt for record in records]
    relevance = None
    if core is None:
        drawn = sample_images(policy, prompts, seeds, steps)
    else:
        relevance, drawn = trace_relevance(policy, prompts, seeds, steps, core, allocation)
    name = _name(epoch)
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    sheet = grid(drawn, columns=8)
    sheet.save(folder / "samples" / f"{name}.png")
    shown = {"samples": np.asarray(sheet)}
    if relevance is None:
        return shown
    lam, temporal, clause_maps = allocation.lam, allocation.temporal, allocation.clause_maps
    weights = allocation_weights(relevance, lam, temporal, clause_maps)[:, :, 0]
    rewards = reward.submit(drawn[:MAP_PROMPTS], records[:MAP_PROMPTS]).result().scores
    maps = folder / "maps"
    maps.mkdir(exist_ok=True)
    entries = []
    for i, record in enumerate(records[:MAP_PROMPTS]):
        final, files = f"{name}_{i}_final.png", [f"{name}_{i}_step_{t}.png" for t in range(steps)]
        grid(drawn[i : i + 1], columns=1).save(maps / final)
        overlays = [overlay(drawn[i], weights[i, t].cpu().numpy()) for t in range(steps)]
        for laid, file in zip(overlays, files, strict=True):
            laid.save(maps / file)
        shown[f"maps/{i}"] = np.concatenate([np.asarray(laid) for laid in overlays], axis=1)
        entry = {"epoch": epoch, "prompt": record.prompt, "reward": float(rewards[i])}
        entries.append({**entry, "final": final, "steps": list(range(steps)), "maps": files})
    index = maps / "maps.json"
    earlier = json.loads(index.read_text(encoding="utf-8")) if index.exists() else []
    kept = [entry for entry in earlier if entry["epoch"] < epoch]
    write_text_atomic(index, json.dumps(kept + entries, indent=1) + "\n")
    return shown


def saved_samples(folder: Path, epoch: int) -> dict[str, np.ndarray]:
    """Return what `draw_samples` returned at an epoch, from its files; nothing if it drew none."""
    sheet, index = folder / "samples" / f"{_name(epoch)}.png", folder / "maps/maps.json"
    if not sheet.exists():
        return {}
    shown = {"samples": np.asarray(Image.open(sheet))}
    entries = json.loads(index.read_text(encoding="utf-8")) if index.exists() else []
    for i, entry in enumerate(entry for entry in entries if entry["epoch"] == epoch):
        overlays = [np.asarray(Image.open(folder / "maps" / file)) for file in entry["maps"]]
        shown[f"maps/{i}"] = np.concatenate(overlays, axis=1)
    return shown


def _name(epoch: int) -> str:
    return f"epoch_{epoch:04d}"
