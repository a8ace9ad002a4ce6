"""Held-out pair accuracy of the synthetic preference model, and its model card."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from star.pretraining.cards import render_card
from star.pretraining.data import Sample, sample
from star.pretraining.preference_pairs import CORRUPTIONS, WRONG_KINDS, corrupt, wrong_caption
from star.rewards.clip import Clip
from star.rewards.preference import clip_scores
from star.system.files import write_text_atomic

MILD, SEVERE = 0.25, 0.75  # severities of the "degrees" pairs
LOSSES = ("contrast", "captions", "corrupted", "attributes", "anchor")


@dataclass(frozen=True)
class Accuracy:
    """Shares of held-out pairs that are ranked rightly, by kind.

    Attributes:
        pairs_per_kind: number of pairs behind each share.
        captions: right caption above the wrong one, clean image.
        images: clean image above the corrupted one (severity uniform in [0, 1]), right caption.
        degrees: mildly corrupted image above the severely corrupted one, right caption.
        clean_score: mean and deviation of the score of clean images with their captions.
    """

    pairs_per_kind: int
    captions: dict[str, float]
    images: dict[str, float]
    degrees: dict[str, float]
    clean_score: dict[str, float]


def pair_accuracy(folder: Path, pairs: int, seed: int, of: str = "plain") -> Accuracy:
    """Measure a saved model on ``pairs`` fresh pairs a kind of a world, drawn from generators that
    training never uses."""
    clip = Clip(str(folder))

    def score(images: list[np.ndarray], texts: list[str]) -> np.ndarray:
        return clip_scores(clip, np.stack(images), texts)

    captions: dict[str, float] = {}
    for number, kind in enumerate(sorted(set().union(*WRONG_KINDS.values()))):
        rng = np.random.default_rng([seed, 5, number])
        tags = [tag for tag, kinds in WRONG_KINDS.items() if kind in kinds]
        items = _samples(tags, pairs, rng, of)
        clean = [item.image for item in items]
        wrong = score(clean, [wrong_caption(item, kind, rng) for item in items])
        captions[kind] = _share(score(clean, [item.prompt for item in items]), wrong)
    images: dict[str, float] = {}
    degrees: dict[str, float] = {}
    for number, kind in enumerate(CORRUPTIONS):
        rng = np.random.default_rng([seed, 6, number])
        items = _samples(list(WRONG_KINDS), pairs, rng, of)
        texts = [item.prompt for item in items]
        clean_scores = score([item.image for item in items], texts)
        any_severity = rng.uniform(0, 1, pairs)
        worse = score(_worse(items, kind, any_severity, [seed, 7]), texts)
        mild = score(_worse(items, kind, np.full(pairs, MILD), [seed, 8]), texts)
        severe = score(_worse(items, kind, np.full(pairs, SEVERE), [seed, 8]), texts)
        images[kind], degrees[kind] = _share(clean_scores, worse), _share(mild, severe)
    mean, std = (round(float(value), 2) for value in (clean_scores.mean(), clean_scores.std()))
    return Accuracy(pairs, captions, images, degrees, {"mean": mean, "std": std})


def _samples(tags: list[str], count: int, rng: np.random.Generator, of: str) -> list[Sample]:
    return [sample(str(rng.choice(tags)), rng, of) for _ in range(count)]


def _worse(
    items: list[Sample], kind: str, severities: np.ndarray, seed: list[int]
) -> list[np.ndarray]:
    worse = []
    for index, (item, severity) in enumerate(zip(items, severities, strict=True)):
        rng, other = np.random.default_rng([*seed, index]), items[(index + 1) % len(items)]
        worse.append(corrupt(item.image, kind, float(severity), rng, other.image))
    return worse


def _share(higher: np.ndarray, lower: np.ndarray) -> float:
    return round(float(np.mean(higher > lower)), 4)


def write_card(folder: Path, accuracy: Accuracy, config: dict) -> None:
    """Write ``README.md`` and ``accuracy.json`` of a saved model that has its ``log.jsonl``."""
    text = json.dumps(vars(accuracy), indent=1, sort_keys=True) + "\n"
    write_text_atomic(folder / "accuracy.json", text)
    write_text_atomic(folder / "README.md", card_text(folder, accuracy, config))


def card_text(folder: Path, accuracy: Accuracy, config: dict) -> str:
    """Return the card of a saved model that has its ``log.jsonl`` next to it."""
    log = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return render_card(
        "preference_card.j2",
        megabytes=(folder / "model.safetensors").stat().st_size / 1e6,
        last=json.loads(log[-1]),
        losses=LOSSES,
        config=config,
        accuracy=accuracy,
        mild=MILD,
        severe=SEVERE,
    )
