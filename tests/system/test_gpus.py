"""GPUs: counted from device files and the environment, claimed for one job each, and refused where
torch cannot use them. All of it on device files that the tests make: no GPU is needed."""

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from star.cli import COMPUTING, main
from star.system import gpus
from star.system.errors import StarError

ROOT = Path(__file__).resolve().parents[2]
TWO = ["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"]
RADEONS = ["kfd", "dri/card0", "dri/renderD128", "dri/renderD129"]


@pytest.mark.parametrize(
    ("files", "torch_version", "environment", "count"),
    [
        ([], "2.13.0", {}, 0),
        (TWO, "2.13.0", {}, 2),
        (TWO, "2.13.0+cpu", {}, 2),  # refused by `star launch`, which says why
        (TWO, "2.13.0", {"CUDA_VISIBLE_DEVICES": "1"}, 1),
        (TWO, "2.13.0", {"CUDA_VISIBLE_DEVICES": "0, 1, 2, 3"}, 2),
        (TWO, "2.13.0", {"CUDA_VISIBLE_DEVICES": "GPU-8932f937,MIG-1/2/0"}, 2),
        (TWO, "2.13.0", {"CUDA_VISIBLE_DEVICES": "0,-1,1"}, 1),
        (TWO, "2.13.0", {"CUDA_VISIBLE_DEVICES": ""}, 0),
        (TWO, "2.13.0", {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 0),
        (["dxg", "wsl"], "2.13.0", {}, 1),
        (["dxg", "wsl"], "2.13.0", {"CUDA_VISIBLE_DEVICES": ""}, 0),
        (["dxg"], "2.13.0+rocm7.1", {}, 1),
        (["dxg"], "2.13.0", {}, 0),  # a laptop's own graphics below Windows
        (RADEONS, "2.13.0+rocm7.1", {}, 2),
        (RADEONS, "2.13.0+rocm7.1", {"HIP_VISIBLE_DEVICES": "1"}, 1),
        (RADEONS, "2.13.0+rocm7.1", {"ROCR_VISIBLE_DEVICES": "-1"}, 0),
        (["kfd"], "2.13.0+rocm7.1", {}, 0),
        (RADEONS, "2.13.0", {}, 0),  # a laptop's own graphics
    ],
)
def test_gpus_that_processes_may_use_are_counted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: list[str],
    torch_version: str,
    environment: dict[str, str],
    count: int,
) -> None:
    (tmp_path / "dri").mkdir()
    for file in files:
        (tmp_path / file).touch()
    monkeypatch.setattr(gpus, "DEVICES", tmp_path)
    monkeypatch.setattr(gpus, "WSL_CUDA", tmp_path / "wsl")
    monkeypatch.setattr(gpus, "version", {"torch": torch_version}.__getitem__)
    for name in gpus.CHOOSING:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert gpus.visible_gpus() == count


@pytest.mark.parametrize("asked", ["1", "8"])
def test_gpus_that_torch_cannot_use_are_refused_in_its_words_before_a_process_starts(
    asked: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_old(*_: object, **__: object) -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found 11040).\nMore.")

    monkeypatch.setattr(torch, "ones", too_old)
    monkeypatch.setattr("star.cli.os.execvpe", lambda *_: pytest.fail("it starts"))
    assert main(["launch", "--gpus", asked, "--", "plan"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert f" {asked}, and torch can use none (The NVIDIA driver on your system is too old" in err
    assert "mend that" in err and "--gpus 0" in err


def test_more_gpus_than_there_are_and_none_of_this_torch_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(StarError, match=r"^GPUs asked for here: 1000, and torch (finds|can use) "):
        gpus.check_gpus(1000)
    monkeypatch.setattr(gpus, "why_unusable", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpus.check_gpus(2)
    with pytest.raises(StarError, match=r"^GPUs asked for here: 8, and torch finds 2; ask for 2$"):
        gpus.check_gpus(8)


# Claims GPUs and gives its place to another program, as `star launch` to torchrun.
JOB = """
import os, sys
from pathlib import Path
from star.system import gpus
gpus.DEVICES, gpus.version = Path(sys.argv[2]), lambda name: "2.13.0"
try:
    gpus.claim_gpus(int(sys.argv[3]))
except ValueError as error:
    sys.exit(f"refused: {error}")
print(os.environ.get("CUDA_VISIBLE_DEVICES") or "none", flush=True)
os.execv(sys.executable, [sys.executable, "-c", "input()", "star", "train", "--task", "ocr"])
"""
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start a job for a number of GPUs on a machine that has four, in a SLURM job of this test."""
    for number in range(4):
        (tmp_path / f"nvidia{number}").touch()
    for name in (*gpus.CHOOSING, *gpus.JOBS, "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", uuid.uuid4().hex[:12])
    jobs: list[subprocess.Popen[str]] = []

    def start(count: int, **environment: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", JOB, "star", str(tmp_path), str(count)]
        pipe, more = subprocess.PIPE, os.environ | {"PYTHONPATH": str(ROOT)} | environment
        pipes = {"stdin": pipe, "stdout": pipe, "stderr": pipe}
        jobs.append(subprocess.Popen(command, env=more, text=True, **pipes))
        return jobs[-1]

    yield start
    for job in jobs:
        job.kill()
        job.communicate()


def given(job: "subprocess.Popen[str]") -> str:
    """Return the GPUs that a job has, or what it is refused with."""
    assert job.stdout is not None and job.stderr is not None
    return job.stdout.readline().strip() or job.stderr.read().strip()


def test_jobs_at_once_have_a_gpu_each_until_they_end(start: Start) -> None:
    jobs = [start(1) for _ in range(4)]
    cards = {given(job): job for job in jobs}
    assert sorted(cards) == ["0", "1", "2", "3"]
    said = given(start(1))
    assert said.startswith("refused: GPUs asked for here: 1, and free are 0 of 4 (0: star train")
    for card, job in cards.items():
        assert f"{card}: star train --task ocr (process {job.pid})" in said
    cards["2"].kill()
    cards["2"].wait()
    assert given(start(1)) == "2"
    assert given(start(1, SLURM_JOB_ID="another")) == "0", "of another machine, as its job says"


def test_jobs_with_two_gpus_share_four(start: Start) -> None:
    assert [given(start(2)), given(start(1))] == ["0,1", "2"]
    assert "asked for here: 2, and free are 1 of 4 (0: star train" in given(start(2))
    assert given(start(1)) == "3", "what was refused holds nothing"


def test_a_choice_of_the_environment_is_kept_to(start: Start) -> None:
    both = {"CUDA_VISIBLE_DEVICES": "3,1"}
    assert [given(start(1)), given(start(2, CUDA_VISIBLE_DEVICES="3,1,2"))] == ["0", "3,1"]
    assert "free are 0 of 2 (3: star train" in given(start(1, **both))
    assert given(start(1, CUDA_VISIBLE_DEVICES="GPU-89,GPU-90")) == "GPU-89"
    assert given(start(1, CUDA_VISIBLE_DEVICES="GPU-89,GPU-90")) == "GPU-90"
    assert given(start(1)) == "2"


@pytest.mark.parametrize(
    ("count", "environment"),
    [
        (5, {}),  # refused by `check_gpus`
        (1, {"LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "0,1"}),  # torchrun's: its launcher did
        (1, {"CUDA_VISIBLE_DEVICES": ""}),  # the CPU
    ],
)
def test_what_claims_nothing(start: Start, count: int, environment: dict[str, str]) -> None:
    assert given(start(count, **environment)) == (environment.get("CUDA_VISIBLE_DEVICES") or "none")
    assert given(start(4)) == "0,1,2,3"


@pytest.mark.parametrize("stage", [*COMPUTING, "launch"])
def test_a_stage_without_a_free_gpu_does_not_begin(
    stage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none_free(count: int) -> None:
        raise StarError(f"none of {count}")

    monkeypatch.setattr("star.cli.claim_gpus", none_free)
    values = {"task": "ocr", "checkpoint": "base", "seed": "1", "rate": "1"}
    options = {
        "train": "task method prompts held-out output",
        "evaluate": "checkpoint prompts-dir output",
        "maps": "output",
        "score": "task prompts images output",
        "study-run": "task method seed rate prompts held-out output",
        "launch": "",
    }[stage].split()
    command = [word for name in options for word in (f"--{name}", values.get(name, "none"))]
    more = {"maps": ["a cat"], "launch": ["--gpus", "2", "--", "train"]}.get(stage, [])
    assert main([stage, *command, *more]) == 1
    count = 2 if stage == "launch" else 1
    assert capsys.readouterr().err == f"star {stage}: error: none of {count}\n"
