"""Measure what training Stable Diffusion 3.5 Medium costs.

    python -m benchmarks.sd35m > benchmarks/figures/sd35m.json

The model's own shapes with random weights run on the project's own trainer. Epochs are of one group
at 512 pixels by the recipe of `presets/sd35m-1gpu-geneval.yaml`, KL included. The base setting is
STAR in bf16, without checkpointing and with nothing compiled; of each other one a single choice
differs. Those of one precision share their frozen weights. All are in one process, and each round
runs them one after another. Ratios are over the base setting's epoch of the same round, medians
with the smallest and largest. The VAE is float32 in all of them, so decoding is measured by itself
and left out of the epochs.

Memory is measured in a second process, where one setting is there at a time. On the CPU it is what
the kernel counts, its high-water mark set back before each phase; on a GPU what the allocator does.

On a GPU the whole model runs, and the share of the card's own bf16 matrix rate is measured that the
base setting's update reaches. On the CPU what `reduced` names is cut. A setting that cannot be run
is null, and so is one whose precision the device has no fast products for; `reasons` says why.
"""

import argparse
import copy
import dataclasses
import functools
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from torch._dynamo.utils import counters

from star.config.params import Params
from star.config.reading import load_params
from star.doctor.measure import layer_seconds, machine, matrix_share, measure_peak, seconds
from star.doctor.random_weights import (
    LAYERS,
    random_pipeline,
    random_trainer,
    random_transformer,
    random_vae,
    sharing,
)
from star.doctor.subject import TOKENIZERS
from star.method.precision import set_tf32
from star.policy.sd3 import SD3Policy
from star.system.runtime import keep_freed_memory, stay_offline
from star.training.policy_gradient import PolicyGradient
from star.training.trainer import Trainer

PHASES = ("rollout", "update")
CRAWL = 10.0  # times the base setting's precision, in one layer
BASE: dict[str, Any] = {
    "precision": "bf16",
    "gradient_checkpointing": False,
    "compile": "no",
    "vae_slicing": False,
}


@dataclass(frozen=True)
class Setting:
    """One choice of settings.

    method: of `methods`; model: what of `BASE` is changed.
    """

    method: str = "star"
    model: Mapping[str, Any] = field(default_factory=dict)


SETTINGS = {
    "base": Setting(),
    "flow_grpo": Setting("flow_grpo"),
    "gradient_checkpointing": Setting(model={"gradient_checkpointing": True}),
    "compile": Setting(model={"compile": "inductor"}),
    "fp16": Setting(model={"precision": "fp16"}),
    "float32": Setting(model={"precision": "no"}),
}
DECODINGS = {"base": False, "vae_slicing": True}  # `model.vae_slicing`


@dataclass(frozen=True)
class Sizes:
    """The size of an epoch.

    Attributes:
        layers: of the transformer.
        images: of the group, in one batch.
        steps: of a rollout, all but the last trained.
        guidance_scale: 1 is one sequence an image, more is two.
    """

    layers: int
    images: int
    steps: int
    guidance_scale: float


WHOLE, ON_CPU = Sizes(LAYERS, 8, 10, 4.5), Sizes(2, 2, 2, 1.0)


@dataclass
class Timed:
    """Epochs of a setting.

    Attributes:
        epochs: seconds by phase, the uncounted one first.
        line: the last log line.
        reason: why there are none.
    """

    epochs: list[dict[str, float]] = field(default_factory=list)
    line: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None

    def add(self, run: Trainer) -> None:
        self.line = dataclasses.asdict(run.train_epoch())
        if not math.isfinite(self.line["grad_norm"]):  # as star.training.trainer.run_epochs
            raise FloatingPointError("the loss or a gradient is not finite")
        self.epochs.append({phase: self.line["seconds"][phase] for phase in PHASES})


def with_sizes(params: Params, sizes: Sizes) -> Params:
    """Return the recipe for epochs of one group, always of one prompt."""
    one = dataclasses.replace(
        params.prompts.geneval, train=1, test=1, train_file=None, test_file=None
    )
    model = {
        **BASE,
        "path": TOKENIZERS,
        "prompt_cache": None,
        "guidance_scale": sizes.guidance_scale,
    }
    rollout: dict[str, Any] = {
        "steps": sizes.steps,
        "window": [0, sizes.steps - 1],
        "batch": sizes.images,
    }
    train: dict[str, Any] = {
        "prompts_per_epoch": 1,
        "group_size": sizes.images,
        "updates_per_epoch": 1,
    }
    return dataclasses.replace(
        params,
        model=dataclasses.replace(params.model, **model),
        rollout=dataclasses.replace(params.rollout, **rollout),
        train=dataclasses.replace(params.train, **train),
        prompts=dataclasses.replace(params.prompts, geneval=one),
    )


@functools.cache
def held_in(precision: str, pipe: StableDiffusion3Pipeline) -> StableDiffusion3Pipeline:
    """Return a copy of the pipeline, whose weights the settings of one precision share."""
    transformer = copy.deepcopy(pipe.transformer)
    return StableDiffusion3Pipeline(**{**pipe.components, "transformer": transformer})


def build(
    setting: Setting, params: Params, pipe: StableDiffusion3Pipeline, device: torch.device
) -> Trainer:
    """Return the setting's trainer over the pipeline's weights; its images are blank."""
    params = dataclasses.replace(params, model=dataclasses.replace(params.model, **setting.model))
    shared = sharing(held_in(params.model.precision, pipe))
    run = random_trainer(params, params.with_method(setting.method).allocation, shared, device)
    side = params.model.resolution

    def blank(x: torch.Tensor) -> np.ndarray:
        return np.zeros(
            (len(x.cpu()), side, side, 3), np.uint8
        )  # waits for the device, as decoding does

    run.policy.decode = blank  # type: ignore[method-assign]
    assert isinstance(run.algorithm, PolicyGradient)
    run.algorithm.refuse_clipped = lambda *_: None  # type: ignore[method-assign]  # a figure of its own
    return run


# -- time ------------------------------------------------------------------------------------------


def refusal(setting: Setting, device: torch.device) -> str | None:
    """Return why a setting is not tried, or None.

    One layer tells in a second what an epoch would in many minutes.
    """
    precision = setting.model.get("precision", BASE["precision"])
    slower = layer_seconds(precision, device) / layer_seconds(BASE["precision"], device)
    return (
        None
        if slower < CRAWL
        else f"one layer takes {slower:.0f} times as long as in {BASE['precision']}: not run"
    )


def time_epochs(runs: Mapping[str, Trainer], rounds: int) -> dict[str, Timed]:
    """Time an uncounted epoch of each, then ``rounds`` of all that could, one after another."""
    timed = {name: Timed() for name in runs}
    for name, run in runs.items():
        try:
            timed[name].add(run)
        except (
            RuntimeError,
            FloatingPointError,
        ) as error:  # what torch raises where a device cannot, or memory ends
            if name == "base":
                raise
            timed[name] = Timed(reason=str(error).strip().split("\n")[0])
        print(name, timed[name].reason or timed[name].epochs[0], file=sys.stderr, flush=True)
    for _ in range(rounds):
        for name, run in runs.items():
            if timed[name].reason is None:
                timed[name].add(run)
    return timed


def time_decoding(policy: SD3Policy, images: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Time the decoding of a batch, at once and one by one (`model.vae_slicing`)."""
    latents = policy.noise(range(images))
    found: dict[str, list[float]] = {name: [] for name in DECODINGS}
    SD3Policy.decode(policy, latents)  # not counted
    for _ in range(rounds):
        for name, taken in found.items():
            policy.pipe.vae.use_slicing = DECODINGS[name]
            taken.append(seconds(lambda: SD3Policy.decode(policy, latents)))
    return {
        name: {
            "seconds": statistics.median(taken),
            "images_per_s": images / statistics.median(taken),
            **({} if name == "base" else {"ratio": spread(taken, found["base"])}),
        }
        for name, taken in found.items()
    }


def spread(values: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    ratios = [a / b for a, b in zip(values, base, strict=True)]
    return {
        "median": statistics.median(ratios),
        "min": min(ratios),
        "max": max(ratios),
        "rounds": len(ratios),
    }


def summary(timed: Timed, base: Timed, images: int, decoding: float) -> dict[str, Any] | None:
    """Return a setting's figures, or None where it was not run.

    These are seconds and images/s by phase and of all three together, and ratios of the seconds.

    Args:
        decoding: seconds, which belong to ``all``.
    """
    if not timed.epochs:
        return None
    found, ratios = {}, {}
    for phase in PHASES:
        own, others = ([epoch[phase] for epoch in t.epochs[1:]] for t in (timed, base))
        found[phase] = statistics.median(own)
        ratios[phase] = spread(own, others)
    found["all"] = sum(found.values()) + decoding
    return {
        "seconds": found,
        "images_per_s": {phase: images / value for phase, value in found.items()},
        **({} if timed is base else {"ratio": ratios}),
        "first_epoch_seconds": sum(timed.epochs[0].values()),
        "first_ratio_error": timed.line["first_ratio_error"],
        "grad_norm": timed.line["grad_norm"],
    }


def time_all(
    names: Sequence[str],
    rounds: int,
    params: Params,
    pipe: StableDiffusion3Pipeline,
    device: torch.device,
) -> dict[str, Any]:
    """Measure everything but memory."""
    keep_freed_memory()
    reasons = {name: refusal(SETTINGS[name], device) for name in names}
    tried = [name for name in names if reasons[name] is None]
    runs = {name: build(SETTINGS[name], params, pipe, device) for name in tried}
    timed = {name: Timed(reason=reason) for name, reason in reasons.items()} | time_epochs(
        runs, rounds
    )
    base, images, graphs = runs["base"], params.rollout.batch, counters["frames"]
    decoding = time_decoding(base.policy, images, rounds)
    whole = decoding["base"]["seconds"]
    settings = {name: summary(found, timed["base"], images, whole) for name, found in timed.items()}
    figures = {
        "attention": base.policy.attention_kernel,
        "core_tokens": int(base.credit.core_keys(base.records, clause_wise=False).index.shape[1]),
        "compiled_graphs": {"asked": graphs["total"], "made": graphs["ok"]},
        "decode": decoding,
        "settings": settings,
        "reasons": {name: found.reason for name, found in timed.items() if found.reason},
    }
    if device.type == "cuda":
        summed = settings["base"]
        assert summed is not None  # a base setting that fails has ended the benchmark
        figures["matrix_share"] = matrix_share(base, summed["seconds"]["update"])
    return figures


# -- memory ----------------------------------------------------------------------------------------


def measure_memory(
    names: Sequence[str], params: Params, pipe: StableDiffusion3Pipeline, device: torch.device
) -> dict[str, Any]:
    """Measure the bytes of each setting.

    These are what is loaded before an epoch, and what each phase adds to it at its highest.
    """
    settings = {}
    for name in names:
        run = build(SETTINGS[name], params, pipe, device)
        run.train_epoch()  # the optimizer's state, and what libraries and compilers keep
        settings[name] = watched_epoch(run)
        if name == "base":
            decode = decoding_memory(run.policy, params.rollout.batch)
        del run
        held_in.cache_clear()
        gc.collect()
    return {"settings": settings, "decode": decode}


def watched_epoch(run: Trainer) -> dict[str, float]:
    peaks: dict[str, dict[str, float]] = {}

    def watched(phase: str, work: Callable) -> Callable:
        def inner(*arguments: Any) -> Any:
            result: list[Any] = []
            peaks[phase] = measure_peak(
                lambda: result.append(work(*arguments)), run.policy.device.type == "cuda"
            )
            return result[0]

        return inner

    run.sample = watched("rollout", run.sample)  # type: ignore[method-assign]
    run.update = watched("update", run.update)  # type: ignore[method-assign]
    run.train_epoch()
    loaded = peaks["rollout"]["loaded"]
    return {"loaded": loaded, **{phase: peaks[phase]["peak"] - loaded for phase in PHASES}}


def decoding_memory(policy: SD3Policy, images: int) -> dict[str, dict[str, float]]:
    latents, found = policy.noise(range(images)), {}
    for name, slicing in DECODINGS.items():
        policy.pipe.vae.use_slicing = slicing
        peak = measure_peak(lambda: SD3Policy.decode(policy, latents), policy.device.type == "cuda")
        found[name] = {"loaded": peak["loaded"], "decode": peak["peak"] - peak["loaded"]}
    return found


# -- all of it -------------------------------------------------------------------------------------


def read_options() -> argparse.Namespace:
    """Read the command line; defaults are those of the device."""
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=Path, default=Path("presets/sd35m-1gpu-geneval.yaml"))
    parser.add_argument("--rounds", type=int, default=5 if gpu else 2)
    for name, value in dataclasses.asdict(WHOLE if gpu else ON_CPU).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument(
        "--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="beside the base"
    )
    parser.add_argument(
        "--part", choices=("time", "memory"), help="only print the figures of this process"
    )
    return parser.parse_args()


def measure(part: str, options: argparse.Namespace, sizes: Sizes) -> dict[str, Any]:
    """Measure one part, in this process."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    params = with_sizes(load_params(options.params), sizes)
    set_tf32(params.model.tf32)  # as star.policy.sd3.load_policy
    torch.manual_seed(0)
    pipe = random_pipeline(TOKENIZERS, random_transformer(sizes.layers), random_vae())
    if part == "memory":
        return measure_memory(options.settings, params, pipe, device)
    return time_all(options.settings, options.rounds, params, pipe, device)


def apart(
    part: str, names: Sequence[str], options: argparse.Namespace, cache: str
) -> dict[str, Any]:
    """Measure one part, in a process of its own.

    Where memory is measured, glibc is told to give back what is freed.

    Args:
        cache: folder of compiled kernels.
    """
    given = {"params": options.params, "rounds": options.rounds, "part": part}
    given |= {name: getattr(options, name) for name in dataclasses.asdict(WHOLE)}
    arguments = [
        word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", str(value))
    ]
    command = [sys.executable, "-m", "benchmarks.sd35m", *arguments, "--settings", *names]
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache}
    environment |= {"MALLOC_MMAP_THRESHOLD_": str(2**16)} if part == "memory" else {}
    return json.loads(
        subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=environment
        ).stdout
    )


def main() -> None:
    options = read_options()
    sizes = Sizes(options.layers, options.images, options.steps, options.guidance_scale)
    stay_offline()
    if options.part:
        print(json.dumps(measure(options.part, options, sizes)))
        return
    names = list(dict.fromkeys(["base", *options.settings]))
    with (
        tempfile.TemporaryDirectory() as cache
    ):  # an empty one: what compiling costs is in the first epoch
        figures = apart("time", names, options, cache)
        memory = apart(
            "memory", [name for name in names if name not in figures["reasons"]], options, cache
        )
    for section, parts in memory.items():
        for name, found in parts.items():
            figures[section][name]["memory"] = found
    chosen, whole = dataclasses.asdict(sizes), dataclasses.asdict(WHOLE)
    about = {
        "machine": machine(),
        "sizes": chosen,
        "reduced": {
            key: f"{chosen[key]} for {whole[key]}" for key in chosen if chosen[key] < whole[key]
        },
        "base": {"method": SETTINGS["base"].method, **BASE},
    }
    print(json.dumps(about | figures, indent=1))


if __name__ == "__main__":
    main()
