"""Draws the images of a benchmark: ODE steps from noise that depends on the prompt's id alone."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from star.evaluation.scoring import PlannedImage, Sample, in_batches, score_batches
from star.method.seeds import seed_of
from star.policy.rollout import sample_images
from star.policy.sd3 import SD3Policy
from star.prompts.records import PromptRecord
from star.rewards.base import Reward
from star.system.errors import StarError, writing
from star.system.images import read_image
from star.system.memory import memory_for
from star.system.processes import ALONE, Processes
from star.system.progress import Progress
from star.system.stopwatch import Stopwatch


class ImageDrawer:
    """Draws planned images with a policy, each batch whole or not at all.

    Args:
        steps: of an image.
        batch: images of a forward pass.
        seed: of the run.
        folder: of the images as PNG; batches that it has are read, not drawn. None keeps none.
        processes: each draws and scores its shard of the batches.
    """

    def __init__(
        self,
        policy: SD3Policy,
        steps: int,
        batch: int,
        seed: int,
        folder: Path | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.policy, self.steps, self.batch, self.seed = policy, steps, batch, seed
        self.folder, self.processes = folder, processes

    def plan(self, records: Sequence[PromptRecord], count: int) -> list[PlannedImage]:
        """Plan ``count`` images of each prompt."""
        each = [(record, index) for record in records for index in range(count)]
        return [
            PlannedImage(number, record, i, seed_of(self.seed, "evaluate", record.id, i))
            for number, (record, i) in enumerate(each)
        ]

    def plan_others(self, records: Sequence[PromptRecord]) -> list[PlannedImage]:
        """Plan an image of each prompt from other noise, for its diversity."""
        return [
            PlannedImage(number, record, 0, seed_of(self.seed, "diversity", record.id))
            for number, record in enumerate(records)
        ]

    def score(
        self, planned: Sequence[PlannedImage], reward: Reward, timeout: float, watch: Stopwatch
    ) -> list[Sample]:
        """Draw this process's shard of the images and score it.

        Args:
            timeout: seconds that the scores of a batch may take.
            watch: gets the phases ``sampling`` and ``scoring``.
        """
        own = self.shard(planned)
        quiet = not self.processes.main
        title = f"evaluate {reward.name}"
        shown = Progress(own, desc=title, unit="batch", leave=False, disable=quiet)

        def drawn() -> Iterator[tuple[Sequence[PlannedImage], np.ndarray]]:
            for batch in shown:
                with watch("sampling"):
                    images = self.draw(batch)
                yield batch, images

        return score_batches(drawn(), reward, timeout, watch)

    def shard(self, planned: Sequence[PlannedImage]) -> list[Sequence[PlannedImage]]:
        """Return this process's batches."""
        return self.processes.shard(in_batches(planned, self.batch), 1)

    def draw(self, batch: Sequence[PlannedImage]) -> np.ndarray:
        """Return a batch, uint8 (n, height, width, 3), from the folder if it has it whole."""
        images = self.read(batch)
        if images is None:
            prompts = [planned.record.prompt for planned in batch]
            seeds = [planned.seed for planned in batch if planned.seed is not None]
            with memory_for("evaluation"):
                images = sample_images(self.policy, prompts, seeds, self.steps)
            self._save(batch, images)
        return images

    def read(self, batch: Sequence[PlannedImage]) -> np.ndarray | None:
        """Return a batch from the folder; None if one of its images is missing or damaged."""
        paths = [self.folder / planned.file for planned in batch] if self.folder else []
        if not paths or not all(path.exists() for path in paths):
            return None
        try:
            return np.stack([read_image(path, self.policy.model.resolution) for path in paths])
        except StarError as error:
            tqdm.write(f"note: {error}; its batch is drawn again")
            return None

    def _save(self, batch: Sequence[PlannedImage], images: np.ndarray) -> None:
        """Write each under a temporary name first: an image that has its name is whole."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for planned, image in zip(batch, images, strict=True):
            path = self.folder / planned.file
            temporary = path.with_suffix(".tmp")
            with writing(path):
                Image.fromarray(image).save(temporary, format="png")
                os.replace(temporary, path)
