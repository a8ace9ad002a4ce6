"""A training and a run of the study are opened alike: locked, checked, prompts encoded."""

import pytest
import torch

from star.config.params import StudyRun
from star.policy.conditioning import PromptStore
from star.policy.sd3 import SD3Policy
from star.study.run import run_study
from star.system.errors import StarError
from star.system.locks import take_lock
from star.training.checkpoint import States
from star.training.loop import train
from tests.helpers.training import CPU, changed, geneval_records, raising, small


def begin_training(params, folder):
    params = changed(params, train={"evaluate_every": 1})
    records = geneval_records(8)
    train(params, "geneval", "star", records[:6], records[6:], folder / "work", folder / "out")


def begin_study(params, folder):
    held_out = geneval_records(8)[6:]
    run = StudyRun("geneval", "star", 0, 1e-3)
    result = folder / "out/run.json"
    run_study(params, run, geneval_records(8)[:6], held_out, folder / "work", result)


both = pytest.mark.parametrize("begin", [begin_training, begin_study])


@both
def test_the_lock_is_taken_before_a_model_is_opened(begin, tmp_path, monkeypatch):
    monkeypatch.setattr("star.training.loop.load_policy", lambda *_: pytest.fail("opened"))
    lock = take_lock(tmp_path / "work/.lock", "star train geneval star")
    with pytest.raises(StarError, match=r"work/.lock: star train geneval star .+ at work"):
        begin(small(), tmp_path)
    lock.release()


@both
def test_another_base_is_noticed_before_its_prompts_are_encoded(begin, tmp_path, monkeypatch):
    States(tmp_path / "work", 2, {}).save(1, {"a": torch.ones(1)}, {"epoch": 1, "base": "another"})
    monkeypatch.setattr(SD3Policy, "prepare_prompts", lambda *_: pytest.fail("encoded"))
    with pytest.raises(StarError, match="work: the state of a training on another base model"):
        begin(small(), tmp_path)


@both
def test_all_prompts_are_encoded_before_the_first_epoch(begin, tmp_path, monkeypatch):
    """Those of the held-out records, too. Whatever ends the training frees its lock."""
    for module in ("star.training.loop", "star.study.run"):
        monkeypatch.setattr(f"{module}.run_epochs", raising(KeyboardInterrupt()))
    params = small(model={"prompt_cache": str(tmp_path / "cache")})
    with pytest.raises(KeyboardInterrupt):
        begin(params, tmp_path)
    (folder,) = (tmp_path / "cache").iterdir()
    prompts = ["", *(record.prompt for record in geneval_records(8))]
    store = PromptStore(lambda _: pytest.fail("encoded"), folder, CPU, 16)
    assert len(store.get(prompts).embeds) == len(prompts)
    take_lock(tmp_path / "work/.lock", "the next").release()
