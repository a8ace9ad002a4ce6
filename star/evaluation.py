"""Evaluation of one checkpoint on every benchmark: the same prompts and seeds for all checkpoints.

Pictures are deterministic (ODE) samples with the EMA adapter that the training exported. Scores come with 95 %
bootstrap intervals over prompts; differences to the base model are paired by picture in the report.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from star.files import write_text_atomic
from star.params import TASKS, Params, fingerprint
from star.policy import SD3Policy, load_policy
from star.records import PromptRecord, read_records
from star.rewards.base import Reward
from star.rewards.factory import build_reward
from star.rollout import sample_pictures
from star.seeds import seed_of
from star.statistics import Interval, bootstrap_mean, bootstrap_tag_mean


def evaluate(params: Params, checkpoint: str, adapter: Path | None, prompts: Path, output: Path) -> None:
    """Evaluate ``checkpoint`` (``base`` or ``task-method``) and write scores.json, images.jsonl, pictures/ and
    metrics.json.

    The last holds the means alone: what `dvc metrics` shows, a row a checkpoint.

    Args:
        adapter: folder of LoRA safetensors, None for the base model.
        prompts: folder that holds ``<task>/test.jsonl`` for every task.
        output: folder; scores.json is written last.

    Raises:
        StarError: unreadable prompts, model or adapter, or a reward that fails.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    records = {task: read_records(prompts / task / "test.jsonl") for task in TASKS}
    policy = load_policy(params.model, device, adapter)
    policy.compile()
    policy.prepare_prompts([record.prompt for tested in records.values() for record in tested])
    lines: list[dict] = []
    benchmarks, seconds = {}, {"sampling": 0.0, "scoring": 0.0}
    for task, tested in records.items():
        task_lines = _run_benchmark(policy, params, task, tested, output, seconds)
        benchmarks[task] = SUMMARIES[task](task_lines, params)
        lines += task_lines
    write_text_atomic(output / "images.jsonl", "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines))
    task, _, method = checkpoint.partition("-")
    scores = {
        "checkpoint": checkpoint,
        "task": task if method else None,
        "method": method or None,
        "adapter": str(adapter) if adapter else None,
        "params_fingerprint": fingerprint(params.model, params.rewards, params.evaluate, params.seed),
        "benchmarks": benchmarks,
        "seconds": seconds,
    }
    means = {
        f"{task}_{key}": value["mean"] for task, b in benchmarks.items() for key, value in b.items() if key != "tags"
    }
    write_text_atomic(output / "metrics.json", json.dumps(means, indent=1, sort_keys=True) + "\n")
    write_text_atomic(output / "scores.json", json.dumps(scores, indent=1, sort_keys=True) + "\n")


@dataclass(frozen=True)
class Sample:
    """One scored picture. index: of the pictures of one prompt; picture: uint8 (height, width, 3)."""

    record: PromptRecord
    index: int
    seed: int
    picture: np.ndarray
    score: float
    detail: dict


def draw_and_score(
    policy: SD3Policy, params: Params, records: Sequence[PromptRecord], reward: Reward, seconds: dict[str, float]
) -> list[Sample]:
    """Pictures of all prompts by ODE steps, from noise that depends on the prompt's id alone, and their scores.

    Adds to ``seconds["sampling"]`` and ``seconds["scoring"]``.
    """
    settings = params.evaluate
    work = [
        (r, i, seed_of(params.seed, "evaluate", r.id, i)) for r in records for i in range(settings.images_per_prompt)
    ]
    pending = []
    for start in tqdm(range(0, len(work), settings.batch), desc=f"evaluate {reward.name}", unit="batch", leave=False):
        batch = work[start : start + settings.batch]
        clock = time.perf_counter()
        pictures = sample_pictures(policy, [r.prompt for r, _, _ in batch], [s for *_, s in batch], settings.steps)
        seconds["sampling"] += time.perf_counter() - clock
        pending.append((batch, pictures, reward.submit(pictures, [r for r, _, _ in batch])))
    clock = time.perf_counter()
    samples = []
    for batch, pictures, result in pending:
        scored = result.result()
        for (record, index, seed), picture, score, detail in zip(
            batch, pictures, scored.scores, scored.details, strict=True
        ):
            samples.append(Sample(record, index, seed, picture, float(score), detail))
    seconds["scoring"] += time.perf_counter() - clock
    return samples


def _run_benchmark(
    policy: SD3Policy,
    params: Params,
    task: str,
    records: Sequence[PromptRecord],
    output: Path,
    seconds: dict[str, float],
) -> list[dict]:
    """Sample and score every picture of one benchmark; returns its lines of images.jsonl and adds to ``seconds``."""
    folder = output / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    reward = build_reward(task, params.rewards)
    try:
        samples = draw_and_score(policy, params, records, reward, seconds)
    finally:
        reward.close()
    lines = []
    for sample in samples:
        name = f"{sample.record.id}_{sample.index}.png"
        Image.fromarray(sample.picture).save(folder / name)
        line = {"id": sample.record.id, "task": task, "index": sample.index, "seed": sample.seed}
        line |= {"prompt": sample.record.prompt, "score": sample.score, "detail": sample.detail}
        lines.append(line | {"picture": f"pictures/{name}"})
    return lines


def _as_dict(interval: Interval) -> dict[str, float]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def _values(lines: Sequence[dict], key: str) -> np.ndarray:
    return np.array([float(line["detail"][key]) for line in lines])


def _summarise_geneval(lines: Sequence[dict], params: Params) -> dict:
    ids, tags = (np.array(column) for column in zip(*((x["id"], x["detail"]["tag"]) for x in lines), strict=True))
    strict, soft = _values(lines, "strict"), _values(lines, "soft")
    options = (params.evaluate.bootstrap, params.seed, ids)
    return {
        "strict": _as_dict(bootstrap_tag_mean(strict, tags, *options)),
        "soft": _as_dict(bootstrap_tag_mean(soft, tags, *options)),
        "tags": {
            str(tag): {
                "strict": float(strict[tags == tag].mean()),
                "soft": float(soft[tags == tag].mean()),
                "n": int((tags == tag).sum()),
            }
            for tag in np.unique(tags)
        },
    }


def _summarise_ocr(lines: Sequence[dict], params: Params) -> dict:
    options = (params.evaluate.bootstrap, params.seed, np.array([line["id"] for line in lines]))
    return {
        "reward": _as_dict(bootstrap_mean(_values(lines, "score"), *options)),
        "exact": _as_dict(bootstrap_mean(_values(lines, "exact"), *options)),
    }


def _summarise_preference(lines: Sequence[dict], params: Params) -> dict:
    options = (params.evaluate.bootstrap, params.seed, np.array([line["id"] for line in lines]))
    return {"score": _as_dict(bootstrap_mean(_values(lines, "score"), *options))}


SUMMARIES = {"geneval": _summarise_geneval, "ocr": _summarise_ocr, "preference": _summarise_preference}
