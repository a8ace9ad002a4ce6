"""What both pretrainings draw: images of a world with their facts; nothing is stored."""

from dataclasses import dataclass

import numpy as np

from star.miniature import world
from star.prompts.geneval import TAGS, sample_metadata
from star.prompts.ocr import MINIATURE_TEMPLATES

# Colours are learnt last: two prompts in five name them.
TAG_WEIGHTS = dict(zip(TAGS, (0.06, 0.10, 0.12, 0.18, 0.14, 0.22), strict=True)) | {"sign": 0.18}


@dataclass(frozen=True)
class Sample:
    """An image's facts: GenEval metadata (tag ``sign`` for a word), scene, and the clean image."""

    tag: str
    metadata: dict
    scene: world.Scene
    image: np.ndarray  # uint8 (64, 64, 3)

    @property
    def prompt(self) -> str:
        return self.metadata["prompt"]


def sample(tag: str, rng: np.random.Generator, of: str = "plain") -> Sample:
    """Draw one image of a tag of `TAG_WEIGHTS`, of one of `world.WORLDS`."""
    metadata = _sample_sign(rng) if tag == "sign" else sample_metadata(tag, world.CLASSES, rng)
    scene = world.sample_scene(metadata, rng, of)
    return Sample(tag, metadata, scene, world.render(scene))


def sample_mixture(size: int, rng: np.random.Generator, of: str = "plain") -> list[Sample]:
    """Draw ``size`` images of the mixture of `TAG_WEIGHTS`."""
    names, weights = list(TAG_WEIGHTS), np.array(list(TAG_WEIGHTS.values()))
    return [sample(tag, rng, of) for tag in rng.choice(names, size=size, p=weights / weights.sum())]


def _sample_sign(rng: np.random.Generator) -> dict:
    """Draw a sign with random letters: ``{"text", "prompt"}``."""
    length = int(rng.integers(world.WORD_LENGTHS[0], world.WORD_LENGTHS[1] + 1))
    text = "".join(rng.choice(list(world.LETTERS), size=length))
    return {"text": text, "prompt": MINIATURE_TEMPLATES[0].format(text)}
