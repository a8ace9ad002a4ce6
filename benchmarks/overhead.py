"""Measure what STAR costs at the size of SD3.5 Medium.

    python -m benchmarks.overhead > benchmarks/figures/overhead.json

One rollout-and-update phase of a group runs with SD3.5-M's own block shapes and random weights: 24
heads of 64, 1,024 image tokens of 512 pixels, 77 + 128 text tokens. Allocation by attention is
compared with the uniform one, on one model, interleaved in one process. Figures are ratios of
operations (counted), of wall time and of peak memory: medians over pairs with a 95 % interval, the
smallest and the largest pair.

On the CPU a few layers stand for the 24, every one of them is read, and there is no guidance. Each
makes STAR's share larger than it is in training. On a GPU there are all 24 layers, and also
images/s and the share of the card's own bf16 matrix rate that the update reaches.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks.speed import paired, spread
from star.config.params import Params
from star.config.reading import load_params
from star.doctor.measure import machine, measure_peak, seconds, use_of_card
from star.doctor.random_weights import (
    LAYERS,
    T5_TOKENS,
    random_pipeline,
    random_trainer,
    random_transformer,
    random_vae,
)
from star.method.precision import resolve_precision
from star.system.runtime import keep_freed_memory, stay_offline
from star.training.trainer import Trainer


def phase(params: Params, layers: int, device: torch.device) -> Trainer:
    """Return a trainer whose epoch is one rollout-and-update phase of one group."""
    torch.manual_seed(0)
    transformer = random_transformer(
        layers, positions=64
    )  # SD3.5-M's 384 would only make loading larger than training
    pipe = random_pipeline(params.model.path, transformer, random_vae(tiny=True))
    return random_trainer(params, params.allocation, pipe, device)


def peak_memory(method: str, arguments: list[str]) -> dict[str, float]:
    """Return ``loaded`` and ``peak`` memory of a process that runs two phases of ``method``.

    Both are bytes.
    """
    command = [sys.executable, "-m", "benchmarks.overhead", *arguments, "--peak", method]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--layers", type=int, help="default: 2 on a CPU, 24 on a GPU")
    parser.add_argument(
        "--peak", metavar="METHOD", help="only print the peak memory of a method's phases, in bytes"
    )
    parser.add_argument("--group", type=int, help="images; default: 2 on a CPU, 8 on a GPU")
    options = parser.parse_args()
    stay_offline()
    if not options.peak:  # a heap that keeps what is freed would hide what is in use
        keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.type == "cuda"
    torch.set_num_threads(
        1
    )  # on a CPU: two threads wait for each other, by more than is measured here
    layers, group = options.layers or (LAYERS if gpu else 2), options.group or (8 if gpu else 2)
    params = load_params(options.params)
    precision: Any = resolve_precision("auto", device)
    params = dataclasses.replace(
        params,
        model=dataclasses.replace(
            params.model, resolution=512, t5_tokens=T5_TOKENS, precision=precision
        ),
        rollout=dataclasses.replace(
            params.rollout, steps=3, window=[0, 2], same_latent=False, batch=group
        ),
        allocation=dataclasses.replace(params.allocation, blocks="all"),
        train=dataclasses.replace(
            params.train, prompts_per_epoch=1, group_size=group, updates_per_epoch=1, kl_form="none"
        ),
        prompts=dataclasses.replace(
            params.prompts, geneval=dataclasses.replace(params.prompts.geneval, train=4)
        ),
    )
    run = phase(params, layers, device)

    def epoch(method: str) -> None:
        run.allocate(params.with_method(method).allocation)
        run.train_epoch()
        if gpu:
            torch.cuda.synchronize()

    if options.peak:

        def two_epochs() -> None:
            epoch(options.peak)
            epoch(options.peak)

        print(json.dumps(measure_peak(two_epochs, gpu)))
        return
    arguments = ["--params", str(options.params), "--layers", str(layers), "--group", str(group)]
    figures = {
        "machine": machine(),
        "precision": precision,
        "layers": layers,
        "images": group,
        "attention": run.policy.attention_kernel,
        "core_tokens": int(run.credit.core_keys(run.records, clause_wise=False).index.shape[1]),
        "operations": operations(lambda: epoch("star")) / operations(lambda: epoch("flow_grpo")),
        "time": paired(
            lambda: seconds(lambda: epoch("star")),
            lambda: seconds(lambda: epoch("flow_grpo")),
            options.pairs,
        ),
    }
    if gpu:
        figures["star"] = use_of_card(run, group)
    run.policy.transformer.to("meta")  # the processes that are measured need the memory
    figures["memory"] = memory(arguments, pairs=10)
    print(json.dumps(figures, indent=1))


def memory(arguments: list[str], pairs: int) -> dict[str, dict[str, float]]:
    """Return the bytes of both methods' processes, and the ratio of their peaks."""
    shown = tqdm(range(pairs), desc="memory", unit="pair", leave=False)
    found = [{name: peak_memory(name, arguments) for name in ("star", "flow_grpo")} for _ in shown]
    return {
        "peak_ratio": spread([pair["star"]["peak"] / pair["flow_grpo"]["peak"] for pair in found]),
        **found[0],
    }


def operations(work: Callable[[], None]) -> int:
    """Count the additions and multiplications of matrix products and attention, free of noise."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


if __name__ == "__main__":
    main()
