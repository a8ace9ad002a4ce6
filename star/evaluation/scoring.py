"""From images to the lines and the summary of an evaluation: the benchmark's reward, the second
OCR reader, what else can be seen in an image, means with 95 % bootstrap intervals over prompts.

`star.evaluation.evaluate` scores a checkpoint's images, `star.evaluation.score_folder` those of a
folder."""

import itertools
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from star.config.params import Params
from star.evaluation.held_out_reader import read_again
from star.evaluation.image_metrics import image_statistics
from star.evaluation.statistics import Interval, bootstrap_mean, bootstrap_tag_mean
from star.prompts.records import PromptRecord
from star.rewards.base import Reward, RewardError, scores_of
from star.rewards.guarded import GuardedReward
from star.rewards.preference import PreferenceReward
from star.system.files import write_text_atomic
from star.system.memory import memory_for

# An image's number among all of the benchmark; its prompt, its index among those of the prompt,
# the seed of its noise where that is known.
Numbered = tuple[int, tuple[PromptRecord, int, int | None]]


def image_name(record: PromptRecord, index: int) -> str:
    """File name of an image, below the folder of an evaluation's images."""
    return f"{record.id}_{index}.png"


@dataclass(frozen=True)
class Sample:
    """One scored image.

    number: among all of the benchmark; index: among those of its prompt; image: uint8 (height,
    width, 3)."""

    number: int
    record: PromptRecord
    index: int
    seed: int | None
    image: np.ndarray
    score: float
    detail: dict


def score_batches(
    batches: Iterable[tuple[Sequence[Numbered], np.ndarray]],
    reward: Reward,
    timeout: float,
    seconds: dict[str, float],
) -> list[Sample]:
    """Score batches of images; a reward that has processes of its own scores while the next batch
    is made.

    Args:
        batches: images uint8 (n, height, width, 3) and what they are.
        timeout: seconds that one batch may take.
        seconds: what the scores are waited for is added to ``scoring``.

    Raises:
        RewardError: the reward failed; the message names the record's id.
    """
    pending = []
    for batch, images in batches:
        with memory_for("scoring"):  # networks score at once
            pending.append(
                (batch, images, reward.submit(images, [record for _, (record, *_) in batch]))
            )
    clock = time.perf_counter()
    samples = []
    for batch, images, result in pending:
        scored = scores_of(result, [record for _, (record, *_) in batch], timeout)
        for (number, entry), image, score, detail in zip(
            batch, images, scored.scores, scored.details, strict=True
        ):
            if not np.isfinite(score):
                raise RewardError(
                    f"{entry[0].id}: reward {reward.name}: the score of an image is not finite"
                )
            samples.append(Sample(number, *entry, image, float(score), detail))
    seconds["scoring"] += time.perf_counter() - clock
    return samples


def image_lines(
    samples: Sequence[Sample],
    task: str,
    params: Params,
    judge: PreferenceReward,
    seconds: dict[str, float],
) -> list[dict]:
    """The lines of images.jsonl, an image each, with a ``number`` besides that says its place."""
    clock = time.perf_counter()
    by_batch = itertools.groupby(samples, key=lambda sample: sample.number // params.evaluate.batch)
    guarded = GuardedReward(judge, params.rewards.timeout)
    qualities = [quality for _, batch in by_batch for quality in _qualities(list(batch), guarded)]
    lines = [
        {
            "number": sample.number,
            "id": sample.record.id,
            "task": task,
            "index": sample.index,
            "seed": sample.seed,
            "prompt": sample.record.prompt,
            "metadata": sample.record.metadata,
            "score": sample.score,
            "detail": sample.detail,
            "quality": quality,
            "image": f"images/{image_name(sample.record, sample.index)}",
        }
        for sample, quality in zip(samples, qualities, strict=True)
    ]
    if task == "ocr" and params.evaluate.second_reader != "none":
        _add_second_readings(lines, samples, params)
    seconds["scoring"] += time.perf_counter() - clock
    return lines


def _add_second_readings(lines: Sequence[dict], samples: Sequence[Sample], params: Params) -> None:
    """Add to each line what the second reader reads in its image, and the figure
    ``second_reader``."""
    images, records = (
        [sample.image for sample in samples],
        [sample.record for sample in samples],
    )
    rewards, looks = params.rewards, params.evaluate
    readings = read_again(
        looks.second_reader, images, records, rewards.ocr.workers, rewards.timeout, looks.batch
    )
    for line, reading in zip(lines, readings, strict=True):
        line["second_read"] = reading.text
        line["quality"]["second_reader"] = round(reading.reward, 6)


def _qualities(samples: Sequence[Sample], judge: Reward) -> list[dict[str, float]]:
    """What `image_metrics` says of each image of a batch: judged together, however many processes
    there are."""
    images = np.stack([sample.image for sample in samples])
    with memory_for("scoring"):
        judged = judge.submit(images, [sample.record for sample in samples]).result()
    columns = image_statistics(images) | {
        "preference": np.array([detail["score"] for detail in judged.details])
    }
    return [
        {name: round(float(column[i]), 6) for name, column in columns.items()}
        for i in range(len(samples))
    ]


def write_scores(
    output: Path, facts: Mapping[str, object], lines: Mapping[str, list[dict]], params: Params
) -> None:
    """Write images.jsonl, metrics.json (the means alone: what `dvc metrics` shows) and scores.json,
    the last one last.

    Args:
        facts: what scores.json says besides the scores.
        lines: of each benchmark, from `image_lines`.
    """
    kept = [
        {key: value for key, value in line.items() if key != "number"}
        for part in lines.values()
        for line in part
    ]
    write_text_atomic(
        output / "images.jsonl", "".join(json.dumps(line, sort_keys=True) + "\n" for line in kept)
    )
    benchmarks = {task: _SUMMARIES[task](part, params) for task, part in lines.items()}
    means = {
        f"{task}_{key}": v["mean"]
        for task, b in benchmarks.items()
        for key, v in b.items()
        if key != "tags"
    }
    write_text_atomic(output / "metrics.json", json.dumps(means, indent=1, sort_keys=True) + "\n")
    quality = {task: _summarise_quality(part, params) for task, part in lines.items()}
    scores = {**facts, "benchmarks": benchmarks, "quality": quality}
    write_text_atomic(output / "scores.json", json.dumps(scores, indent=1, sort_keys=True) + "\n")


def _as_dict(interval: Interval) -> dict[str, float]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def _values(lines: Sequence[dict], key: str) -> np.ndarray:
    return np.array([float(line["detail"][key]) for line in lines])


def _summarise_geneval(lines: Sequence[dict], params: Params) -> dict:
    ids, tags = (
        np.array(column)
        for column in zip(*((x["id"], x["detail"]["tag"]) for x in lines), strict=True)
    )
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


def _summarise_quality(lines: Sequence[dict], params: Params) -> dict:
    """Mean and interval of each figure over the images that have it."""
    found = {}
    for name in sorted({name for line in lines for name in line["quality"]}):
        having = [line for line in lines if name in line["quality"]]
        values, ids = (
            np.array([line["quality"][name] for line in having]),
            np.array([line["id"] for line in having]),
        )
        found[name] = _as_dict(bootstrap_mean(values, params.evaluate.bootstrap, params.seed, ids))
    return found


_SUMMARIES = {
    "geneval": _summarise_geneval,
    "ocr": _summarise_ocr,
    "preference": _summarise_preference,
}
