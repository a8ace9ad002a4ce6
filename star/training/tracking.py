"""Experiment trackers: a training's curves, sample grids and map overlays in W&B or TensorBoard.

A training that goes on from a state repeats the epochs after it. TensorBoard is told to forget what
it had of them. W&B cannot forget: a server numbers repeated steps again, after those that it has.
So its curves are drawn over the epoch, where a repeated point lies on the first one (on a CPU they
are the same to the byte).

Offline, W&B begins a folder at each start, and at sync a later one may replace an earlier one of
the same run. So each folder begins with all epochs so far, and the earlier ones are marked as sent.
"""

import importlib.util
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from star.system.errors import StarError
from star.system.files import write_text_atomic

# Below the folder in which the training runs, as W&B's `wandb`.
TENSORBOARD = Path("logs/tensorboard")


def check_tracker(kind: str) -> None:
    """Refuse a tracker that could not begin, before anything is opened.

    Raises:
        StarError: TensorBoard is not installed; W&B is to send at once (WANDB_MODE=online) and has
            no key, or no server that takes it.
    """
    if kind == "wandb":
        _check_wandb()
    if kind == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise StarError(
            "train.tracker: tensorboard is not installed; run `pip install --constraint "
            "constraints.txt tensorboard`, or set it to wandb or none"
        )


def _check_wandb() -> None:
    """Ask the server once, for `WANDB_HTTP_TIMEOUT` (10) seconds at most, if W&B is online."""
    import wandb

    offline = "or unset WANDB_MODE: the run stays on this disk until `wandb sync` sends it"
    try:
        # Neither of them asks for a key. Offline and disabled runs need none.
        online = wandb.setup().settings.mode in ("online", "run", "shared")
        if online and not wandb.login(prompt=False, verify=True):
            raise StarError(f"WANDB_MODE=online: there is no key; run `wandb login`, {offline}")
    except pydantic.ValidationError as error:
        (first, *_) = error.errors()
        where = ".".join(map(str, first["loc"]))
        raise StarError(f"W&B's setting {where}: {first['msg']}, not {first['input']!r}") from error
    except wandb.Error as error:
        raise StarError(f"WANDB_MODE=online: {error}; mend that, {offline}") from error


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
            if self.library.run.offline:
                self._repeat(epoch)
            return
        forgotten = epoch + 1 if epoch else 0  # the images of epoch 0 are drawn again, too
        name = f"{self.title}-{run[:8]}"
        self.library = TensorBoardTracker(name, TENSORBOARD, purge_step=forgotten)
        self.library.start()
        text = json.dumps(self.parameters, indent=1)
        block = "\n".join(f"    {line}" for line in text.splitlines())  # code, in Markdown
        self.library.log({"parameters": block}, step=epoch)

    def _repeat(self, epoch: int) -> None:
        """Tell an offline run of the ``epoch`` epochs so far; mark its earlier folders as sent."""
        # Slow, and not for `check_tracker`.
        from star.training.samples import saved_samples

        if epoch:
            self.show(saved_samples(self.work, 0), 0)
            for line in (self.work / "log.jsonl").read_text(encoding="utf-8").splitlines():
                known = json.loads(line)
                self.log(known)
                if known["epoch"] > 0:
                    self.show(saved_samples(self.work, known["epoch"]), known["epoch"])
        folder = Path(self.library.run.sync_dir)
        for file in folder.parent.glob(f"offline-run-*-{self.library.run.id}*/run-*.wandb"):
            if file.parent != folder:
                file.with_suffix(".wandb.synced").touch()

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
