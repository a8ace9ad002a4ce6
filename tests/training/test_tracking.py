"""A training's tracker: curves and images arrive, and once, whatever ended it in between."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from accelerate import PartialState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from star.system.errors import StarError
from star.training import tracking
from star.training.tracking import Tracker, check_tracker
from tests.helpers import wandb_server

PARAMETERS = {"seed": 3, "train": {"epochs": 4}, "rollout": {"window": [0, 2]}}
IMAGE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the trackers write, offline."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    PartialState(cpu=True)
    return tmp_path


def run(kind: str, folder: Path, first: int, last: int) -> None:
    """Log a training from ``first`` epochs to ``last``; images come with epochs 0 and 2."""
    tracker = Tracker(kind, "ocr-star", folder / "work", PARAMETERS)
    tracker.begin(first)
    if first == 0:
        tracker.show({"samples": IMAGE}, 0)
    for epoch in range(first + 1, last + 1):
        more = {"kl": None, "seconds": {"rollout": 1.0}}
        tracker.log({"epoch": epoch, "reward_mean": epoch / 8, **more})
        if epoch == 2:
            tracker.show({"samples": IMAGE, "maps/0": IMAGE}, epoch)
    tracker.finish()


def test_tensorboard_has_every_epoch_once_after_a_kill(folder):
    run("tensorboard", folder, 0, 3)  # killed; the newest state is that of epoch 1
    run("tensorboard", folder, 1, 4)
    (events,) = (folder / "logs/tensorboard").iterdir()
    assert events.name.startswith("ocr-star-")
    found = EventAccumulator(str(events)).Reload()
    rewards = [(point.step, point.value) for point in found.Scalars("reward_mean")]
    assert rewards == [(epoch, epoch / 8) for epoch in (1, 2, 3, 4)]
    assert [image.step for image in found.Images("samples")] == [0, 2]
    assert [(p.step, p.width, p.height) for p in found.Images("maps/0")] == [(2, 6, 4)]
    assert b'"window"' in found.Tensors("parameters/text_summary")[0].tensor_proto.string_val[0]
    run("tensorboard", folder / "another", 0, 1)
    assert len(list((folder / "logs/tensorboard").iterdir())) == 2, "of the same name"


def test_wandb_goes_on_with_the_run_and_keeps_images_offline(folder):
    run("wandb", folder, 0, 3)
    run("wandb", folder, 1, 4)
    parts = sorted((folder / "wandb").glob("offline-run-*"))
    shown = [{"samples_0", "samples_2", "0_2"}, {"samples_2", "0_2"}]
    for part, names in zip(parts, shown, strict=True):
        # offline-run-TIME-ID, and -1 behind it in the same second
        assert part.name.split("-")[3] == (folder / "work/tracker").read_text()
        images = (part / "files/media/images").rglob("*.png")
        assert {image.stem.rsplit("_", 1)[0] for image in images} == names
        (history,) = part.glob("run-*.wandb")
        end = time.monotonic() + 30  # a process of W&B's own may write it after `finish`
        while b"reward_mean" not in history.read_bytes():
            assert time.monotonic() < end, history
            time.sleep(0.1)
    check_sync(folder, parts)


def check_sync(folder: Path, parts: list[Path]) -> None:
    """`wandb sync` sends both folders as one run, steps repeated: its curves are over the epoch."""
    name = (folder / "work/tracker").read_text(encoding="utf-8")
    with wandb_server.serving() as (address, received):
        settings = {"BASE_URL": address, "API_KEY": 40 * "0", "SILENT": "false"}
        environment = os.environ | {f"WANDB_{key}": value for key, value in settings.items()}
        command = [Path(sys.executable).with_name("wandb"), "sync", *parts]
        sent = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert sent.returncode == 0 and sent.stderr.count("Finished syncing") == 2, sent.stderr
    assert received.titles == {name: "ocr-star"}
    lines = [line for line in received.history[name] if "reward_mean" in line]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 2, 3, 4]
    assert all(line["reward_mean"] == line["epoch"] / 8 for line in lines)
    curves = json.loads(received.settings[name])["_wandb"]["value"]["m"]
    every = next(curve for curve in curves if curve.get("2") == "*")
    assert curves[every["5"] - 1]["1"] == "epoch"  # "5": the number of the horizontal axis
    images = [Path(file).name for file in received.files[name] if file.endswith(".png")]
    assert {image.rsplit("_", 1)[0] for image in images} == {"samples_0", "samples_2", "0_2"}


def test_a_library_that_is_missing_is_named_before_anything_is_opened(monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StarError, match=r"train\.tracker: tensorboard .* `pip install"):
        check_tracker("tensorboard")
    check_tracker("none")
