"""Starts Snakemake in a folder of its own, and looks at how far it is."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def start_snakemake(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start the repository's Snakefile in a folder, in a session of its own."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    with open(folder / "snakemake.log", "a", encoding="utf-8") as log:
        return subprocess.Popen(
            [*command, "--directory", str(folder), *arguments],
            env={**os.environ, "PATH": programs},
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


def read_lines(path: Path) -> list[dict]:
    """Return the objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def epochs_so_far(folder: Path) -> list[int]:
    """Return the epochs in the log of the training that goes on."""
    logs = (folder / ".star/state").glob("*/log.jsonl")
    return [line["epoch"] for log in logs for line in read_lines(log)]
