"""Several processes train as one does: the same prompts, noise, advantages and gradients."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file

from star.config.params import load_params
from star.prompts.core_content import extract_core
from star.prompts.prepare import prepare
from star.prompts.records import write_records
from star.system.processes import ALONE, Processes

SMOKE = Path(__file__).parents[1] / "smoke" / "params.yaml"


class Pretended:
    """An accelerator whose other processes' tensors are given."""

    def __init__(self, others):
        self.others = others

    def pad_across_processes(self, tensor, dim):
        widest = max(t.shape[dim] for t in (tensor, *self.others))
        return torch.nn.functional.pad(tensor, (0, widest - tensor.shape[dim]))

    def gather(self, tensor):
        return torch.cat(
            [tensor, *(self.pad_across_processes(t, t.dim() - 1) for t in self.others)]
        )


@pytest.mark.parametrize(("total", "runs", "count"), [(4, 2, 1), (8, 2, 2), (12, 1, 4), (6, 3, 2)])
def test_every_item_belongs_to_one_process_and_each_has_its_part_of_each_run(total, runs, count):
    parts = [Processes(rank, count).shard(range(total), runs) for rank in range(count)]
    assert sorted(item for part in parts for item in part) == list(range(total))
    run = total // runs
    for part in parts:
        assert [item // run for item in part] == sorted(
            r for r in range(runs) for _ in range(run // count)
        )


def test_gathered_items_are_in_the_order_of_the_plan():
    """Two updates of four batches; rank 0 has batches 0, 2, 4, 6 and one clause, rank 1 the others
    and two clauses."""
    batch = {i: torch.full((3, 1 if i % 2 == 0 else 2), float(i)) for i in range(8)}
    other = torch.stack([batch[i] for i in (1, 3, 5, 7)])
    found = Processes(0, 2, Pretended([other])).gather([batch[i] for i in (0, 2, 4, 6)], runs=2)
    assert [int(part[0, 0]) for part in found] == list(range(8))
    assert all(part.shape == (3, 2) for part in found)
    assert torch.equal(found[2][:, 1], torch.zeros(3)), (
        "a batch with fewer clauses is filled up with zeros"
    )


def test_alone_nothing_changes():
    parts = [torch.ones(2, 1), torch.zeros(2, 1)]
    assert ALONE.gather(parts, 1) == parts and ALONE.shard([5, 6], 1) == [5, 6] and ALONE.main
    assert torch.equal(ALONE.table(torch.tensor([1.0, 2.0])), torch.tensor([[1.0, 2.0]]))


@pytest.mark.slow
def test_the_others_wait_longer_than_a_reward_may_take(tmp_path):
    (tmp_path / "waiting.py").write_text(
        "import torch\nfrom star.system.processes import start_accelerator\n"
        "accelerator = start_accelerator(5000.0)\n"
        "group = torch.distributed.group.WORLD._get_backend(torch.device('cpu'))\n"
        "print(f'waits {group.options._timeout.total_seconds()};', end='')\n"  # at once: both write to one pipe
        "accelerator.end_training()\n"
    )
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*torchrun, str(tmp_path / "waiting.py")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert run.stdout.count("waits 6800.0;") == 2, run.stdout + run.stderr[-3000:]


def launched(
    count: int, *arguments: object, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`star` as ``count`` processes on the CPU."""
    command = [
        sys.executable,
        "-m",
        "star.cli",
        "launch",
        "--processes",
        str(count),
        "--",
        *map(str, arguments),
    ]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(count),
        "OPENBLAS_NUM_THREADS": str(count),
    } | environment
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def launch(count: int, *arguments: object) -> None:
    run = launched(count, *arguments)
    assert run.returncode == 0, run.stderr[-3000:]
    assert f"{count} process{'es' if count > 1 else ''}" in run.stdout


def write_params(folder: Path, values: dict) -> Path:
    values["model"]["path"], values["rewards"]["preference"]["path"] = (
        "models/miniature",
        "models/miniature-preference",
    )
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def write_prompts(path: Path, params: Path) -> None:
    records = [
        dataclasses.replace(r, core=extract_core(r))
        for r in prepare("geneval", load_params(params))[0]
    ]
    write_records(path, records)


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    """Clause-wise and shuffled: widths that differ between processes, seeds by batch, statistics
    over both."""
    values = yaml.safe_load(SMOKE.read_text(encoding="utf-8"))
    values["methods"]["clauses"] = {"clause_wise": True, "source": "shuffled", "objective": "local"}
    values["train"] |= {"epochs": 2, "updates_per_epoch": 2, "kl_beta": 0.04, "tracker": "none"}
    values["train"] |= {"prompts_per_epoch": 4, "group_size": 4}
    values["rollout"] |= {"batch": 2}  # a group lies on both processes
    values["model"]["prompt_cache"] = str(tmp_path / "prompts")
    params, prompts = write_params(tmp_path, values), tmp_path / "train.jsonl"
    write_prompts(prompts, params)
    outputs = [tmp_path / f"output-{count}" for count in (1, 2)]
    for count, output in zip((1, 2), outputs, strict=True):
        files = (
            "--params",
            params,
            "--prompts",
            prompts,
            "--output",
            output,
            "--state",
            tmp_path / f"state-{count}",
        )
        launch(count, "train", "--task", "geneval", "--method", "clauses", *files)
    alone, both = (
        [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
        for output in outputs
    )
    assert [line["epoch"] for line in both] == [1, 2]
    for one, two in zip(alone, both, strict=True):
        assert two["reward_mean"] == pytest.approx(one["reward_mean"], abs=1e-6)
        assert two["first_ratio_error"] == one["first_ratio_error"] == 0.0
        for key in (
            "reward_std",
            "loss",
            "ratio_mean",
            "ratio_min",
            "ratio_max",
            "clip_fraction",
            "kl",
            "map_entropy",
        ):
            assert two[key] == pytest.approx(one[key], abs=1e-6), key
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)
    adapters = [
        load_file(output / "adapter/pytorch_lora_weights.safetensors") for output in outputs
    ]
    trained = [
        np.concatenate([value.ravel() for key, value in found.items() if "lora_B" in key])
        for found in adapters
    ]
    assert np.abs(trained[0]).mean() > 1e-3 and np.abs(trained[1] - trained[0]).max() < 1e-6, (
        "both moved from zero"
    )
    assert sorted(f.name for f in outputs[1].rglob("*.png")) == sorted(
        f.name for f in outputs[0].rglob("*.png")
    )


@pytest.mark.slow
def test_a_reward_that_fails_in_another_process_ends_all_and_loses_nothing(tmp_path):
    values = yaml.safe_load(SMOKE.read_text(encoding="utf-8"))
    values["train"] |= {"epochs": 2, "prompts_per_epoch": 4, "group_size": 4, "tracker": "none"}
    values["rollout"] |= {"batch": 2}
    params, prompts = write_params(tmp_path, values), tmp_path / "train.jsonl"
    write_prompts(prompts, params)
    (tmp_path / "sitecustomize.py").write_text(  # Python runs it first
        "import itertools, os\n"
        "if os.environ.get('RANK') == '1':\n"
        "    import star.rewards.geneval as geneval\n"
        "    submit, calls = geneval.GenevalReward.submit, itertools.count(1)\n"
        "    def failing(self, *batch):\n"
        "        if next(calls) == 6:\n"  # of four an epoch
        "            raise RuntimeError('the detector is gone')\n"
        "        return submit(self, *batch)\n"
        "    geneval.GenevalReward.submit = failing\n"
    )
    files = (
        "--params",
        params,
        "--prompts",
        prompts,
        "--output",
        tmp_path / "out",
        "--state",
        tmp_path / "state",
    )
    command = (2, "train", "--task", "geneval", "--method", "star", *files)
    failed = launched(*command, PYTHONPATH=str(tmp_path))
    assert failed.returncode != 0 and not (tmp_path / "out/adapter").exists()
    assert re.search(
        r"error: geneval-train-\d+ and 1 more: reward geneval: .*the detector is gone",
        failed.stderr,
    )
    assert re.search(
        r"error: another process ended while this one waited .*message says why", failed.stderr
    )
    assert "[rank" not in failed.stderr, "a traceback"
    (fault,) = tmp_path.glob("state/*/faults/*")
    assert fault.name == "epoch-000002-rank-1" and len(list(fault.glob("*.png"))) == 2
    assert [state.name for state in tmp_path.glob("state/*/state-*")] == [
        "state-000001.safetensors"
    ]
    launch(*command)
    log = (tmp_path / "out/log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["epoch"] for line in log] == [1, 2]


@pytest.mark.slow
def test_two_processes_evaluate_as_one_does(tmp_path):
    values = yaml.safe_load(SMOKE.read_text(encoding="utf-8"))
    values["evaluate"] |= {"batch": 3}
    values["model"]["prompt_cache"] = str(tmp_path / "prompts")
    params = write_params(tmp_path, values)
    for task in ("geneval", "ocr", "preference"):
        write_records(
            tmp_path / "core" / task / "test.jsonl", prepare(task, load_params(params))[1]
        )
    for count in (1, 2):
        files = (
            "--params",
            params,
            "--prompts-dir",
            tmp_path / "core",
            "--output",
            tmp_path / str(count),
        )
        launch(
            count,
            "evaluate",
            "--checkpoint",
            "base",
            *files,
            "--state",
            tmp_path / f"state-{count}",
        )
    for name in ("images.jsonl", "metrics.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    images = [sorted((tmp_path / str(count) / "images").iterdir()) for count in (1, 2)]
    assert [p.read_bytes() for p in images[0]] == [p.read_bytes() for p in images[1]] and images[0]
