"""A training from start to end: resumed exactly, never trained on what is not finite, and it says
why it ends."""

import functools
import json
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from star.method.seeds import seed_of
from star.policy.rollout import sample_images
from star.prompts.geneval import TAGS
from star.prompts.records import PromptRecord
from star.system.errors import Interrupted, StarError
from star.system.faults import Fault
from star.system.locks import take_lock
from star.training.checkpoint import States
from star.training.held_out import HeldOut, choose
from star.training.loop import _cut_log, run_epochs, train
from star.training.trainer import ALGORITHMS, Trainer
from tests.helpers.training import (
    BASE,
    Redness,
    adapter_bytes,
    geneval_records,
    raising,
    redness,
    small,
    timeless,
    trainer,
)

LONG = {"epochs": 3, "save_every": 3, "sample_every": 3}  # two batches an epoch
ONE_STEP = {"steps": 2, "window": [0, 1]}


def long(reward=None, precision="no", algorithm="flow_grpo", **train_changes):
    sections = {"model": {"precision": precision}, "rollout": ONE_STEP}
    return trainer(small(algorithm, train=LONG | train_changes, **sections), reward=reward)


def run(trained, folder, held_out=None):
    run_epochs(trained, States(folder, 2, {}), "test", 3, lambda: None, held_out=held_out)


def log_of(folder):
    return [timeless(json.loads(line)) for line in (folder / "log.jsonl").read_text().splitlines()]


@functools.cache
def uninterrupted(algorithm="flow_grpo"):
    with tempfile.TemporaryDirectory() as folder:
        trained = long(algorithm=algorithm)
        run(trained, Path(folder))
        return adapter_bytes(trained), log_of(Path(folder))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("end", ["a fault", "a request"])
def test_whatever_ends_an_epoch_its_beginning_is_saved_and_goes_on_exactly(
    end, algorithm, tmp_path
):
    if end == "a fault":
        ended = long(Redness({3: "raises"}), algorithm=algorithm)
        error = r"reader failed \(rollouts in .+000002-rank-0"
    else:
        ended, error, calls = long(algorithm=algorithm), "goes on from the state", []
        ended.interrupted = lambda: ended.epoch == 1 and (len(calls) > 3 or calls.append(1))
    with pytest.raises(StarError, match=error) as raised:
        run(ended, tmp_path)
    assert isinstance(raised.value, Interrupted) == (end == "a request")
    assert raised.value.status == (75 if end == "a request" else 1)
    assert [file.name for file in States(tmp_path, 2, {}).files()] == ["state-000001.safetensors"]
    again = long(algorithm=algorithm)
    run(again, tmp_path)
    assert (adapter_bytes(again), log_of(tmp_path)) == uninterrupted(algorithm)


def test_held_out_scores_change_no_other_number_and_resume_exactly(tmp_path):
    """Points before the first epoch, after the second, where a reward fails, and after the last."""
    records = geneval_records()[:6]

    def scored(folder, wrong=None):
        trained = long(Redness(wrong), evaluate_every=2)
        run(trained, folder, HeldOut.of(trained, records))
        return adapter_bytes(trained)

    with pytest.raises(StarError, match="the reader failed"):
        scored(tmp_path / "ended", {6: "raises"})  # each point is a batch, each epoch two
    moved = scored(tmp_path / "ended")
    scored(tmp_path / "whole")
    lines = log_of(tmp_path / "ended")
    assert lines == log_of(tmp_path / "whole")
    points = {line["epoch"]: line.pop("held_out") for line in lines if "held_out" in line}
    assert (moved, lines[1:]) == uninterrupted()
    assert list(points) == [0, 2, 3] and len(set(points.values())) == 3
    seeds = [seed_of(BASE.seed, "evaluate", record.id, 0) for record in records]
    prompts = [record.prompt for record in records]
    first = long()
    base = sample_images(first.policy, prompts, seeds, first.params.rollout.steps)
    assert points[0] == pytest.approx(redness(base).mean())


@pytest.mark.parametrize("block", [1, 32])
def test_held_out_prompts_are_of_all_tags_whatever_their_order(block):
    """The miniature's 192 prompts, whose tags take turns, and as many in blocks of a tag."""
    tags = [TAGS[i // block % len(TAGS)] for i in range(192)]
    records = [PromptRecord(f"r{i}", "geneval", "a", {"tag": tag}) for i, tag in enumerate(tags)]
    counts = Counter(record.metadata["tag"] for record in choose(records, 24))
    assert counts == dict.fromkeys(TAGS, 4)
    assert len({record.id for record in choose(records, 999)}) == 192


def test_a_failing_reward_leaves_the_images_of_its_record(tmp_path):
    failing = long(Redness({1: "raises"}))
    before = adapter_bytes(failing)
    with pytest.raises(StarError, match="the reader failed"):
        run(failing, tmp_path)
    folder = tmp_path / "faults" / "epoch-000001-rank-0"
    facts = json.loads((folder / "rollouts.json").read_text())
    named = facts["error"].split(":")[0]
    assert [rollout["id"] for rollout in facts["rollouts"]] == [named] * 4, "its group"
    assert {"prompt", "start_seed", "step_seed"} <= facts["rollouts"][0].keys()
    assert len(list(folder.glob("*.png"))) == 4
    assert adapter_bytes(failing) == before


def test_a_score_that_is_not_finite_is_not_trained_on(tmp_path):
    failing = long(Redness({2: "nan"}))
    before = adapter_bytes(failing)
    with pytest.raises(StarError, match=r": reward redness: a score is not finite \(rollouts in"):
        run(failing, tmp_path)
    assert adapter_bytes(failing) == before and len(list(tmp_path.rglob("*.png"))) == 4


def spoil(trained, monkeypatch):
    """Make the loss of the next step no number."""
    work, calls = trained.algorithm.term, []

    def inner(*arguments):
        term = work(*arguments)
        if not calls:
            term.loss.mul_(torch.nan)
        calls.append(1)
        return term

    monkeypatch.setattr(trained.algorithm, "term", inner)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("value", ["nan", "inf", "a loss"])
def test_a_gradient_that_is_not_finite_is_not_trained_on(value, algorithm, tmp_path, monkeypatch):
    """Also under a loss that is finite; then all rollouts of the update are named."""
    failing = long(algorithm=algorithm)
    before = adapter_bytes(failing)
    if value == "a loss":
        spoil(failing, monkeypatch)
    else:
        row = torch.tensor([1])
        failing.parameters[3].register_hook(lambda g: g.index_fill(0, row, float(value)))
    with pytest.raises(StarError, match="epoch 1, update 1: the loss or a gradient is not finite"):
        run(failing, tmp_path)
    assert adapter_bytes(failing) == before
    rollouts = json.loads(next(tmp_path.rglob("rollouts.json")).read_text())["rollouts"]
    losses = np.array([rollout["losses"] for rollout in rollouts], dtype=float)
    assert len(rollouts) == 8 and np.isfinite(losses).all() == (value != "a loss")


def test_so_many_bad_updates_as_the_parameters_allow_are_skipped(monkeypatch):
    forgiving = long(skip_updates=1)
    spoil(forgiving, monkeypatch)
    line = forgiving.train_epoch()
    assert line.skipped == 1 and line.updates == 2
    assert all(torch.isfinite(p).all() for p in forgiving.parameters)
    spoil(forgiving, monkeypatch)
    with pytest.raises(StarError, match="update 3: .* not finite"):
        forgiving.train_epoch()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_half_precision_scales_its_loss_and_resumes_the_scale(algorithm):
    trained = long(precision="fp16", algorithm=algorithm)
    trained.scaler._init_scale = 2.0**40  # overflows, and is halved
    line = trained.train_epoch()
    assert trained.scaler.get_scale() == 2.0**38
    assert line.skipped == 0 and line.grad_norm is None, "an overflow uses up no skip_updates"
    other = long(precision="fp16", algorithm=algorithm)
    tensors, facts = trained.state()
    other.restore(tensors, facts)
    assert other.scaler.get_scale() == 2.0**38
    facts["scaler"]["scale"] = 2.0**10  # fits
    other.restore(tensors, facts)
    assert other.train_epoch().grad_norm > 0


@pytest.mark.parametrize(
    ("method", "phase"),
    [
        ("sample", "rollout"),
        ("reward.submit", "reward"),
        ("collect", "reward"),
        ("algorithm.term", "update"),
    ],
)
def test_memory_is_watched_in_every_phase(method, phase, monkeypatch):
    trained = long()
    owner, _, name = method.rpartition(".")
    full = raising(torch.OutOfMemoryError("CUDA out of memory"))
    monkeypatch.setattr(getattr(trained, owner) if owner else trained, name, full)
    with pytest.raises(StarError, match=f"out of memory in the {phase} phase"):
        trained.train_epoch()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_latent_that_is_not_finite_is_no_black_image(algorithm, monkeypatch):
    trained = long(algorithm=algorithm)
    velocity = trained.policy.velocity

    def overflow(*arguments):
        found = velocity(*arguments)
        found[1, 0, 0, 0] = torch.inf
        return found

    monkeypatch.setattr(trained.policy, "velocity", overflow)
    with pytest.raises(Fault, match="epoch 1: . of 8 images are not finite, .* prompt '") as fault:
        trained.train_epoch()
    assert len(fault.value.rollouts) == 8
    with pytest.raises(StarError, match="1 of 2 images are not finite, .* prompt 'b'"):
        sample_images(trained.policy, ["a", "b"], [1, 2], 2)


def contents(folder):
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def test_a_training_leaves_its_results_and_started_again_when_done_the_same_at_once(
    tmp_path, monkeypatch
):
    """As after a kill before the pipeline's tools knew that it was done."""
    work, output = tmp_path / "geneval-star-0", tmp_path / "out"
    params = small(rollout=ONE_STEP, model={"resolution": 64})
    training = params, "geneval", "star", geneval_records(), [], work, output
    train(*training)
    made = contents(output)
    assert [(line["epoch"], line["images"]) for line in log_of(output)] == [(1, 16), (2, 32)]
    assert {"adapter/pytorch_lora_weights.safetensors", "samples/epoch_0002.png"} <= made.keys()
    entries = json.loads(made["maps/maps.json"])
    assert {entry["epoch"] for entry in entries} == {0, 1, 2}
    assert {f"maps/{name}" for e in entries for name in (e["final"], *e["maps"])} <= made.keys()
    assert [file.name for file in work.glob("state-*")] == ["state-000002.safetensors"]
    shutil.rmtree(output)
    monkeypatch.setattr(Trainer, "train_epoch", lambda self: pytest.fail("an epoch again"))
    train(*training)
    assert contents(output) == made


def test_the_next_training_of_a_task_and_method_deletes_the_state_of_one_that_is_done(
    tmp_path, monkeypatch
):
    for name in ("geneval-star-0", "geneval-star-1"):
        States(tmp_path / name, 2, {}).save(3, {"a": torch.ones(1)}, {"epoch": 3})
    States(tmp_path / "geneval-star-0", 2, {}).finish()
    monkeypatch.setattr("star.training.loop.build_reward", raising(KeyboardInterrupt()))
    work, output = tmp_path / "geneval-star-2", tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train(small(), "geneval", "star", geneval_records(), [], work, output)
    assert {path.name[-1] for path in tmp_path.glob("geneval-*")} == {"1", "2"}


def test_the_log_has_the_epochs_of_the_state_alone(tmp_path):
    log = tmp_path / "log.jsonl"
    _cut_log(log, 0)
    assert log.read_text() == ""
    log.write_text('{"epoch": 1}\n{"epoch": 2}\n{"epoch": 3}\n{"epo')
    _cut_log(log, 2)
    assert log.read_text() == '{"epoch": 1}\n{"epoch": 2}\n'
    with pytest.raises(StarError, match=r"log.jsonl: expected epochs 1 to 3 .* \[1\] to \[2\]"):
        _cut_log(log, 3)
    log.write_text('{"epoch": 1}\n{"epo')
    with pytest.raises(StarError, match="log.jsonl: not a training log"):
        _cut_log(log, 2)


def test_two_trainings_of_one_output_folder(tmp_path):
    """`tests/study/test_opening.py` tries the folder of states."""
    lock = take_lock(tmp_path / "output/.lock", "star train geneval star")
    work, output = tmp_path / "state", tmp_path / "output"
    with pytest.raises(StarError, match=rf"output/.lock: .*process {os.getpid()} .+ at work"):
        train(small(), "geneval", "star", geneval_records(), [], work, output)
    lock.release()


@pytest.mark.parametrize(
    ("task", "method", "message"),
    [("geneval", "ppo", "no method 'ppo'"), ("ocr", "star", "belongs to task geneval, not ocr")],
)
def test_bad_requests(tmp_path, task, method, message):
    with pytest.raises(StarError, match=message):
        train(small(), task, method, geneval_records(), [], tmp_path / "state", tmp_path / "output")
    assert not (tmp_path / "output").exists()
