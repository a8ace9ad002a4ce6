"""Evaluation of one checkpoint on every benchmark: the same prompts and seeds for all checkpoints.

Pictures are deterministic (ODE) samples with the EMA adapter that the training exported. Scores come with 95 %
bootstrap intervals over prompts; differences to the base model are paired by picture in the report.
"""

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from tqdm import tqdm

from star.files import write_text_atomic
from star.params import TASKS, Params, fingerprint
from star.policy import SD3Policy, load_policy
from star.processes import ALONE, Processes
from star.records import PromptRecord, read_records
from star.rewards.base import Reward
from star.rewards.factory import build_reward
from star.rollout import sample_pictures
from star.seeds import seed_of
from star.statistics import Interval, bootstrap_mean, bootstrap_tag_mean


def evaluate(params: Params, checkpoint: str, adapter: Path | None, prompts: Path, work: Path, output: Path) -> None:
    """Evaluate ``checkpoint`` (``base`` or ``task-method``) and write scores.json, images.jsonl, pictures/ and
    metrics.json.

    The last holds the means alone: what `dvc metrics` shows, a row a checkpoint. Pictures are drawn to ``work`` first:
    a repeated call draws only the batches that are missing there. Of several processes each draws and scores its share
    of the batches; they share ``work`` and ``output``.

    Args:
        adapter: folder of LoRA safetensors, None for the base model.
        prompts: folder that holds ``<task>/test.jsonl`` for every task.
        work: folder of the state; it must belong to this checkpoint, these prompts and settings alone.
        output: folder; scores.json is written last.

    Raises:
        StarError: unreadable prompts, model or adapter, or a reward that fails.
    """
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    processes = Processes.of(accelerator)
    records = {task: read_records(prompts / task / "test.jsonl") for task in TASKS}
    policy = load_policy(params.model, accelerator.device, adapter)
    policy.compile()
    wanted = [record.prompt for tested in records.values() for record in tested]
    policy.prepare_prompts(processes.own(list(dict.fromkeys(wanted)), 1))
    accelerator.wait_for_everyone()
    seconds = {"sampling": 0.0, "scoring": 0.0}
    for task, tested in records.items():
        lines = _run_benchmark(policy, params, task, tested, work, processes, seconds)
        text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)
        write_text_atomic(work / f"{task}-{processes.rank}.jsonl", text)
    accelerator.wait_for_everyone()
    if processes.main:
        merged = {task: _merge(work, task, processes.count) for task in records}
        _write(params, checkpoint, adapter, merged, work, output, seconds)
        shutil.rmtree(work)
    accelerator.wait_for_everyone()


def _merge(work: Path, task: str, count: int) -> list[dict]:
    """The lines of all processes, in the order of prompts and pictures."""
    parts = [(work / f"{task}-{rank}.jsonl").read_text(encoding="utf-8").splitlines() for rank in range(count)]
    lines = [json.loads(line) for part in parts for line in part]
    return sorted(lines, key=lambda line: line["number"])


def _write(
    params: Params,
    checkpoint: str,
    adapter: Path | None,
    lines: Mapping[str, list[dict]],
    work: Path,
    output: Path,
    seconds: dict[str, float],
) -> None:
    """What is left of an evaluation: pictures, lines, means and scores, the last one last."""
    shutil.copytree(work / "pictures", output / "pictures", dirs_exist_ok=True)
    kept = [{key: value for key, value in line.items() if key != "number"} for part in lines.values() for line in part]
    write_text_atomic(output / "images.jsonl", "".join(json.dumps(line, sort_keys=True) + "\n" for line in kept))
    task, _, method = checkpoint.partition("-")
    benchmarks = {name: SUMMARIES[name](part, params) for name, part in lines.items()}
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
    """One scored picture.

    number: among all of the benchmark; index: among those of its prompt; picture: uint8 (height, width, 3).
    """

    number: int
    record: PromptRecord
    index: int
    seed: int
    picture: np.ndarray
    score: float
    detail: dict


def draw_and_score(
    policy: SD3Policy,
    params: Params,
    records: Sequence[PromptRecord],
    reward: Reward,
    images_per_prompt: int,
    seconds: dict[str, float],
    folder: Path | None = None,
    processes: Processes = ALONE,
) -> list[Sample]:
    """This process's pictures of all prompts by ODE steps, from noise that depends on the prompt's id alone, and their
    scores.

    Args:
        seconds: what drawing and scoring take is added to ``sampling`` and ``scoring``.
        folder: of the pictures as PNG; batches that it has are read and not drawn. A batch is drawn whole or not at
            all, because a picture's last bits may depend on its neighbours'.
    """
    settings = params.evaluate
    plan = [(r, i, seed_of(params.seed, "evaluate", r.id, i)) for r in records for i in range(images_per_prompt)]
    numbered = list(enumerate(plan))
    batches = [numbered[start : start + settings.batch] for start in range(0, len(plan), settings.batch)]
    pending = []
    title = f"evaluate {reward.name}"
    for batch in tqdm(processes.own(batches, 1), desc=title, unit="batch", leave=False, disable=not processes.main):
        drawn = [entry for _, entry in batch]
        clock = time.perf_counter()
        pictures = _read_pictures(folder, drawn)
        if pictures is None:
            pictures = sample_pictures(policy, [r.prompt for r, *_ in drawn], [s for *_, s in drawn], settings.steps)
            _save_pictures(folder, drawn, pictures)
        seconds["sampling"] += time.perf_counter() - clock
        pending.append((batch, pictures, reward.submit(pictures, [r for r, *_ in drawn])))
    clock = time.perf_counter()
    samples = []
    for batch, pictures, result in pending:
        scored = result.result()
        for (number, entry), picture, score, detail in zip(batch, pictures, scored.scores, scored.details, strict=True):
            samples.append(Sample(number, *entry, picture, float(score), detail))
    seconds["scoring"] += time.perf_counter() - clock
    return samples


def _picture_name(record: PromptRecord, index: int) -> str:
    return f"{record.id}_{index}.png"


def _read_pictures(folder: Path | None, drawn: Sequence[tuple[PromptRecord, int, int]]) -> np.ndarray | None:
    """The pictures of a batch, if the folder has them all."""
    paths = [folder / _picture_name(record, index) for record, index, _ in drawn] if folder else []
    if not paths or not all(path.exists() for path in paths):
        return None
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])


def _save_pictures(folder: Path | None, drawn: Sequence[tuple[PromptRecord, int, int]], pictures: np.ndarray) -> None:
    """Each under a temporary name first: a picture that has its name is whole."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for (record, index, _), picture in zip(drawn, pictures, strict=True):
        path = folder / _picture_name(record, index)
        temporary = path.with_suffix(".tmp")
        Image.fromarray(picture).save(temporary, format="png")
        os.replace(temporary, path)


def _run_benchmark(
    policy: SD3Policy,
    params: Params,
    task: str,
    records: Sequence[PromptRecord],
    work: Path,
    processes: Processes,
    seconds: dict[str, float],
) -> list[dict]:
    """Draw and score this process's pictures of one benchmark; returns its lines of images.jsonl, numbered."""
    reward = build_reward(task, params.rewards)
    count = params.evaluate.images_per_prompt[task]
    try:
        samples = draw_and_score(policy, params, records, reward, count, seconds, work / "pictures", processes)
    finally:
        reward.close()
    return [
        {
            "number": sample.number,
            "id": sample.record.id,
            "task": task,
            "index": sample.index,
            "seed": sample.seed,
            "prompt": sample.record.prompt,
            "score": sample.score,
            "detail": sample.detail,
            "picture": f"pictures/{_picture_name(sample.record, sample.index)}",
        }
        for sample in samples
    ]


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
