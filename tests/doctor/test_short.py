"""`star doctor`: one screen of what the machine can do; red is what the parameters need."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import wandb
from huggingface_hub import constants

from star.cli import main
from star.config.reading import load_params
from star.doctor import short as doctor

WriteParams = Callable[[dict], Path]


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the models, a quick `dvc`, a SLURM without accounting, and nobody logged in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(root / "models")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "bin").mkdir()
    for name, script in {
        "dvc": "echo store",
        "sbatch": "",
        "sacct": "echo 'Slurm accounting storage is disabled' >&2; exit 1",
    }.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    for name, value in {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "NETRC": str(tmp_path / "none"),
        "WANDB_MODE": "offline",
        "WANDB_HTTP_TIMEOUT": "1",
        "no_proxy": "*",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # as `main` does for a mirror
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor, "visible_gpus", lambda: 0)
    wandb.teardown()
    yield tmp_path
    wandb.teardown()


def test_a_machine_that_can_run_the_default_is_green_in_one_screen(
    root: Path, machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--params", str(root / "params.yaml")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 25 and max(map(len, lines)) <= 100
    starts = {line[:5].strip() for line in lines}
    assert "MEND" not in starts and "ok" in starts
    text = "\n".join(lines)
    parts = "torch 2.|(model.precision: auto)|kernel |memory free|results, |off (Slurm accounting"
    assert all(part in text for part in parts.split("|"))
    assert "models/miniature, models/miniature-preference: can be had" in text
    assert "http://127.0.0.1:1, not logged in" in text and "(HF_HUB_DISABLE_XET=1)" in text
    assert "wandb, WANDB_MODE=offline, no key" in text and "default remote store" in text
    assert not (machine / "results").exists() and not (machine / ".star").exists()


def driver_too_old(values: dict, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(doctor, "visible_gpus", lambda: 1)
    patch.setattr(doctor, "why_unusable", lambda: "The NVIDIA driver on your system is too old")


def results_in_the_way(values: dict, patch: pytest.MonkeyPatch) -> None:
    Path("results").write_text("")


def no_key(values: dict, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("WANDB_MODE", "online")


def no_network(values: dict, patch: pytest.MonkeyPatch) -> None:
    values["model"]["path"] = "stabilityai/stable-diffusion-3.5-medium"


def no_answer(values: dict, patch: pytest.MonkeyPatch) -> None:
    no_network(values, patch)
    patch.setattr(doctor, "WAIT", 0.2)
    patch.setattr("star.system.hub.model_trouble", lambda *_: time.sleep(5))


def no_directory(values: dict, patch: pytest.MonkeyPatch) -> None:
    values["model"]["path"] = "models/minature"


def old_torch(values: dict, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(doctor, "version", lambda name: "1.0" if name == "torch" else "999")


@pytest.mark.parametrize(
    ("wrong", "what", "mend"),
    [
        (driver_too_old, "device", "update the driver or install another torch"),
        (results_in_the_way, "results", "cannot be written"),
        (no_key, "tracker", "WANDB_MODE=online: there is no key; run `wandb login`"),
        (no_network, "models", "cannot be reached"),
        (no_answer, "models", "does not answer"),
        (no_directory, "models", "no such directory"),
        (old_torch, "versions", "`make install`: torch>="),
    ],
)
def test_what_the_parameters_need_is_red_with_its_mend(
    wrong: Callable[[dict, pytest.MonkeyPatch], None],
    what: str,
    mend: str,
    default_values: dict,
    write_params: WriteParams,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrong(default_values, monkeypatch)
    started = time.monotonic()
    params = write_params(default_values)
    red = [finding for finding in doctor.examine(load_params(params)) if finding.mend]
    assert time.monotonic() - started < 10
    assert any(finding.what == what and mend in finding.mend for finding in red if finding.needed)


def test_red_is_an_exit_status_and_a_line_that_names_it(
    default_values: dict, write_params: WriteParams, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("results").write_text("")
    params = write_params(default_values)
    assert main(["doctor", "--params", str(params)]) == 1
    out, err = capsys.readouterr()
    assert "\nMEND results " in out
    assert err == f"star doctor: error: {params} cannot run here yet: results (MEND above)\n"
