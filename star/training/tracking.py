"""Experiment trackers: a training's curves, sample grids and map overlays in W&B or TensorBoard.

A training that goes on from a state repeats the epochs after it. TensorBoard is told to forget what
it had of them. W&B cannot forget: `wandb sync` numbers repeated steps again, after those that it
has. So its curves are drawn over the epoch, where a repeated point lies on the first one (on a CPU
they are the same to the byte).
"""

import importlib.util
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from star.system.errors import StarError
from star.system.files import write_text_atomic

# Below the folder in which the training runs, as W&B's `wandb`.
TENSORBOARD = Path("logs/tensorboard")


def check_tracker(kind: str) -> None:
    """Refuse a tracker whose library is not installed, before anything is opened.

    Raises:
        StarError: says what to install.
    """
    if kind == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise StarError(
            "train.tracker: tensorboard is not installed; run `pip install --constraint "
            "constraints.txt tensorboard`, or set it to wandb or none"
        )


class Tracker:
    """A training's run in W&B (``kind`` wandb) or TensorBoard (tensorboard).

    Args:
        title: the run's name.
        work: folder of the training's states, which keeps the run's id from one start to the next.
        parameters: shown with the run, as nested JSON values.
    """

    def __init__(self, kind: str, title: str, work: Path, parameters: Mapping[str, Any]) -> None:
        self.kind, self.title, self.work, self.parameters = kind, title, work, dict(parameters)
        self.library: GeneralTracker

    def begin(self, epoch: int) -> None:
        """Start the run, or go on with it, after ``epoch`` epochs."""
        run = _run_id(self.work)
        if self.kind == "wandb":
            self.library = WandBTracker("star", name=self.title, id=run, resume="allow")
            self.library.start()
            self.library.run.define_metric("*", step_metric="epoch")
            self.library.store_init_configuration(self.parameters)
            return
        forgotten = epoch + 1 if epoch else 0  # the images of epoch 0 are drawn again, too
        name = f"{self.title}-{run[:8]}"
        self.library = TensorBoardTracker(name, TENSORBOARD, purge_step=forgotten)
        self.library.start()
        text = json.dumps(self.parameters, indent=1)
        block = "\n".join(f"    {line}" for line in text.splitlines())  # code, in Markdown
        self.library.log({"parameters": block}, step=epoch)

    def log(self, line: Mapping[str, Any]) -> None:
        """Add the numbers of a line of the training's log, at its epoch."""
        numbers = {key: value for key, value in line.items() if isinstance(value, (int, float))}
        self.library.log(numbers, step=line["epoch"])

    def show(self, images: Mapping[str, np.ndarray], epoch: int) -> None:
        """Add images by name, each uint8 (height, width, 3)."""
        layout = {"dataformats": "NHWC"} if self.kind == "tensorboard" else {}
        batches = {name: image[None] for name, image in images.items()}
        self.library.log_images(batches, step=epoch, **layout)

    def finish(self) -> None:
        self.library.finish()


def _run_id(work: Path) -> str:
    """Return the run's id, drawn when the training first starts."""
    file = work / "tracker"
    if not file.exists():
        write_text_atomic(file, uuid.uuid4().hex)
    return file.read_text(encoding="utf-8")
