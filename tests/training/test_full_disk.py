"""A training on a disk that fills up: a tmpfs of its own, in a mount namespace that ends with the
test."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.helpers.smoke import ROOT, smoke_values

pytestmark = pytest.mark.slow
EPOCHS = 40  # a fraction of a second each
MEGABYTES = 64


@dataclass(frozen=True)
class Disk:
    """A small disk at ``path``, which processes of a namespace alone see mounted; others reach it
    by ``folder``."""

    holder: int
    path: Path

    @property
    def folder(self) -> Path:
        return Path(f"/proc/{self.holder}/root{self.path}")

    def star(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start a stage in the disk's folder; its messages to a pipe."""
        enter = [
            "nsenter",
            f"--target={self.holder}",
            "--user",
            "--mount",
            "--preserve-credentials",
        ]
        command = [
            "sh",
            "-c",
            f"cd '{self.path}' && exec \"$@\"",
            "sh",
            sys.executable,
            "-m",
            "star.cli",
            *arguments,
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            [*enter, *command], env=environment, stderr=subprocess.PIPE, text=True
        )


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    mount = (
        f"mount -t tmpfs -o size={MEGABYTES}m tmpfs '{tmp_path}' && echo mounted && exec sleep 600"
    )
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as holder:
        try:
            if holder.stdout is None or holder.stdout.readline() != "mounted\n":
                pytest.skip("this machine lets no user mount a tmpfs")
            yield Disk(holder.pid, tmp_path)
        finally:
            holder.kill()


def fill(path: Path) -> None:
    """Write zeros until there is no room."""
    with open(path, "wb", buffering=0) as file:
        for size in (2**20, 2**12):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError as error:
                assert "No space left" in str(error)


def test_a_training_ends_with_a_clear_error_and_goes_on_once_there_is_room(disk: Disk) -> None:
    values = smoke_values()
    values["train"] |= {
        "epochs": EPOCHS,
        "save_every": 1,
        "sample_every": EPOCHS,
        "tracker": "none",
    }
    (disk.folder / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    for arguments in (
        ("prompts", "--task", "geneval", "--train", "train.jsonl", "--test", "test.jsonl"),
        ("core", "--prompts", "train.jsonl", "--output", "core.jsonl"),
    ):
        said = (process := disk.star(*arguments)).communicate(timeout=120)[1]
        assert process.returncode == 0, said
    train = (
        "train",
        "--task",
        "geneval",
        "--method",
        "star",
        "--prompts",
        "core.jsonl",
        "--output",
        "results",
    )
    process = disk.star(*train)
    saved = disk.folder / ".star" / "state"
    deadline = time.monotonic() + 120
    while (
        sum(file.read_text(encoding="utf-8").count("\n") for file in saved.glob("*/log.jsonl")) < 3
    ):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.01)
    fill(disk.folder / "filler")
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 1, said[-2000:]
    assert "No space left on device" in said and "make room" in said and "Traceback" not in said
    (log,) = saved.glob("*/log.jsonl")
    before = log.read_text(encoding="utf-8").splitlines()
    (disk.folder / "filler").unlink()
    said = (process := disk.star(*train)).communicate(timeout=300)[1]
    assert process.returncode == 0, said[-2000:]
    lines = (disk.folder / "results" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    kept = [
        json.loads(line)["epoch"] for line in lines if line in before
    ]  # with its times: not done again
    assert kept == list(range(1, len(kept) + 1)) and len(kept) >= len(before) - 1 > 0
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, EPOCHS + 1))
