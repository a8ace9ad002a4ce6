"""Writes what an evaluation leaves: a line per image, means with 95 % intervals over prompts."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from star.evaluation.judging import Judge
from star.evaluation.scoring import Sample
from star.evaluation.statistics import Interval, bootstrap_mean, bootstrap_tag_mean
from star.system.files import write_text_atomic
from star.system.stopwatch import Stopwatch


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
    summaries = {task: _Summary(part, resamples, seed) for task, part in lines.items()}
    benchmarks = {task: _BENCHMARKS[task](summary) for task, summary in summaries.items()}
    means = {
        f"{task}_{key}": value["mean"]
        for task, benchmark in benchmarks.items()
        for key, value in benchmark.items()
        if key != "tags"
    }
    _write_json(output / "metrics.json", means)
    quality = {task: summary.quality() for task, summary in summaries.items()}
    _write_json(output / "scores.json", {**facts, "benchmarks": benchmarks, "quality": quality})


def _write_json(path: Path, value: dict) -> None:
    write_text_atomic(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


class _Summary:
    """Means and intervals over the images of one benchmark, resampled by prompt."""

    def __init__(self, lines: Sequence[dict], resamples: int, seed: int) -> None:
        self.lines, self.resamples, self.seed = lines, resamples, seed
        self.ids = np.array([line["id"] for line in lines])

    def values(self, key: str) -> np.ndarray:
        return np.array([float(line["detail"][key]) for line in self.lines])

    def mean(self, key: str) -> dict[str, float]:
        return _ends(bootstrap_mean(self.values(key), self.resamples, self.seed, self.ids))

    def tag_mean(self, key: str) -> dict[str, float]:
        """Summarise the mean of the tags' means (GenEval, arXiv 2310.11513)."""
        options = self.resamples, self.seed, self.ids
        return _ends(bootstrap_tag_mean(self.values(key), self.tags(), *options))

    def tags(self) -> np.ndarray:
        return np.array([line["detail"]["tag"] for line in self.lines])

    def quality(self) -> dict[str, dict[str, float]]:
        """Summarise each figure of the judge over the images that have it."""
        found = {}
        for name in sorted({name for line in self.lines for name in line["quality"]}):
            having = [line for line in self.lines if name in line["quality"]]
            values = np.array([line["quality"][name] for line in having])
            ids = np.array([line["id"] for line in having])
            found[name] = _ends(bootstrap_mean(values, self.resamples, self.seed, ids))
        return found


def _ends(interval: Interval) -> dict[str, float]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def _geneval(summary: _Summary) -> dict:
    tags, strict, soft = summary.tags(), summary.values("strict"), summary.values("soft")
    by_tag = {
        str(tag): {
            "strict": float(strict[tags == tag].mean()),
            "soft": float(soft[tags == tag].mean()),
            "n": int((tags == tag).sum()),
        }
        for tag in np.unique(tags)
    }
    strict_mean, soft_mean = summary.tag_mean("strict"), summary.tag_mean("soft")
    return {"strict": strict_mean, "soft": soft_mean, "tags": by_tag}


_BENCHMARKS = {
    "geneval": _geneval,
    "ocr": lambda summary: {"reward": summary.mean("score"), "exact": summary.mean("exact")},
    "preference": lambda summary: {"score": summary.mean("score")},
}
