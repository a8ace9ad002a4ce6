"""A training from start to end: resumed exactly, never trained on what is not finite, and it says
why it ends."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from star.config.differences import described
from star.config.params import load_params
from star.method import sde
from star.policy.rollout import sample_images
from star.policy.sd3 import SD3Policy, load_policy
from star.prompts.core_content import with_core
from star.prompts.prepare import prepare
from star.prompts.records import write_records
from star.rewards.base import RewardError, RewardResult, finished
from star.rewards.preference import PreferenceReward
from star.system.errors import Interrupted, StarError
from star.system.faults import Fault
from star.system.locks import take_lock
from star.system.memory import MENDS, memory_for
from star.system.signals import SAME
from star.training.checkpoint import States
from star.training.loop import _cut_log, run_epochs, train
from star.training.resume import folder_digest, state_folder, training_identity
from star.training.trainer import Trainer

BASE = load_params(Path("params.yaml"))


class Redness:
    """Share of red; ``wrong`` maps the number of a call to what goes wrong in it."""

    name = "redness"

    def __init__(self, wrong=None):
        self.calls, self.wrong = 0, wrong or {}

    def submit(self, images, records):
        self.calls += 1
        scores = (images[..., 0].astype(np.float32) - images[..., 2]).mean((1, 2)) / 255
        if self.wrong.get(self.calls) == "raises":
            raise RewardError(f"{records[5].id}: the reader failed")
        if self.wrong.get(self.calls) == "nan":
            scores[2] = np.nan
        return finished(RewardResult(scores, [{} for _ in records]))

    def close(self):
        pass


def raising(error):
    def inner(*arguments, **options):
        raise error

    return inner


def small(precision="no", **changes):
    settings = {
        "epochs": 3,
        "prompts_per_epoch": 4,
        "group_size": 4,
        "updates_per_epoch": 2,
        "save_every": 3,
    }
    return dataclasses.replace(
        BASE,
        model=dataclasses.replace(BASE.model, precision=precision),
        rollout=dataclasses.replace(BASE.rollout, steps=2, window=[0, 1], batch=8),
        train=dataclasses.replace(
            BASE.train, **(settings | {"sample_every": 3, "tracker": "none"} | changes)
        ),
        prompts=dataclasses.replace(
            BASE.prompts, geneval=dataclasses.replace(BASE.prompts.geneval, train=12, test=6)
        ),
    )


@pytest.fixture(scope="module")
def records():
    return with_core(prepare("geneval", small().prompts, small().seed)[0])


def trainer(records, reward=None, params=None):
    params = params or small()
    policy = load_policy(params.model, torch.device("cpu"))
    return Trainer(params, params.method("star"), records, reward or Redness(), policy)


def run(trained, folder, identity=None):
    run_epochs(trained, States(folder, 2, identity or {}), "test", 3, lambda: None)


def bytes_of(trained):
    return [p.detach().numpy().tobytes() for p in (*trained.parameters, *trained.average.values)]


def epochs_of(folder):
    return [json.loads(line)["epoch"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(records, tmp_path_factory):
    folder, trained = tmp_path_factory.mktemp("whole"), trainer(records)
    run(trained, folder)
    return bytes_of(trained), [line for line in (folder / "log.jsonl").read_text().splitlines()]


def test_whatever_ends_an_epoch_its_beginning_is_saved_and_goes_on_exactly(
    records, tmp_path, uninterrupted
):
    failing = trainer(records, Redness({3: "raises"}))  # two batches an epoch: in the second epoch
    with pytest.raises(StarError, match=r"the reader failed \(rollouts in .+epoch-000002-rank-0\)"):
        run(failing, tmp_path)
    assert [file.name for file in States(tmp_path, 2, {}).files()] == ["state-000001.safetensors"]
    again = trainer(records)
    run(again, tmp_path)
    assert bytes_of(again) == uninterrupted[0]
    assert epochs_of(tmp_path) == [1, 2, 3]
    timeless = [
        [
            {k: v for k, v in json.loads(line).items() if k not in ("seconds", "images_per_s")}
            for line in lines
        ]
        for lines in ((tmp_path / "log.jsonl").read_text().splitlines(), uninterrupted[1])
    ]
    assert timeless[0] == timeless[1]


def test_a_process_that_is_asked_to_stop_saves_and_says_so(records, tmp_path, uninterrupted):
    asked = trainer(records)
    calls = []
    asked.interrupted = lambda: len(calls) > 5 or calls.append(1)
    with pytest.raises(Interrupted, match="goes on from the state") as error:
        run(asked, tmp_path)
    assert error.value.status == 75 and States(tmp_path, 2, {}).files()
    again = trainer(records)
    run(again, tmp_path)
    assert bytes_of(again) == uninterrupted[0]


def test_the_second_sigterm_ends_the_process_at_once(tmp_path):
    program = (
        "import time\nfrom star.system.signals import listening\n"
        "with listening() as asked:\n print('ready', flush=True)\n"
        " while not asked(): time.sleep(0.01)\n print('asked', flush=True)\n time.sleep(60)\n"
    )
    for first in (signal.SIGTERM, signal.SIGUSR1):
        with subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(first)
            assert process.stdout.readline() == "asked\n"
            process.send_signal(signal.SIGTERM)  # a launcher's, which hands the scheduler's on
            time.sleep(SAME + 0.2)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == -signal.SIGTERM


def test_a_failing_reward_leaves_the_images_of_its_record(records, tmp_path):
    failing = trainer(records, Redness({1: "raises"}))
    before = bytes_of(failing)
    with pytest.raises(StarError, match="the reader failed"):
        run(failing, tmp_path)
    folder = tmp_path / "faults" / "epoch-000001-rank-0"
    facts = json.loads((folder / "rollouts.json").read_text())
    named = facts["error"].split(":")[0]
    assert [rollout["id"] for rollout in facts["rollouts"]] == [named] * 4, "its group"
    assert {"prompt", "start_seed", "step_seed"} <= facts["rollouts"][0].keys()
    assert len(list(folder.glob("*.png"))) == 4
    assert bytes_of(failing) == before


def test_a_score_that_is_not_finite_is_not_trained_on(records, tmp_path):
    failing = trainer(records, Redness({2: "nan"}))
    before = bytes_of(failing)
    with pytest.raises(StarError, match=r": reward redness: a score is not finite \(rollouts in"):
        run(failing, tmp_path)
    assert bytes_of(failing) == before and len(list(tmp_path.rglob("*.png"))) == 4


def spoil(trained, call, monkeypatch):
    """The loss of one surrogate is not a number."""
    work, calls = trained.surrogate, []

    def inner(item, row):
        surrogate, transition = work(item, row)
        calls.append(1)
        loss = surrogate.loss * torch.nan if len(calls) == call else surrogate.loss
        return dataclasses.replace(surrogate, loss=loss), transition

    monkeypatch.setattr(trained, "surrogate", inner)


def test_a_gradient_that_is_not_finite_is_not_trained_on(records, tmp_path, monkeypatch):
    failing = trainer(records)
    before = bytes_of(failing)
    spoil(failing, 1, monkeypatch)
    with pytest.raises(
        StarError,
        match="epoch 1, update 1: the loss or a gradient is not finite; nothing was learnt",
    ):
        run(failing, tmp_path)
    assert bytes_of(failing) == before
    facts = json.loads(next(tmp_path.rglob("rollouts.json")).read_text())
    assert len(facts["rollouts"]) == 8 and facts["rollouts"][0]["losses"] == ["nan"]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_under_a_finite_loss_is_not_trained_on(
    value, records, tmp_path
):
    failing = trainer(records)
    before = bytes_of(failing)
    failing.parameters[3].register_hook(
        lambda gradient: gradient.index_fill(0, torch.tensor([1]), value)
    )
    with pytest.raises(
        StarError,
        match="epoch 1, update 1: the loss or a gradient is not finite; nothing was learnt",
    ):
        run(failing, tmp_path)
    assert bytes_of(failing) == before
    facts = json.loads(next(tmp_path.rglob("rollouts.json")).read_text())
    assert all(
        np.isfinite([float(x) for x in rollout["losses"]]).all() for rollout in facts["rollouts"]
    )


def test_so_many_bad_updates_as_the_parameters_allow_are_skipped(records, tmp_path, monkeypatch):
    forgiving = trainer(records, params=small(skip_updates=1))
    spoil(forgiving, 1, monkeypatch)
    line = forgiving.train_epoch()
    assert line["skipped"] == 1 and line["updates"] == 2
    assert all(torch.isfinite(p).all() for p in forgiving.parameters)
    spoil(forgiving, 1, monkeypatch)
    with pytest.raises(StarError, match="update 3: .* not finite"):
        forgiving.train_epoch()


def test_half_precision_scales_its_loss_and_resumes_the_scale(records, tmp_path):
    params = small(precision="fp16")
    trained = trainer(records, params=params)
    trained.scaler._init_scale = 2.0**40  # overflows, and is halved
    line = trained.train_epoch()
    assert line["skipped"] == 2 and trained.scaler.get_scale() == 2.0**38
    other = trainer(records, params=params)
    other.restore(*trained.state())
    assert other.scaler.get_scale() == 2.0**38 and other.skipped == 2


@pytest.mark.parametrize("phase", MENDS)
def test_running_out_of_memory_names_the_phase_and_what_to_lower(phase):
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried"),
        MemoryError(),
        RuntimeError("can't allocate memory"),
        RuntimeError("CUDA error: out of memory\nCompile with"),
    ):
        with (
            pytest.raises(StarError, match=f"out of memory in the {phase} phase: .*(lower|set) "),
            memory_for(phase),
        ):
            raise error
    with pytest.raises(RuntimeError, match="shapes"), memory_for(phase):
        raise RuntimeError("shapes do not match")


@pytest.mark.parametrize(
    ("method", "phase"),
    [
        ("sample", "rollout"),
        ("reward.submit", "reward"),
        ("collect", "reward"),
        ("surrogate", "update"),
    ],
)
def test_memory_is_watched_in_every_phase(method, phase, records, monkeypatch):
    trained = trainer(records)

    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    owner, _, name = method.rpartition(".")
    monkeypatch.setattr(getattr(trained, owner) if owner else trained, name, full)
    with pytest.raises(StarError, match=f"out of memory in the {phase} phase"):
        trained.train_epoch()


@pytest.mark.parametrize(
    "place",
    ["diffusers.SD3Transformer2DModel.from_pretrained", "star.policy.sd3.SD3Policy.__init__"],
)
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")]
)
def test_memory_is_watched_while_a_model_is_opened(place, error, monkeypatch):
    monkeypatch.setattr(place, raising(error))
    with pytest.raises(StarError, match="out of memory in the opening phase: set model.precision"):
        load_policy(BASE.model, torch.device("cpu"))


def test_memory_is_watched_while_a_judge_is_opened_and_prompts_are_encoded(monkeypatch):
    policy = load_policy(BASE.model, torch.device("cpu"))
    monkeypatch.setattr(
        policy.pipe, "encode_prompt", raising(torch.OutOfMemoryError("CUDA out of memory"))
    )
    with pytest.raises(
        StarError, match="out of memory in the prompt encoding phase: lower model.t5_tokens"
    ):
        policy.encode(["a sign"])
    monkeypatch.setattr(
        torch.nn.Module, "to", raising(torch.OutOfMemoryError("CUDA out of memory"))
    )
    with pytest.raises(StarError, match="out of memory in the opening phase"):
        PreferenceReward(BASE.rewards.preference)


def test_a_latent_that_is_not_finite_is_no_black_image(records, monkeypatch):
    trained = trainer(records)
    step = sde.ode_step

    def overflow(x, *arguments):
        x = step(x, *arguments)
        x[1, 0, 0, 0] = torch.inf
        return x

    monkeypatch.setattr(sde, "ode_step", overflow)
    with pytest.raises(
        Fault, match="epoch 1: 1 of 8 images are not finite, the first of the prompt '"
    ) as f:
        trained.train_epoch()
    assert len(f.value.rollouts) == trained.params.rollout.batch
    with pytest.raises(
        StarError, match="1 of 2 images are not finite, the first of the prompt 'b'"
    ):
        sample_images(trained.policy, ["a", "b"], [1, 2], 2)


def contents(folder):
    return {
        file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()
    }


def test_a_training_that_is_done_and_started_again_writes_the_same_results_at_once(
    records, tmp_path, monkeypatch
):
    """Killed before the pipeline's tools knew that it was done, which delete what it made."""
    training = (small(save_every=1), "geneval", "star", records, tmp_path / "geneval-star-0")
    train(*training, tmp_path / "out")
    made = contents(tmp_path / "out")
    assert {file.name for file in training[-1].glob("state-*")} == {"state-000003.safetensors"}
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setattr(Trainer, "train_epoch", lambda self: pytest.fail("an epoch again"))
    train(*training, tmp_path / "out")
    assert contents(tmp_path / "out") == made and "adapter/pytorch_lora_weights.safetensors" in map(
        str, made
    )


def test_the_next_training_of_a_task_and_method_deletes_the_state_of_one_that_is_done(
    records, tmp_path, monkeypatch
):
    for name in ("geneval-star-0", "geneval-star-1"):
        States(tmp_path / name, 2, {}).save(3, {"a": torch.ones(1)}, {"epoch": 3})
    States(tmp_path / "geneval-star-0", 2, {}).finish()
    monkeypatch.setattr("star.training.loop.build_reward", raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        train(small(), "geneval", "star", records, tmp_path / "geneval-star-2", tmp_path / "out")
    assert {folder.name for folder in tmp_path.glob("geneval-*")} == {
        "geneval-star-1",
        "geneval-star-2",
    }


def test_the_log_has_the_epochs_of_the_state_alone(tmp_path):
    log = tmp_path / "log.jsonl"
    _cut_log(log, 0)
    assert log.read_text() == ""
    log.write_text('{"epoch": 1}\n{"epoch": 2}\n{"epoch": 3}\n{"epo')
    _cut_log(log, 2)
    assert log.read_text() == '{"epoch": 1}\n{"epoch": 2}\n'
    with pytest.raises(
        StarError, match=r"log.jsonl: has epochs \[1\] to \[2\] in 2 lines, not 1 to 3"
    ):
        _cut_log(log, 3)
    log.write_text('{"epoch": 1}\n{"epo')
    with pytest.raises(StarError, match="log.jsonl: not a training log"):
        _cut_log(log, 2)


def test_two_trainings_of_one_folder(tmp_path, records):
    for busy in ("state", "output"):
        lock = take_lock(tmp_path / busy / ".lock", "star train geneval star")
        with pytest.raises(
            StarError,
            match=rf"{busy}/.lock: star train geneval star \(process {os.getpid()} .+ at work",
        ):
            train(small(), "geneval", "star", records, tmp_path / "state", tmp_path / "output")
        lock.release()


def test_another_base_is_noticed_before_its_prompts_are_encoded(tmp_path, records, monkeypatch):
    States(tmp_path / "work", 2, {}).save(1, {"a": torch.ones(1)}, {"epoch": 1, "base": "another"})
    monkeypatch.setattr(SD3Policy, "prepare_prompts", lambda *a: pytest.fail("encoded"))
    with pytest.raises(StarError, match="work: the state of a training on another base model"):
        train(small(), "geneval", "star", records, tmp_path / "work", tmp_path / "out")


def test_changed_parameters_make_another_training_and_say_so(tmp_path, records, capsys):
    prompts = tmp_path / "prompts.jsonl"
    write_records(prompts, records)

    def identity(params):
        return training_identity(params, "geneval", "star", params.method("star"), prompts)

    first = state_folder(tmp_path / "state", identity(small()))
    States(first, 2, identity(small())).save(7, {"a": torch.ones(1)}, {"epoch": 7})
    assert state_folder(tmp_path / "state", identity(small())) == first
    second = state_folder(tmp_path / "state", identity(small(learning_rate=0.5)))
    assert second != first
    printed = "".join(capsys.readouterr())
    assert (
        f"note: {first}: an unfinished training (epoch 7) is left alone: train.learning_rate 0.0015 -> 0.5"
        in printed
    )
    States(first, 2, {}).finish()
    state_folder(tmp_path / "state", identity(small(learning_rate=0.5)))
    assert "".join(capsys.readouterr()) == "", "one that is done is no unfinished one"
    moved = States(first, 2, identity(small(learning_rate=0.5)))
    with pytest.raises(
        StarError,
        match="a state of other parameters, train.learning_rate 0.0015 -> 0.5; set them back",
    ):
        moved.newest()


def test_other_weights_and_another_precision_make_another_training(tmp_path, records, monkeypatch):
    """Of the models that a training opens, wherever they lie; and of what `auto` stands for on this
    machine."""
    prompts = tmp_path / "prompts.jsonl"
    write_records(prompts, records)
    for name in ("base", "judge"):
        shutil.copytree(
            f"models/miniature{'-preference' if name == 'judge' else ''}", tmp_path / name
        )
    judge = dataclasses.replace(BASE.rewards.preference, path=str(tmp_path / "judge"))
    params = dataclasses.replace(
        BASE,
        model=dataclasses.replace(BASE.model, path=str(tmp_path / "base"), precision="auto"),
        rewards=dataclasses.replace(BASE.rewards, preference=judge),
    )

    def identity(task="preference"):
        return training_identity(params, task, "star", params.method("star"), prompts)

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"amx_bf16": True})
    known, other_task = identity(), identity("ocr")
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {})
    assert described(known, identity()) == "computing.precision bf16 -> no"
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"amx_bf16": True})
    flip_a_bit(tmp_path / "judge" / "model.safetensors")
    assert described(known, identity()).startswith("files.rewards.preference.path ")
    assert identity("ocr") == other_task
    flip_a_bit(tmp_path / "base" / "vae" / "diffusion_pytorch_model.safetensors")
    assert described(other_task, identity("ocr")).startswith("files.model.path ")


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_of_a_large_file_pieces_are_read(tmp_path):
    """What training changes shows, wherever the directory lies; what does not decide anything does
    not count."""
    file = tmp_path / "one" / "part" / "model.safetensors"
    file.parent.mkdir(parents=True)
    weights = np.random.default_rng(0).standard_normal(2**21).astype(np.float32)  # 8 MiB
    weights.tofile(file)
    known = folder_digest(tmp_path / "one")
    (tmp_path / "one" / "README.md").write_text("a card")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert folder_digest(tmp_path / "two") == known
    file.rename(file.with_name("other.safetensors"))
    assert folder_digest(tmp_path / "one") != known
    weights[2**20 : 2**20 + 4096] += 1e-3  # 16 KiB
    weights.tofile(tmp_path / "two" / "part" / "model.safetensors")
    assert folder_digest(tmp_path / "two") != known
