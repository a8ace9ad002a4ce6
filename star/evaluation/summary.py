"""Writes what an evaluation leaves: a line per image, means with 95 % intervals over prompts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from star.evaluation.judging import Judge
from star.evaluation.scoring import Sample
from star.evaluation.statistics import bootstrap_mean
from star.system.files import write_text_atomic
from star.system.stopwatch import Stopwatch

# Score of a benchmark -> its key of an image's detail.
SCORES = {
    "geneval": {"strict": "strict", "soft": "soft"},
    "ocr": {"reward": "score", "exact": "exact"},
    "preference": {"score": "score"},
}


def image_lines(samples: Sequence[Sample], task: str, judge: Judge, watch: Stopwatch) -> list[dict]:
    """Return the lines of images.jsonl, each with a ``number``, the place of its image."""
    with watch("scoring"):
        figures = judge.figures(samples)
        readings = judge.readings(samples) if task == "ocr" else None
    lines = []
    for i, sample in enumerate(samples):
        planned, record = sample.planned, sample.record
        line: dict[str, Any] = {
            "number": planned.number,
            "id": record.id,
            "task": task,
            "index": planned.index,
            "seed": planned.seed,
            "prompt": record.prompt,
            "metadata": record.metadata,
            "score": sample.score,
            "detail": sample.detail,
            "quality": {name: round(value, 6) for name, value in figures[i].items()},
            "image": f"images/{planned.file}",
        }
        if readings is not None:
            line["second_read"] = readings[i].text
            line["quality"]["second_reader"] = round(readings[i].reward, 6)
        lines.append(line)
    return lines


def write_scores(
    output: Path,
    facts: Mapping[str, object],
    lines: Mapping[str, Sequence[dict]],
    resamples: int,
    seed: int,
) -> None:
    """Write images.jsonl, metrics.json (the means, for `dvc metrics`) and, last, scores.json.

    Args:
        facts: what scores.json says in addition to the scores.
        lines: of each benchmark, from `image_lines`.
        resamples, seed: of the bootstrap.
    """
    kept = [
        {k: v for k, v in line.items() if k != "number"} for part in lines.values() for line in part
    ]
    text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in kept)
    write_text_atomic(output / "images.jsonl", text)
    benchmarks = {task: _benchmark(task, part, resamples, seed) for task, part in lines.items()}
    means = {
        f"{task}_{key}": value["mean"]
        for task, benchmark in benchmarks.items()
        for key, value in benchmark.items()
        if key != "tags"
    }
    _write_json(output / "metrics.json", means)
    quality = {task: _quality(part, resamples, seed) for task, part in lines.items()}
    _write_json(output / "scores.json", {**facts, "benchmarks": benchmarks, "quality": quality})


def _write_json(path: Path, value: dict) -> None:
    write_text_atomic(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def _benchmark(task: str, lines: Sequence[dict], resamples: int, seed: int) -> dict[str, dict]:
    """Return mean and interval of each score; GenEval's are means of its tags' means."""
    details, ids = [line["detail"] for line in lines], np.array([line["id"] for line in lines])
    tags = np.array([detail["tag"] for detail in details]) if task == "geneval" else None
    values = {
        name: np.array([float(detail[key]) for detail in details])
        for name, key in SCORES[task].items()
    }
    found = {k: asdict(bootstrap_mean(v, resamples, seed, ids, tags)) for k, v in values.items()}
    if tags is not None:
        found["tags"] = {
            str(tag): {name: float(each[tags == tag].mean()) for name, each in values.items()}
            | {"n": int((tags == tag).sum())}
            for tag in np.unique(tags)
        }
    return found


def _quality(lines: Sequence[dict], resamples: int, seed: int) -> dict[str, dict[str, float]]:
    """Return mean and interval of each figure of the judge over the images that have it."""
    found = {}
    for name in sorted({name for line in lines for name in line["quality"]}):
        having = [line for line in lines if name in line["quality"]]
        values = np.array([line["quality"][name] for line in having])
        ids = np.array([line["id"] for line in having])
        found[name] = asdict(bootstrap_mean(values, resamples, seed, ids))
    return found
