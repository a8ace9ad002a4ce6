"""Held-out pair accuracy of the synthetic preference model, and its model card."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from star.pretraining.preference_pairs import (
    CORRUPTIONS,
    WRONG_KINDS,
    Sample,
    corrupt,
    sample,
    wrong_caption,
)
from star.rewards.clip import Clip
from star.rewards.preference import clip_scores
from star.system.files import write_text_atomic

MILD, SEVERE = 0.25, 0.75  # severities of the "degrees" pairs


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

    def as_json(self) -> str:
        return json.dumps(vars(self), indent=1, sort_keys=True) + "\n"


def pair_accuracy(folder: Path, pairs: int, seed: int) -> Accuracy:
    """Accuracy of a saved model on ``pairs`` fresh pairs a kind, drawn from generators that
    training never uses."""
    clip = Clip(str(folder))

    def score(images: list[np.ndarray], texts: list[str]) -> np.ndarray:
        return clip_scores(clip, np.stack(images), texts)

    captions: dict[str, float] = {}
    for number, kind in enumerate(
        sorted({kind for kinds in WRONG_KINDS.values() for kind in kinds})
    ):
        rng = np.random.default_rng([seed, 5, number])
        items = _samples([tag for tag, kinds in WRONG_KINDS.items() if kind in kinds], pairs, rng)
        clean = [item.image for item in items]
        wrong = score(clean, [wrong_caption(item, kind, rng) for item in items])
        captions[kind] = _share(score(clean, _texts(items)), wrong)
    images: dict[str, float] = {}
    degrees: dict[str, float] = {}
    for number, kind in enumerate(CORRUPTIONS):
        rng = np.random.default_rng([seed, 6, number])
        items = _samples(list(WRONG_KINDS), pairs, rng)
        texts, clean_scores = _texts(items), score([item.image for item in items], _texts(items))
        images[kind] = _share(
            clean_scores, score(_worse(items, kind, rng.uniform(0, 1, pairs), [seed, 7]), texts)
        )
        mild = score(_worse(items, kind, np.full(pairs, MILD), [seed, 8]), texts)
        degrees[kind] = _share(
            mild, score(_worse(items, kind, np.full(pairs, SEVERE), [seed, 8]), texts)
        )
    spread = {
        "mean": round(float(clean_scores.mean()), 2),
        "std": round(float(clean_scores.std()), 2),
    }
    return Accuracy(pairs, captions, images, degrees, spread)


def _samples(tags: list[str], count: int, rng: np.random.Generator) -> list[Sample]:
    return [sample(str(rng.choice(tags)), rng) for _ in range(count)]


def _texts(items: list[Sample]) -> list[str]:
    return [item.metadata["prompt"] for item in items]


def _worse(
    items: list[Sample], kind: str, severities: np.ndarray, seed: list[int]
) -> list[np.ndarray]:
    others = items[1:] + items[:1]
    return [
        corrupt(
            item.image,
            kind,
            float(severity),
            np.random.default_rng([*seed, index]),
            other.image,
        )
        for index, (item, severity, other) in enumerate(zip(items, severities, others, strict=True))
    ]


def _share(higher: np.ndarray, lower: np.ndarray) -> float:
    return round(float(np.mean(higher > lower)), 4)


def write_card(folder: Path, accuracy: Accuracy, config: dict) -> None:
    """Write ``README.md`` and ``accuracy.json`` of a saved model that has its ``log.jsonl`` beside
    it."""
    last = json.loads((folder / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    weights = (folder / "model.safetensors").stat().st_size
    captions = [
        f"| {kind.replace('_', ' ')} | {share:.3f} |" for kind, share in accuracy.captions.items()
    ]
    corrupted = [
        f"| {kind} | {share:.3f} | {accuracy.degrees[kind]:.3f} |"
        for kind, share in accuracy.images.items()
    ]
    losses = ", ".join(
        f"{name} {last[name]:.3f}"
        for name in ("contrast", "captions", "corrupted", "attributes", "anchor")
    )
    text = _CARD.format(
        megabytes=weights / 1e6,
        images=last["images"],
        losses=losses,
        config=", ".join(f"{name} {value}" for name, value in config.items()),
        pairs=accuracy.pairs_per_kind,
        captions="\n".join(captions),
        corrupted="\n".join(corrupted),
        mild=MILD,
        severe=SEVERE,
        **accuracy.clean_score,
    )
    write_text_atomic(folder / "accuracy.json", accuracy.as_json())
    write_text_atomic(folder / "README.md", text)


_CARD = """\
# A synthetic stand-in for a preference model

A small `CLIPModel` ({megabytes:.1f} MB, half precision) trained from nothing on the miniature's world. **It has never
seen a human preference.** It stands where PickScore_v1 stands at full size, opened by the same code and read by the
same formula, `exp(logit_scale) * cos(image, text)`, so that the pipeline runs without a model hub. Its scores mean
nothing outside the 64x64 images of `star/miniature/world.py` and must not be compared with PickScore's.

## Data
Drawn on the fly, nothing stored: the world's mixture of prompts (`star/pretraining/preference_pairs.py`), for
each image wrong captions that differ in one fact, for half of them a corrupted version. No outside data.

## Training
`star pretrain-preference`; seeded by (seed, step), resumable, CPU. {images:,} images.
Settings: {config}.
Loss terms at the end: {losses} (`log.jsonl` has the curve). `attributes` is a helper head that is thrown away.

## Held-out pair accuracy
{pairs} fresh pairs a kind. Right caption above the wrong one, under the clean image:

| wrong fact | accuracy |
|---|---|
{captions}

Clean image above the corrupted one under the right caption (severity uniform from just visible to gross), and a
mildly corrupted image (severity {mild}) above a severely corrupted one ({severe}):

| corruption | clean above corrupted | mild above severe |
|---|---|---|
{corrupted}

Score of clean images with their captions: {mean} (deviation {std}).

## Limits
Corruptions are simulated, not what a generator does; kinds that training did not show are ranked less surely. Words
outside the world's vocabulary are spelled in characters the model hardly knows. Prompts are cut at 16 tokens.
"""
