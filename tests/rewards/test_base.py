"""The interface of a reward: the class in its documentation, and what every reward refuses."""

import textwrap
import time
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from star.config.params import TASKS
from star.config.reading import load_params
from star.prompts.records import PromptRecord
from star.rewards import base
from star.rewards.base import RewardError, check_batch, scores_of
from star.rewards.factory import build_reward
from star.rewards.guarded import GuardedReward

ROOT = Path(__file__).parents[2]
RECORDS = [PromptRecord(f"r{i}", "preference", "a dog", {}) for i in range(2)]


def test_the_reward_of_the_documentation_works():
    example = [line for line in base.__doc__.splitlines() if line.startswith("    ")]
    names = dict(vars(base))
    exec(textwrap.dedent("\n".join(example)), names)
    images = np.stack([np.full((4, 4, 3), level, np.uint8) for level in (0, 51)])
    result = GuardedReward(names["BrightnessReward"](), 10.0).submit(images, RECORDS).result()
    assert result.scores.dtype == np.float32 and len(result.details) == 2
    np.testing.assert_allclose(result.scores, [0.0, 0.2], rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (3, 8, 8, 3), (2, 8, 3)])
def test_images_that_do_not_fit_the_records_are_refused(shape):
    with pytest.raises(RewardError, match="^r0: reward given"):
        check_batch("given", np.zeros(shape, np.uint8), RECORDS)


@pytest.mark.parametrize("task", TASKS)
def test_every_reward_refuses_other_images(task, monkeypatch):
    monkeypatch.chdir(ROOT)
    reward = build_reward(task, load_params(Path("params.yaml")).rewards)
    with pytest.raises(RewardError, match=f"^r0: reward {task}: .*float32"):
        reward.submit(np.zeros((2, 64, 64, 3), np.float32), RECORDS)
    reward.close()
    reward.close()


def test_scores_that_do_not_come_name_the_records_and_the_parameter(monkeypatch):
    monkeypatch.setattr(base, "_GRACE", 0.01)
    start = time.monotonic()
    with pytest.raises(RewardError, match="^r0 and 1 more: .*rewards.timeout"):
        scores_of(Future(), RECORDS, 0.02)
    assert time.monotonic() - start < 4
