"""Compare `star plan`'s memory with what the kernel counts.

    python -m benchmarks.memory > benchmarks/figures/memory.json

Each case trains the miniature for two epochs on the CPU, in a process of its own. For each phase it
says the resident memory at its highest (VmHWM, set back before the phase) less that of interpreter
and libraries. The latter is what was resident after a first training of the same sizes had been run
and thrown away.

glibc is told to map every larger block by itself, and to give back what is free of the others
before each phase. So the mark shows what is in use. Estimates are of the same phases; both have the
parts that stay (weights, trajectories). Denoising has the encoding of new prompts in it. Ratios are
estimated over measured.
"""

import argparse
import ctypes
import dataclasses
import gc
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from star.config.params import Params
from star.config.reading import load_params
from star.doctor.measure import resident
from star.doctor.random_weights import Free
from star.plan import costliest
from star.plan.configs import pipeline_configs
from star.plan.memory import MemoryEstimate
from star.plan.models import build_pipeline
from star.plan.reward_models import Scorer
from star.policy.sd3 import load_policy
from star.prompts.core_content import with_core
from star.prompts.prepare import prepare
from star.system.runtime import stay_offline
from star.training.trainer import Trainer

BF16 = {"precision": "bf16"}  # emulated by some processors, which takes minutes a case
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "default": {},
    "bf16": {"model": BF16},
    "checkpointing": {"model": {"gradient_checkpointing": True}, "rollout": {"batch": 128}},
    "vae_slicing": {"model": {"vae_slicing": True}},
    "guidance": {"model": {"guidance_scale": 3.0}, "rollout": {"batch": 32}},
    "KL": {"train": {"kl_beta": 0.04}, "model": {**BF16, "gradient_checkpointing": True}},
    "128 pixels": {"model": {"resolution": 128}, "rollout": {"batch": 32}},
    "fused attention": {"model": {**BF16, "t5_tokens": 448}, "rollout": {"batch": 32}},
}
PHASES = ("denoising", "decoding", "update")


def changed(params: Params, case: str) -> Params:
    """Return the parameters with a case's changes, and nothing that is not measured.

    An epoch is one batch.
    """
    sections: dict[str, dict[str, Any]] = {
        "model": {"precision": "no"},
        "rollout": {"batch": 64, "steps": 3},  # more steps take no more memory
        "train": {
            "kl_form": "none",
            "kl_beta": 0.0,
            "group_size": 16,
            "updates_per_epoch": 1,
            "epochs": 2,
        },
    }
    for name, changes in CASES[case].items():
        sections[name] = {**sections[name], **changes}
    if sections["train"]["kl_beta"]:
        sections["train"]["kl_form"] = "published"
    sections["train"]["prompts_per_epoch"] = sections["rollout"]["batch"] // 16
    few = dataclasses.replace(params.prompts.geneval, train=16, test=12)
    sections["prompts"] = {"geneval": few}
    return dataclasses.replace(
        params,
        **{
            name: dataclasses.replace(getattr(params, name), **changes)
            for name, changes in sections.items()
        },
    )


def trainer(params: Params) -> Trainer:
    records = with_core(prepare("geneval", params.prompts, params.seed)[0])
    return Trainer(
        params,
        params.with_method("star").allocation,
        records,
        Free(),
        load_policy(params.model, torch.device("cpu")),
    )


def begin() -> None:
    """Begin a phase: give back what is free, and set the mark back."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def measure(params: Params) -> dict[str, float]:
    """Return the bytes at the highest of each phase, without interpreter and libraries."""
    trainer(
        params
    ).train_epoch()  # all shapes: the libraries keep kernels that they generate for them
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    libraries = resident("VmRSS")
    run, highest = trainer(params), dict.fromkeys(PHASES, 0.0)

    def watched(work: Callable, ended: str | None, phase: str) -> Callable:
        """Return ``work`` as a phase of its own.

        Before it ``ended`` was going on, and after it goes on.
        """

        def inner(*arguments: Any) -> Any:
            if ended:
                highest[ended] = max(highest[ended], resident("VmHWM") - libraries)
            begin()
            result = work(*arguments)
            highest[phase] = max(highest[phase], resident("VmHWM") - libraries)
            begin()
            return result

        return inner

    run.policy.decode = watched(run.policy.decode, "denoising", "decoding")  # type: ignore[method-assign]
    run.update = watched(run.update, None, "update")  # type: ignore[method-assign]
    for _ in range(2):
        begin()
        run.train_epoch()
    return highest


def estimated(params: Params) -> dict[str, float]:
    """Return the bytes of each phase by `star plan`; the exact detector takes none."""
    configs = pipeline_configs(params.model.path)
    assert configs is not None  # the miniature's directory
    estimate = MemoryEstimate(params, build_pipeline(configs, params.model), "cpu")
    memory = estimate.training("geneval", costliest(params, "geneval"), Scorer(0, 0), processes=1)
    return {phase: float(sum(memory.resident.values()) + memory.phases[phase]) for phase in PHASES}


def compare(case: str, params_file: Path) -> dict[str, dict[str, float]]:
    """Return of each phase and of their highest the bytes measured, estimated, and their ratio."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.memory",
        "--params",
        str(params_file),
        "--measure",
        case,
    ]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**15)}  # a cast 128 x 128 weight
    found = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    )
    planned = estimated(changed(load_params(params_file), case))
    found["peak"], planned["peak"] = max(found.values()), max(planned.values())
    return {
        phase: {
            "measured": found[phase],
            "estimated": planned[phase],
            "ratio": round(planned[phase] / found[phase], 3),
        }
        for phase in found
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument(
        "--measure", choices=CASES, metavar="CASE", help="only print what a case takes, in bytes"
    )
    options = parser.parse_args()
    stay_offline()
    if options.measure:
        print(json.dumps(measure(changed(load_params(options.params), options.measure))))
        return
    cases = {}
    for case in CASES:
        cases[case] = compare(case, options.params)
        print(
            case,
            {phase: found["ratio"] for phase, found in cases[case].items()},
            file=sys.stderr,
            flush=True,
        )
    figures = {
        "machine": f"{platform.machine()}, no accelerator, torch {torch.__version__}",
        "cases": cases,
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
