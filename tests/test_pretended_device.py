"""The whole program at SD3.5-M's full size on a pretended device, by `benchmarks/on_card.py`.

The device is registered for a whole process, so each run has one of its own.
"""

import json
import subprocess
import sys
from typing import Any

import pytest

TRAININGS = [f"{algorithm}, star" for algorithm in ("flow_grpo", "awm", "nft")]
# What grows with the batches, and may: noise drawn on the CPU, and the images.
DRAWN = {
    "policy/sd3.py: noise",
    "policy/sd3.py: decode",
    "policy/rollout.py: draw",
    "training/forward_process.py: draw",
}


def counted(*options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.on_card", *options]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.slow
def test_phases_take_the_memory_that_is_planned():
    """In 24 blocks, by the recipe and without its savings; the networks that score as well."""
    cases = "flow_grpo, star", "nft, star", "no checkpointing", "scoring"
    found = counted("--only", *cases)
    scoring = found.pop("scoring")
    phases = {
        f"{case}: {phase}": each["ratio"]
        for case in cases[:3]
        for phase, each in found[case]["memory"].items()
    }
    phases |= {name: each["memory"]["ratio"] for name, each in scoring.items() if "memory" in each}
    assert len(phases) == 3 * 5 + 2
    assert phases == pytest.approx(dict.fromkeys(phases, 1), abs=0.05)


@pytest.mark.slow
def test_the_host_waits_ten_times_an_epoch_whatever_the_number_of_batches():
    """Two blocks show it: no read or copy is made in them. All waits are named here."""
    once, twice = (
        counted("--layers", "2", "--batches", number, "--only", *TRAININGS) for number in "12"
    )
    for training in TRAININGS:
        few, more = (
            {
                f"{kind} {where}": count
                for kind in ("reads", "copies")
                for where, count in found[training][kind].items()
                if where not in DRAWN
            }
            for found in (once, twice)
        )
        assert few == more, training
        assert sum(few.values()) <= 10 and once[training]["reads_of_a_state"] == 1, training
        assert sum(twice[training]["copies"].values()) > sum(more.values()), "noise is counted"
