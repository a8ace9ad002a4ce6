"""Runs Snakemake in a folder of its own, and looks at how far it is."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.helpers.lines import read_lines

ROOT = Path(__file__).resolve().parents[2]


def _command(folder: Path, arguments: Sequence[str]) -> list[str]:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    return [*command, "--directory", str(folder), *arguments]


def _environment() -> dict[str, str]:
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def run_snakemake(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the repository's Snakefile in a folder, on two cores."""
    settings = {"env": _environment(), "cwd": ROOT, "capture_output": True, "text": True}
    command = _command(folder, ("--cores", "2", *arguments))
    return subprocess.run(command, **settings, timeout=900)


def start_snakemake(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start the repository's Snakefile in a folder, in a session of its own."""
    with open(folder / "snakemake.log", "a", encoding="utf-8") as log:
        return subprocess.Popen(
            _command(folder, arguments),
            env=_environment(),
            cwd=ROOT,
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
            # A process started from a background shell has it ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def said_so_far(folder: Path) -> str:
    """Return the end of what Snakemake said."""
    return (folder / "snakemake.log").read_text(encoding="utf-8")[-4000:]


def epochs_so_far(folder: Path) -> list[int]:
    """Return the epochs in the log of the training that goes on."""
    logs = (folder / ".star/state").glob("*/log.jsonl")
    return [line["epoch"] for log in logs for line in read_lines(log)]
