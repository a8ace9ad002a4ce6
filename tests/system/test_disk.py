"""A disk that takes no more, here by a limit on the size of files: the file and mend are named."""

import dataclasses
import errno
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from star.config.reading import load_params
from star.evaluation.drawing import ImageDrawer, PlannedImage
from star.prompts.core_content import with_core
from star.prompts.prepare import prepare
from star.prompts.records import PromptRecord
from star.system.errors import StarError, disk_error
from star.system.faults import Fault, save_fault
from star.system.files import write_text_atomic
from star.training.checkpoint import save_state
from star.training.loop import _append, train

LONG = "x" * 100_000
IMAGES = np.random.default_rng(0).integers(0, 255, (1, 64, 64, 3), np.uint8)
PLANNED = PlannedImage(0, PromptRecord("a", "ocr", "a sign", {}), 0, 1)


def save_image(folder: Path) -> None:
    drawer = ImageDrawer(policy=None, steps=1, batch=1, seed=0, folder=folder)  # type: ignore[arg-type]
    drawer._save([PLANNED], IMAGES)


WRITERS: dict[str, Callable[[Path], object]] = {
    "text.json": lambda path: write_text_atomic(path, LONG),
    "state": lambda path: save_state(path, {"a": torch.zeros(10_000)}, {}),
    "a_0.png": lambda path: save_image(path.parent),
    "faults": lambda path: save_fault(path, Fault("wrong", [], IMAGES)),
    "log.jsonl": lambda path: _append(path, {"a": LONG}),
}


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """Inside, this process writes no file of more than 1,000 bytes, and the path is refused."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(StarError, match=f"^{path}: File too large; make room"):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", WRITERS)
def test_what_the_disk_does_not_take_is_named(tmp_path: Path, name: str) -> None:
    with full_disk(tmp_path / name):
        WRITERS[name](tmp_path / name)


def test_an_adapter_that_the_disk_does_not_take_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = load_params(Path("params.yaml"))
    params = dataclasses.replace(params, train=dataclasses.replace(params.train, tracker="none"))
    records = with_core(prepare("geneval", params.prompts, params.seed)[0][:1])
    monkeypatch.setattr("star.training.loop.run_epochs", lambda *_: None)
    with full_disk(tmp_path / "out"):
        train(params, "geneval", "star", records, [], tmp_path / "work", tmp_path / "out")


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO]
)
def test_an_error_of_the_disk_is_known_by_its_number_wherever_that_stands(number: int) -> None:
    text = os.strerror(number)
    error = OSError(number, text, "b")
    passed_on = SafetensorError(f"I/O error: {text} (os error {number})")
    for told in (error, passed_on, shutil.Error([("a", "b", str(error))])):
        assert text in str(disk_error(told))


@pytest.mark.parametrize(
    "error",
    [ValueError("28"), FileNotFoundError(2, "none"), SafetensorError("(os error 2)")],
)
def test_other_errors_are_left_alone(error: Exception) -> None:
    assert disk_error(error) is None
