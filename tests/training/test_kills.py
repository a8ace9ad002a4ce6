"""Killed at any moment, nothing is lost and nothing differs."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks.kills import PHASES


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "options"),
    [
        (13, ["--algorithm=flow_grpo"]),
        (4, ["--algorithm=flow_grpo", "--reuse"]),
        (4, ["--algorithm=awm"]),
        (4, ["--algorithm=nft"]),
    ],
)
def test_kills_leave_no_trace(kills, options):
    """In every phase, with the first; the same script runs longer by hand.

    It ends with an error at the first difference.
    """
    # Not `-m`: each worker that reads text would import torch with the main module.
    program = "from benchmarks.kills import main; main()"
    command = [sys.executable, "-c", program, "--kills", str(kills), "--stop", "2"]
    command += options
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert run.returncode == 0, run.stderr[-3000:]
    counts = json.loads(run.stdout)
    assert counts.pop("SIGTERM") == counts.pop("SIGUSR1") == 1
    assert kills < len(PHASES) or PHASES.keys() <= counts.keys()
    assert sum(counts.values()) >= kills
