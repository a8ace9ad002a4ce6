"""The judge of finished images fails as a reward does: in time, and with the record's id."""

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest

from star.config.reading import load_params
from star.evaluation.judging import Judge
from star.evaluation.scoring import PlannedImage, Sample
from star.prompts.records import PromptRecord
from star.rewards.base import RewardError
from star.rewards.preference import PreferenceReward

REWARDS = dataclasses.replace(load_params(Path("params.yaml")).rewards, timeout=0.5)


def broken(*_):
    raise RuntimeError("no such kernel")


@pytest.mark.parametrize("work", [broken, lambda *_: threading.Event().wait()])
@pytest.mark.parametrize("method", ["submit", "image_features"])
def test_a_judge_that_fails_or_hangs_is_named_with_the_record(method, work, monkeypatch):
    monkeypatch.setattr(PreferenceReward, method, work)
    judge = Judge(REWARDS, "none", 4)
    images = np.zeros((2, 64, 64, 3), np.uint8)
    records = [PromptRecord(f"preference-{i}", "preference", "a cat", {}) for i in range(2)]
    with pytest.raises(RewardError, match="preference-0"):
        if method == "submit":
            planned = [PlannedImage(i, record, 0, None) for i, record in enumerate(records)]
            rows = zip(planned, images, strict=True)
            judge.figures([Sample(image, pixels, 0.0, {}) for image, pixels in rows])
        else:
            judge.diversities(images, images, records[0].id)
