"""A training on a disk that fills up: a tmpfs in a mount namespace that ends with the test."""

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

EPOCHS = 16  # a fraction of a second each
MEGABYTES = 64


@dataclass(frozen=True)
class Disk:
    """A small disk at ``path`` in a namespace; other processes reach it by ``folder``."""

    holder: int
    path: Path

    @property
    def folder(self) -> Path:
        return Path(f"/proc/{self.holder}/root{self.path}")

    def star(self, arguments: str) -> "subprocess.Popen[str]":
        """Start a stage in the disk's folder; its messages to a pipe."""
        enter = ["nsenter", f"--target={self.holder}", "--user", "--mount"]
        inside = ["sh", "-c", f"cd '{self.path}' && exec \"$@\"", "sh"]
        stage = [sys.executable, "-m", "star.cli", *arguments.split()]
        return subprocess.Popen(
            [*enter, "--preserve-credentials", *inside, *stage],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, arguments: str) -> None:
        process = self.star(arguments)
        said = process.communicate(timeout=300)[1]
        assert process.returncode == 0, said[-2000:]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    mount = f"mount -t tmpfs -o size={MEGABYTES}m tmpfs '{tmp_path}'"
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    with subprocess.Popen(
        [*command, f"{mount} && echo mounted && exec sleep 600"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
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
    values["train"] |= {"epochs": EPOCHS, "save_every": 1, "sample_every": EPOCHS}
    values["train"] |= {"tracker": "none", "evaluate_every": 0}
    (disk.folder / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    disk.run("prompts --task geneval --train train.jsonl --test test.jsonl")
    disk.run("core --prompts train.jsonl --output core.jsonl")
    train = "train --task geneval --method star --prompts core.jsonl --held-out core.jsonl"
    train += " --output results"
    process, saved = disk.star(train), disk.folder / ".star/state"
    deadline = time.monotonic() + 120
    while sum(file.read_text().count("\n") for file in saved.glob("*/log.jsonl")) < 3:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.01)
    fill(disk.folder / "filler")
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 1, said[-2000:]
    assert "No space left on device" in said and "make room" in said and "Traceback" not in said
    (log,) = saved.glob("*/log.jsonl")
    before = log.read_text(encoding="utf-8").splitlines()
    (disk.folder / "filler").unlink()
    disk.run(train)
    lines = (disk.folder / "results/log.jsonl").read_text(encoding="utf-8").splitlines()
    # Those with their times were not done again.
    kept = [json.loads(line)["epoch"] for line in lines if line in before]
    assert kept == list(range(1, len(kept) + 1)) and len(kept) >= len(before) - 1 > 0
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, EPOCHS + 1))
