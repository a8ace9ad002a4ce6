"""A training's tracker: curves and images arrive, and once, whatever ended it in between."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import wandb
from accelerate import PartialState
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from star.system.errors import StarError
from star.training import tracking
from star.training.samples import saved_samples
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
        tracker.log(line(epoch))
        if epoch == 2:
            tracker.show({"samples": IMAGE, "maps/0": IMAGE}, epoch)
    tracker.finish()


def line(epoch: int) -> dict:
    return {"epoch": epoch, "reward_mean": epoch / 8, "kl": None, "seconds": {"rollout": 1.0}}


def write_work(folder: Path, epochs: int) -> None:
    """What a training of so many epochs left: log, sample grids and maps of epochs 0 and 2."""
    for name in ("samples/epoch_0000", "samples/epoch_0002", "maps/left", "maps/right"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        side = slice(3, None) if name == "maps/right" else slice(3 if "maps" in name else None)
        Image.fromarray(IMAGE[:, side]).save(folder / f"{name}.png")
    maps = [{"epoch": 2, "maps": ["left.png", "right.png"]}]
    (folder / "maps/maps.json").write_text(json.dumps(maps), encoding="utf-8")
    lines = "".join(json.dumps(line(epoch)) + "\n" for epoch in range(1, epochs + 1))
    (folder / "log.jsonl").write_text(lines, encoding="utf-8")


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


def test_saved_samples_are_those_that_were_shown(folder):
    write_work(folder, 0)
    found = saved_samples(folder, 2)
    assert list(found) == ["samples", "maps/0"]
    assert all((image == IMAGE).all() for image in found.values())
    assert list(saved_samples(folder, 0)) == ["samples"] and saved_samples(folder, 1) == {}


@pytest.mark.slow
def test_the_newest_offline_run_has_every_epoch_and_alone_is_sent(folder):
    run("wandb", folder, 0, 3)  # killed; the newest state is that of epoch 1
    write_work(folder / "work", 1)
    run("wandb", folder, 1, 4)
    write_work(folder / "work", 4)
    run("wandb", folder, 4, 4)  # a finished training, started again
    parts = sorted((folder / "wandb").glob("offline-run-*"))
    assert len(parts) == 3
    for part in parts:
        # offline-run-TIME-ID, and -1 behind it in the same second
        assert part.name.split("-")[3] == (folder / "work/tracker").read_text()
        images = (part / "files/media/images").rglob("*.png")
        shown = {image.stem.rsplit("_", 1)[0] for image in images}
        assert shown == {"samples_0", "samples_2", "0_2"}
        (history,) = part.glob("run-*.wandb")
        end = time.monotonic() + 30  # a process of W&B's own may write it after `finish`
        while b"reward_mean" not in history.read_bytes():
            assert time.monotonic() < end, history
            time.sleep(0.1)
    check_sync(folder, parts)


def check_sync(folder: Path, parts: list[Path]) -> None:
    """`wandb sync` sends one folder of all; its curves are over the epoch."""
    name = (folder / "work/tracker").read_text(encoding="utf-8")
    with wandb_server.serving() as (address, received):
        settings = {"BASE_URL": address, "API_KEY": 40 * "0", "SILENT": "false"}
        environment = os.environ | {f"WANDB_{key}": value for key, value in settings.items()}
        command = [Path(sys.executable).with_name("wandb"), "sync", *parts]  # in any order
        sent = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert sent.returncode == 0 and sent.stderr.count("Finished syncing") == 1, sent.stderr
    assert received.titles == {name: "ocr-star"}
    lines = [line for line in received.history[name] if "reward_mean" in line]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
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


@pytest.fixture
def online(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """W&B as it starts with WANDB_MODE=online and nobody logged in; no server runs."""
    for name, value in {"WANDB_MODE": "online", "HOME": folder, "NETRC": folder / "none"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "2")
    wandb.teardown()
    yield monkeypatch
    wandb.teardown()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, r"^WANDB_MODE=online: there is no key; run `wandb login`, or unset WANDB_MODE"),
        ({"WANDB_API_KEY": "short"}, r"^WANDB_MODE=online: .*40\+ characters.*; mend that, or"),
        ({"WANDB_API_KEY": 40 * "0"}, r"^WANDB_MODE=online: .*http://127\.0\.0\.1:1.*; mend that"),
        ({"WANDB_MODE": "onlin"}, r"^W&B's setting mode: .*'offline'.*, not 'onlin'"),
    ],
)
def test_an_online_wandb_without_key_or_server_is_refused(online, environment, message):
    for name, value in environment.items():
        online.setenv(name, value)
    with pytest.raises(StarError, match=message):
        check_tracker("wandb")


def test_wandb_that_can_begin_is_let_through(online):
    with wandb_server.serving() as (address, _):
        online.setenv("WANDB_BASE_URL", address)
        online.setenv("WANDB_API_KEY", 40 * "0")
        check_tracker("wandb")
        wandb.teardown()
    for mode in ("offline", "disabled", "dryrun"):
        online.setenv("WANDB_MODE", mode)
        wandb.teardown()
        check_tracker("wandb")
