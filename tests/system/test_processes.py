"""Several processes train as one does: the same prompts, noise, advantages and gradients."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor

from star.config.reading import load_params
from star.prompts.core_content import with_core
from star.prompts.prepare import prepare
from star.prompts.records import write_records
from star.system.processes import ALONE, Processes
from star.training.trainer import ALGORITHMS
from tests.helpers.smoke import smoke_values
from tests.helpers.training import FORWARD

WriteParams = Callable[[dict], Path]
Launch = Callable[..., str]


class Pretended:
    """An accelerator whose other processes' tensors are given."""

    def __init__(self, others: list[Tensor]) -> None:
        self.others = others

    def pad_across_processes(self, tensor: Tensor, dim: int) -> Tensor:
        widest = max(t.shape[dim] for t in (tensor, *self.others))
        return torch.nn.functional.pad(tensor, (0, widest - tensor.shape[dim]))

    def gather(self, tensor: Tensor) -> Tensor:
        others = [self.pad_across_processes(other, other.dim() - 1) for other in self.others]
        return torch.cat([tensor, *others])


@pytest.mark.parametrize(("total", "runs", "count"), [(4, 2, 1), (8, 2, 2), (12, 1, 4), (6, 3, 2)])
def test_every_item_belongs_to_one_process_and_each_has_its_part_of_each_run(
    total: int, runs: int, count: int
) -> None:
    shards = [Processes(rank, count).shard(range(total), runs) for rank in range(count)]
    assert sorted(item for shard in shards for item in shard) == list(range(total))
    run = total // runs
    runs_of_items = [number for number in range(runs) for _ in range(run // count)]
    assert all([item // run for item in shard] == runs_of_items for shard in shards)


def test_gathered_items_are_in_the_order_of_the_plan() -> None:
    """Two updates of four batches; rank 0 has the even ones and one clause, rank 1 has two."""
    batch = {i: torch.full((3, 1 if i % 2 == 0 else 2), float(i)) for i in range(8)}
    other = torch.stack([batch[i] for i in (1, 3, 5, 7)])
    found = Processes(0, 2, Pretended([other])).gather([batch[i] for i in (0, 2, 4, 6)], runs=2)
    assert [int(part[0, 0]) for part in found] == list(range(8))
    assert all(part.shape == (3, 2) for part in found)
    assert torch.equal(found[2][:, 1], torch.zeros(3)), "fewer clauses are filled up with zeros"


def test_alone_nothing_changes() -> None:
    parts = [torch.ones(2, 1), torch.zeros(2, 1)]
    assert ALONE.gather(parts, 1) == parts and ALONE.shard([5, 6], 1) == [5, 6] and ALONE.main
    assert torch.equal(ALONE.table(torch.tensor([1.0, 2.0])), torch.tensor([[1.0, 2.0]]))


@pytest.mark.slow
def test_the_others_wait_longer_than_a_reward_may_take(tmp_path: Path) -> None:
    program = tmp_path / "waiting.py"
    program.write_text(
        "import torch\nfrom star.system.processes import Processes, start_accelerator\n"
        "accelerator = start_accelerator(5000.0)\n"
        "meeting = Processes.of(accelerator, 5000.0).group\n"
        "groups = torch.distributed.group.WORLD, meeting\n"
        "backends = [group._get_backend(torch.device('cpu')) for group in groups]\n"
        "waits = {backend.options._timeout.total_seconds() for backend in backends}\n"
        # At once: both write to one pipe.
        "print(f'waits {waits};', end='')\n"
        "accelerator.end_training()\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, str(program)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert run.stdout.count("waits {6800.0};") == 2, run.stdout + run.stderr[-3000:]


@pytest.fixture
def launched() -> Launch:
    """Run `star` as ``count`` processes on the CPU, and return the output, or the errors of one
    that is to fail."""

    def run(count: int, arguments: list[object], fails: bool = False, **environment: str) -> str:
        command = [sys.executable, "-m", "star.cli", "launch", f"--processes={count}", "--"]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(count))
        settings = {"env": os.environ | threads | environment, "capture_output": True}
        ended = subprocess.run([*command, *map(str, arguments)], **settings, text=True, timeout=600)
        assert (ended.returncode != 0) == fails, ended.stderr[-3000:]
        assert fails or f"{count} process{'es' if count > 1 else ''}" in ended.stdout
        return ended.stderr if fails else ended.stdout

    return run


def small_values(folder: Path) -> dict:
    """Return two epochs of which a group lies on both processes."""
    values = smoke_values()
    values["train"] |= {"epochs": 2, "prompts_per_epoch": 4, "group_size": 4, "tracker": "none"}
    values["rollout"] |= {"batch": 2}
    values["model"]["prompt_cache"] = str(folder / "prompts")
    return values


def training(params: Path, method: str, output: Path, state: Path) -> list[object]:
    """Write GenEval's prompts; return the command that trains on them."""
    prompts = [params.with_name(f"{split}.jsonl") for split in ("train", "test")]
    values = load_params(params)
    for file, made in zip(prompts, prepare("geneval", values.prompts, values.seed), strict=True):
        write_records(file, with_core(made))
    command = ["train", "--task", "geneval", "--method", method, "--params", params]
    command += ["--prompts", prompts[0], "--held-out", prompts[1]]
    return [*command, "--output", output, "--state", state]


@pytest.mark.parametrize(
    ("algorithm", "processes", "reuse"),
    [*((name, (2, 4), False) for name in ALGORITHMS), ("flow_grpo", (2,), True)],
)
def test_several_processes_train_as_one_does(
    algorithm: str,
    processes: tuple[int, ...],
    reuse: bool,
    tmp_path: Path,
    write_params: WriteParams,
    launched: Launch,
) -> None:
    """Clause-wise and shuffled: widths that differ, seeds by batch, statistics over both."""
    values = small_values(tmp_path)
    values["methods"]["clauses"] = {"clause_wise": True, "source": "shuffled", "objective": "local"}
    values["train"] |= {"updates_per_epoch": 1 if reuse else 2, "reuse_rollout": reuse}
    values["train"] |= {"evaluate_prompts": 5, "algorithm": algorithm}
    values["train"] |= {"kl_beta": 0.04 if algorithm == "flow_grpo" else 0.0}
    values["forward"] |= {**FORWARD[algorithm], "levels": "stratified"}
    params = write_params(values)
    outputs = [tmp_path / f"output-{count}" for count in (1, *processes)]
    for count, output in zip((1, *processes), outputs, strict=True):
        launched(count, training(params, "clauses", output, tmp_path / f"state-{count}"))
    for output in outputs[1:]:
        check_alike(outputs[0], output, 0.0 if algorithm == "flow_grpo" else None)


def check_alike(one_process: Path, several: Path, first_ratio_error: float | None) -> None:
    """Check that two trainings left the same logs, adapters and images."""
    outputs = (one_process, several)
    alone, both = (
        [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
        for output in outputs
    )
    assert [line["epoch"] for line in both] == [0, 1, 2]
    scores = [[line["held_out"] for line in log] for log in (alone, both)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6) and min(scores[0]) > 0
    close = ("reward_mean", "reward_std", "loss", "ratio_mean", "ratio_min", "ratio_max")
    for one, two in zip(alone[1:], both[1:], strict=True):
        assert two["first_ratio_error"] == one["first_ratio_error"] == first_ratio_error
        for key in (*close, "clip_fraction", "kl", "drift", "map_entropy"):
            known = one[key]  # None where it is another algorithm's
            assert two[key] == known or two[key] == pytest.approx(known, rel=1e-6, abs=1e-6), key
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)
    trained = []
    for output in outputs:
        adapter = load_file(output / "adapter/pytorch_lora_weights.safetensors")
        moved = [value.ravel() for key, value in adapter.items() if "lora_B" in key]
        trained.append(np.concatenate(moved))
    assert np.abs(trained[0]).mean() > 1e-3, "moved from zero"
    assert np.abs(trained[1] - trained[0]).max() < 1e-6
    drawn = [sorted(file.name for file in output.rglob("*.png")) for output in outputs]
    assert drawn[0] == drawn[1]


# Python runs it first. The eighth batch of the second process fails, of four an epoch and one held
# out before and after it.
FAILING = """
import itertools, os
if os.environ.get("RANK") == "1":
    import star.rewards.geneval as geneval
    submit, calls = geneval.GenevalReward.submit, itertools.count(1)
    def failing(self, *batch):
        if next(calls) == 8:
            raise RuntimeError("the detector is gone")
        return submit(self, *batch)
    geneval.GenevalReward.submit = failing
"""


def of_algorithm(values: dict, algorithm: str) -> dict:
    """Return the values with another algorithm, which all methods use."""
    values["train"] |= {"algorithm": algorithm}
    values["train"] |= {} if algorithm == "flow_grpo" else {"kl_beta": 0.0, "kl_form": "none"}
    values["forward"] |= {**FORWARD[algorithm], "levels": "stratified"}
    return values


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_reward_that_fails_in_another_process_ends_all_and_loses_nothing(
    algorithm: str, tmp_path: Path, write_params: WriteParams, launched: Launch
) -> None:
    params = write_params(of_algorithm(small_values(tmp_path), algorithm))
    (tmp_path / "sitecustomize.py").write_text(FAILING)
    command = training(params, "star", tmp_path / "out", tmp_path / "state")
    errors = launched(2, command, fails=True, PYTHONPATH=f"{tmp_path}:{Path.cwd()}")
    assert not (tmp_path / "out/adapter").exists()
    said = re.findall("error: (.*)", errors)
    assert any(re.match(r"geneval-train-\d+ and 1 more: .*the detector is gone", s) for s in said)
    assert any(s.startswith("another process ended") for s in said)
    assert "[rank" not in errors, "a traceback"
    (fault,) = tmp_path.glob("state/*/faults/*")
    assert fault.name == "epoch-000002-rank-1" and len(list(fault.glob("*.png"))) == 2
    states = [state.name for state in tmp_path.glob("state/*/state-*")]
    assert states == ["state-000001.safetensors"]
    launched(2, command)
    log = (tmp_path / "out/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in log] == [0, 1, 2]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_process_that_is_killed_ends_all_and_the_next_goes_on(
    algorithm: str, tmp_path: Path, write_params: WriteParams, launched: Launch
) -> None:
    params = write_params(of_algorithm(small_values(tmp_path), algorithm))
    failure, death = 'raise RuntimeError("the detector is gone")', "os.kill(os.getpid(), 9)"
    assert failure in FAILING
    (tmp_path / "sitecustomize.py").write_text(FAILING.replace(failure, death))
    command = training(params, "star", tmp_path / "out", tmp_path / "state")
    errors = launched(2, command, fails=True, PYTHONPATH=f"{tmp_path}:{Path.cwd()}")
    assert "[rank" not in errors and re.search("error: (another process ended|asked to)", errors)
    assert not (tmp_path / "out/adapter").exists()
    launched(2, command)
    log = (tmp_path / "out/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in log] == [0, 1, 2]


# Of four batches, the second process is slow with the second, and asked to stop in it.
ASKED = """
import itertools, os, pathlib, signal, time
from star.training.trainer import Trainer
sample, calls = Trainer.sample, itertools.count(1)
def drawing(self, *batch):
    call = next(calls)
    if call == 2 and os.environ.get("RANK") == "1":
        time.sleep(3)
        os.kill(os.getpid(), signal.SIGTERM)
    pathlib.Path(__file__).with_name(f"batch-{call}").touch()
    return sample(self, *batch)
Trainer.sample = drawing
"""


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_all_processes_stop_after_the_batch_in_which_one_is_asked_to(
    algorithm: str, tmp_path: Path, write_params: WriteParams, launched: Launch
) -> None:
    params = write_params(of_algorithm(small_values(tmp_path), algorithm))
    (tmp_path / "sitecustomize.py").write_text(ASKED)
    command = training(params, "star", tmp_path / "out", tmp_path / "state")
    said = launched(2, command, fails=True, PYTHONPATH=f"{tmp_path}:{Path.cwd()}")
    assert "asked to stop" in said
    assert sorted(file.name for file in tmp_path.glob("batch-*")) == ["batch-1", "batch-2"]
    assert [file.name for file in tmp_path.glob("state/*/state-*")] == ["state-000000.safetensors"]


def test_two_processes_evaluate_as_one_does(
    tmp_path: Path, write_params: WriteParams, launched: Launch
) -> None:
    values = small_values(tmp_path)
    values["evaluate"] |= {"batch": 3}
    params, core = write_params(values), tmp_path / "core"
    read = load_params(params)
    for task in ("geneval", "ocr", "preference"):
        write_records(core / task / "test.jsonl", prepare(task, read.prompts, read.seed)[1])
    outputs = [tmp_path / str(count) for count in (1, 2)]
    for count, output in zip((1, 2), outputs, strict=True):
        command = ["evaluate", "--checkpoint", "base", "--params", params, "--prompts-dir", core]
        state = tmp_path / f"state-{count}"
        launched(count, [*command, "--output", output, "--state", state])
    for name in ("images.jsonl", "metrics.json"):
        assert (outputs[0] / name).read_bytes() == (outputs[1] / name).read_bytes()
    images = [{file.name: file.read_bytes() for file in (o / "images").iterdir()} for o in outputs]
    assert images[0] == images[1] != {}
