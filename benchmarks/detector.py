"""Measure the exact detector on rendered ground truth: strict accuracy by tag, time of an image.

    python benchmarks/detector.py [--world crowded] [--scenes 300] [--seed 0]

Prints one JSON object. Images come from `sample_metadata`, `sample_scene` and `render`. Times are
of one thread.
"""

import argparse
import json
import time

import numpy as np

from star.config.params import GenevalParams
from star.miniature.world import CLASSES, WORLDS, render, sample_scene
from star.prompts.geneval import TAGS, sample_metadata
from star.rewards.factory import build_detector
from star.rewards.geneval import judge

PARAMS = GenevalParams(
    detector="exact",
    path=None,
    revision=None,
    color_path=None,
    color_revision=None,
    batch=8,
    soft="clamped",
    score_threshold=0.3,
    counting_threshold=0.9,
    max_per_class=16,
)


def measure(tag: str, world: str, scenes: int, seed: int) -> dict[str, float]:
    """Return strict and soft means, milliseconds an image, and the lowest kept score."""
    rng = np.random.default_rng([seed, TAGS.index(tag)])
    lines = [sample_metadata(tag, CLASSES, rng) for _ in range(scenes)]
    images = np.stack([render(sample_scene(line, rng, world)) for line in lines])
    detector = build_detector(PARAMS)
    detector.detect(images[:20])  # templates are drawn once
    wall, cpu = time.perf_counter(), time.process_time()
    found = detector.detect(images)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    verdicts = [
        judge(detections, line, PARAMS) for detections, line in zip(found, lines, strict=True)
    ]
    return {
        "strict": float(np.mean([verdict.strict for verdict in verdicts])),
        "soft": float(np.mean([verdict.soft for verdict in verdicts])),
        "lowest_kept_score": min(
            d.score for detections in found for d in detections if d.score > PARAMS.score_threshold
        ),
        "ms_wall": 1000 * wall / scenes,
        "ms_cpu": 1000 * cpu / scenes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", choices=WORLDS, default="plain")
    parser.add_argument("--scenes", type=int, default=300, help="scenes a tag")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tags = {tag: measure(tag, options.world, options.scenes, options.seed) for tag in TAGS}
    means = {
        key: float(np.mean([tag[key] for tag in tags.values()]))
        for key in ("strict", "ms_wall", "ms_cpu")
    }
    rounded = {
        tag: {key: round(value, 4) for key, value in values.items()} for tag, values in tags.items()
    }
    print(
        json.dumps(
            {
                "scenes": options.scenes,
                "tags": rounded,
                "mean": {k: round(v, 4) for k, v in means.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
