"""Parameters and images that the tests of rewards share; worker processes import it too."""

import numpy as np

from star.config.params import GenevalParams
from star.miniature.world import Scene, render
from star.prompts.records import PromptRecord


def geneval_params(**changes: object) -> GenevalParams:
    """Return parameters of the exact detector with GenEval's thresholds, but for ``changes``."""
    values: dict = {
        "detector": "exact",
        **dict.fromkeys(("path", "revision", "color_path", "color_revision")),
        "batch": 8,
        "soft": "clamped",
        "score_threshold": 0.3,
        "counting_threshold": 0.9,
        "max_per_class": 16,
    }
    return GenevalParams(**values | changes)


def ocr_record(text: str | None, number: int = 0) -> PromptRecord:
    """Return the record of a sign with a text, or of one without."""
    metadata = {} if text is None else {"text": text}
    return PromptRecord(f"ocr-test-{number:05d}", "ocr", f'a sign that says "{text}"', metadata)


def signs(*words: str) -> tuple[np.ndarray, list[PromptRecord]]:
    """Return the miniature's images of words, uint8 (n, 64, 64, 3), and their records."""
    images = np.stack([render(Scene(text=word)) for word in words])
    return images, [ocr_record(word, number) for number, word in enumerate(words)]


def noisy(images: np.ndarray, sigma: float, seed: int = 0) -> np.ndarray:
    """Return images with normal noise of ``sigma`` grey levels."""
    noise = np.random.default_rng(seed).normal(0, sigma, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)
