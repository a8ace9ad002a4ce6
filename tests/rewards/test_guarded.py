"""A reward in this process cannot hang it, and its errors name records."""

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from star.prompts.records import PromptRecord
from star.rewards.base import Reward, RewardError, RewardResult, finished
from star.rewards.guarded import GuardedReward

IMAGES = np.zeros((2, 4, 4, 3), np.uint8)
RECORDS = [PromptRecord(f"r{i}", "preference", "a dog", {}) for i in range(2)]


class Given(Reward):
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

    return Given(work)


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
    wanted = f"^r0 and 1 more: reward given: {type(error).__name__}: {error}"
    with pytest.raises(RewardError, match=wanted) as caught:
        GuardedReward(raising(error), 10.0).submit(IMAGES, RECORDS)
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
        GuardedReward(raising(error), 10.0).submit(IMAGES, RECORDS)
    assert caught.value is error


def test_a_reward_that_hangs_is_given_up():
    done = threading.Event()
    with pytest.raises(
        RewardError, match="^r0 and 1 more: reward given: .*0.05 s.*rewards.timeout"
    ):
        GuardedReward(Given(lambda *_: done.wait(60)), 0.05).submit(IMAGES, RECORDS)
    done.set()


HANGING = """
import threading
from star.rewards.guarded import in_time
in_time(threading.Event().wait, "r0", 0.05)
"""


@pytest.mark.slow
def test_a_process_ends_though_its_reward_hangs():
    run = subprocess.run(
        [sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=100
    )
    assert run.returncode == 1 and "r0: no scores after 0.05 s" in run.stderr
