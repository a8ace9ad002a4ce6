"""GPUs: counted from device files and the environment, and refused where torch cannot use them."""

from pathlib import Path

import pytest
import torch

from star.cli import main
from star.system import gpus
from star.system.errors import StarError

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
