"""A reward in this process cannot hang it, and its errors name records."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from star.config.params import load_params
from star.evaluation.scoring import Sample, image_lines
from star.prompts.records import PromptRecord
from star.rewards.base import RewardError, RewardResult, finished
from star.rewards.guarded import GuardedReward

IMAGES = np.zeros((2, 4, 4, 3), np.uint8)
RECORDS = [
    PromptRecord(id=f"r{i}", task="preference", prompt="a dog", metadata={}) for i in range(2)
]


class Given:
    """Does what it is given."""

    name = "given"

    def __init__(self, work):
        self.work, self.closed = work, False

    def submit(self, images, records):
        return finished(self.work(images, records))

    def close(self):
        self.closed = True


def raising(error):
    def work(images, records):
        raise error

    return work


def test_scores_pass_through_at_once():
    result = RewardResult(np.array([0.25, 0.5], np.float32), [{}, {}])
    seen = []
    guarded = GuardedReward(Given(lambda *given: seen.append(given) or result), 10.0)
    future = guarded.submit(IMAGES, RECORDS)
    assert future.done() and future.result() is result
    assert seen == [(IMAGES, RECORDS)] and guarded.name == "given"
    guarded.close()
    assert guarded.reward.closed


@pytest.mark.parametrize(
    "error", [ValueError("broken"), RuntimeError("shapes"), TimeoutError("of its own")]
)
def test_an_error_names_the_records_and_what_happened(error):
    wanted = f"r0 and 1 more: reward given: {type(error).__name__}: {error}"
    with pytest.raises(RewardError, match=wanted) as caught:
        GuardedReward(Given(raising(error)), 10.0).submit(IMAGES, RECORDS)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        RewardError("r1: no text to compare with"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
)
def test_errors_that_say_enough_stay_what_they_are(error):
    with pytest.raises(type(error)) as caught:
        GuardedReward(Given(raising(error)), 10.0).submit(IMAGES, RECORDS)
    assert caught.value is error


def test_a_reward_that_hangs_is_given_up():
    done = threading.Event()
    with pytest.raises(
        RewardError, match=r"r0 and 1 more: reward given: no scores after 0.05 s; rewards.timeout"
    ):
        GuardedReward(Given(lambda *_: done.wait(60)), 0.05).submit(IMAGES, RECORDS)
    done.set()


def test_a_process_ends_though_its_reward_hangs():
    program = "from tests.rewards.test_guarded import *\nGuardedReward(Given(lambda *_: threading.Event().wait()), 0.05)"
    run = subprocess.run(
        [sys.executable, "-c", program + ".submit(IMAGES, RECORDS)"],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 1 and "no scores after 0.05 s" in run.stderr


def test_a_judge_of_finished_images_is_guarded_too():
    samples = [Sample(i, record, 0, None, IMAGES[i], 1.0, {}) for i, record in enumerate(RECORDS)]
    params = load_params(Path("params.yaml"))
    with pytest.raises(RewardError, match="r0 and 1 more: reward given: ValueError: broken"):
        image_lines(
            samples, "preference", params, Given(raising(ValueError("broken"))), {"scoring": 0.0}
        )
