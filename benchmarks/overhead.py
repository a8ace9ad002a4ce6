"""What STAR costs at the size of SD3.5 Medium: ``python -m benchmarks.overhead > benchmarks/figures/overhead.json``.

One rollout-and-update phase of a group with SD3.5-M's own block shapes (24 heads of 64, 1,024 image tokens of a picture
of 512 pixels, 77 + 128 text tokens) and random weights, allocation by attention against the uniform one, on one model,
interleaved in one process: ratios of wall time and of peak memory, medians over pairs with the smallest and largest. On
the CPU a few layers stand for the 24, every one of them is read, and there is no guidance: each makes STAR's share
larger than it is in training. On a GPU: all 24 layers, and also pictures/s and the share of the card's own bf16 matrix
rate that the update reaches.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed import Free, paired, seconds
from star.conditioning import Conditioning
from star.core import extract_core
from star.epoch import plan_epoch
from star.params import Params, load_params
from star.policy import SD3Policy
from star.prompts.prepare import prepare
from star.runtime import keep_freed_memory, stay_offline
from star.trainer import Trainer

LAYERS, CLIP_TOKENS, T5_TOKENS = 24, 77, 128
MATRIX = 8192  # side of the matrices whose product gives a card's own rate


def sd35_policy(params: Params, layers: int, device: torch.device) -> SD3Policy:
    """A policy with SD3.5-M's transformer cut to ``layers`` blocks and random weights.

    Text comes as random embeddings, tokenised by the miniature's tokenizers; the VAE is a small one of the same latent.
    """
    torch.manual_seed(0)
    pipe = StableDiffusion3Pipeline.from_pretrained(params.model.path, dtype=torch.float32)
    transformer = SD3Transformer2DModel(
        sample_size=128,
        patch_size=2,
        in_channels=16,
        num_layers=layers,
        attention_head_dim=64,
        num_attention_heads=24,
        joint_attention_dim=4096,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
        out_channels=16,
        pos_embed_max_size=64,  # SD3.5-M's 384 would only make loading larger than training
        dual_attention_layers=tuple(range(min(13, layers))),
        qk_norm="rms_norm",
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 16, 16, 16),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=16,
        mid_block_add_attention=False,
        shift_factor=0.0609,
        scaling_factor=1.5305,
    )
    pipe.tokenizer.model_max_length = pipe.tokenizer_2.model_max_length = CLIP_TOKENS
    parts = {name: part for name, part in pipe.components.items() if name not in ("transformer", "vae")}
    return SD3Policy(StableDiffusion3Pipeline(**parts, transformer=transformer, vae=vae).to(device), params.model)


def phase(params: Params, layers: int, device: torch.device) -> Trainer:
    """A trainer whose epoch is one rollout-and-update phase of one group."""
    records = [dataclasses.replace(r, core=extract_core(r)) for r in prepare("geneval", params)[0]]
    policy = sd35_policy(params, layers, device)
    generator = torch.Generator().manual_seed(0)
    for record in records:
        embeds = torch.randn(CLIP_TOKENS + T5_TOKENS, 4096, generator=generator)
        pooled = torch.randn(2048, generator=generator)
        policy.prompts.keep(record.prompt, Conditioning(embeds.to(device), pooled.to(device)))
    return Trainer(params, params.allocation, records, Free(), policy)


def peak_memory(method: str, arguments: list[str]) -> dict[str, float]:
    """``loaded`` and ``peak`` memory, in bytes, of a process of its own that runs two phases of ``method``."""
    command = [sys.executable, "-m", "benchmarks.overhead", *arguments, "--peak", method]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_peak(work: Callable[[], object], gpu: bool) -> dict[str, float]:
    """Memory of this process now and at its highest during ``work``, in bytes: on a GPU its allocator's.

    The kernel's high-water mark is set back first, or it would show the loading of the model.
    """
    if gpu:
        loaded = float(torch.cuda.memory_allocated())
        torch.cuda.reset_peak_memory_stats()
        work()
        return {"loaded": loaded, "peak": float(torch.cuda.max_memory_allocated())}
    Path("/proc/self/clear_refs").write_text("5")
    loaded = resident("VmRSS")
    work()
    return {"loaded": loaded, "peak": resident("VmHWM")}


def resident(field: str) -> float:
    """A field of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(field))) * 1024


def matrix_rate(device: torch.device) -> float:
    """bf16 multiply-adds of a large product, counted as two operations: operations/s."""
    a, b = torch.randn(2, MATRIX, MATRIX, device=device, dtype=torch.bfloat16)
    best = min(seconds(lambda: (a @ b, torch.cuda.synchronize())) for _ in range(20))
    return 2 * MATRIX**3 / best


def use_of_card(run: Trainer, images: int) -> dict[str, float]:
    """Pictures/s of rollout and update, and the share of the card's own matrix rate in the update."""
    lines = [run.train_epoch() for _ in range(4)][1:]
    rollout, update = (min(line["seconds"][name] for line in lines) for name in ("rollout", "update"))
    with FlopCounterMode(display=False) as all_operations:
        run.train_epoch()
    with FlopCounterMode(display=False) as of_rollout:
        run.sample(plan_epoch(run.records, run.params, run.epoch)[0])
    operations = all_operations.get_total_flops() - of_rollout.get_total_flops()
    share = operations / update / matrix_rate(run.policy.device)
    return {"rollout_images_per_s": images / rollout, "update_images_per_s": images / update, "matrix_share": share}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--layers", type=int, help="default: 2 on a CPU, 24 on a GPU")
    parser.add_argument("--peak", metavar="METHOD", help="only print the peak memory of a method's phases, in bytes")
    parser.add_argument("--group", type=int, help="pictures; default: 2 on a CPU, 8 on a GPU")
    options = parser.parse_args()
    stay_offline()
    if not options.peak:  # a heap that keeps what is freed would hide what is in use
        keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.type == "cuda"
    layers, group = options.layers or (LAYERS if gpu else 2), options.group or (8 if gpu else 2)
    params = load_params(options.params)
    params = dataclasses.replace(
        params,
        model=dataclasses.replace(params.model, resolution=512, t5_tokens=T5_TOKENS, precision="bf16"),
        rollout=dataclasses.replace(params.rollout, steps=3, window=[0, 2], same_latent=False, batch=group),
        allocation=dataclasses.replace(params.allocation, blocks="all"),
        train=dataclasses.replace(
            params.train, prompts_per_epoch=1, group_size=group, updates_per_epoch=1, kl_form="none"
        ),
        prompts=dataclasses.replace(params.prompts, geneval=dataclasses.replace(params.prompts.geneval, train=4)),
    )
    run = phase(params, layers, device)

    def epoch(method: str) -> None:
        run.allocate(params.method(method))
        run.train_epoch()
        if gpu:
            torch.cuda.synchronize()

    if options.peak:
        print(json.dumps(measure_peak(lambda: (epoch(options.peak), epoch(options.peak)), gpu)))
        return
    machine = torch.cuda.get_device_name() if gpu else f"{platform.machine()}, {os.cpu_count()} cores, no accelerator"
    arguments = ["--params", str(options.params), "--layers", str(layers), "--group", str(group)]
    figures = {
        "machine": f"{machine}, torch {torch.__version__}",
        "layers": layers,
        "pictures": group,
        "attention": run.policy.attention_kernel,
        "core_tokens": int(run.core_keys(run.records, clause_wise=False).index.shape[1]),
        **ratios(lambda: epoch("star"), lambda: epoch("flow_grpo"), options.pairs),
    }
    if gpu:
        figures["star"] = use_of_card(run, group)
    run.policy.transformer.to("meta")  # the processes that are measured need the memory
    figures["memory"] = memory(arguments, pairs=3)
    print(json.dumps(figures, indent=1))


def memory(arguments: list[str], pairs: int) -> dict[str, dict[str, float]]:
    """Bytes of both methods' processes, and the ratio of their peaks."""
    found = [{name: peak_memory(name, arguments) for name in ("star", "flow_grpo")} for _ in range(pairs)]
    ratios = [pair["star"]["peak"] / pair["flow_grpo"]["peak"] for pair in found]
    spread = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios), "pairs": pairs}
    return {"peak_ratio": spread, **found[0]}


def ratios(first: Callable[[], None], second: Callable[[], None], pairs: int) -> dict[str, dict[str, float]]:
    """Ratios of wall time and of processor time (steadier on a shared machine) of the two, run alternately."""
    processor: list[float] = []

    def wall(work: Callable[[], None]) -> float:
        start = time.process_time()
        elapsed = seconds(work)
        processor.append(time.process_time() - start)
        return elapsed

    by_wall = paired(lambda: wall(first), lambda: wall(second), pairs)
    of_pairs = [a / b for a, b in zip(processor[2::2], processor[3::2], strict=True)]  # the first pair does not count
    by_processor = {"median": statistics.median(of_pairs), "min": min(of_pairs), "max": max(of_pairs), "pairs": pairs}
    return {"time": by_wall, "processor_time": by_processor}


if __name__ == "__main__":
    main()
