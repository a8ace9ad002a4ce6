"""Run the program at SD3.5-M's full size on the pretended device, and count what it does there.

    python -m benchmarks.on_card > benchmarks/figures/on_card.json

It is the product's own code by the recipe of `presets/sd35m-1gpu-geneval.yaml`, in few steps:
opened, prompts encoded, an epoch trained, a sample grid and held-out images drawn, images scored.
Nothing has numbers, so nothing is measured in seconds. Counted are operators that launch kernels,
bytes that they read and write, reads and copies of the host by where they are, and live bytes by
phase beside those of `star plan`. Attention is CUDA's flash kernel, by its shapes.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline

from benchmarks.pretended import Card, Counts, register
from star.config.params import Params
from star.config.reading import load_params
from star.doctor.random_weights import CLIP_TOKENS, LAYERS, Free, random_transformer
from star.method.attention import LOG_SUM_EXP_KERNELS
from star.method.precision import AUTOCAST_DTYPES
from star.plan.configs import SD35_MEDIUM, known_models, reward_configs
from star.plan.memory import MemoryEstimate
from star.plan.models import build_pipeline, build_reward_model
from star.plan.reward_models import Scorer, read_scorer
from star.policy import loading, sd3
from star.prompts.core_content import with_core
from star.prompts.prepare import prepare
from star.rewards import clip, mask2former
from star.rewards.geneval import GenevalReward
from star.rewards.preference import PreferenceReward
from star.system.runtime import stay_offline
from star.training.held_out import HeldOut
from star.training.loop import _draw as draw_sheet
from star.training.trainer import Trainer

PRESET = Path("presets/sd35m-1gpu-geneval.yaml")
SMALL = "models/miniature"  # whose tokenizers and scheduler serve here
CLIP_SIDE = 224  # pixels that both CLIP models see
STEPS = 2  # of a rollout; the first is trained
PLANNED = ("encoding prompts", "denoising", "decoding", "update", "sample grid")
EPOCH = ("preparing", "denoising", "decoding", "weighing", "update", "optimizer step", "rest")


@dataclass(frozen=True)
class Case:
    """A training: ``batches`` of rollouts an epoch, one optimizer step."""

    algorithm: str = "flow_grpo"
    method: str = "star"
    batches: int = 1
    layers: int = LAYERS
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def params(self, cache: str) -> Params:
        """Return the preset's parameters for this case."""
        params = load_params(PRESET)
        sections: dict[str, dict[str, Any]] = {
            "model": {"path": SMALL, "prompt_cache": cache, **self.model},
            "rollout": {"steps": STEPS, "window": [0, STEPS - 1]},
            "forward": {"draws": STEPS - 1},
            "train": {
                **{"algorithm": self.algorithm, "prompts_per_epoch": self.batches, "epochs": 1},
                **{"updates_per_epoch": 1, "ema_every": 1, "evaluate_prompts": 8},
            },
            "prompts": {
                task: dataclasses.replace(
                    getattr(params.prompts, task), train=16, test=8, train_file=None, test_file=None
                )
                for task in ("geneval", "ocr", "preference")
            },
        }
        changed = {
            name: dataclasses.replace(getattr(params, name), **values)
            for name, values in sections.items()
        }
        return dataclasses.replace(params, **changed).with_method(self.method)


CASES = {
    "flow_grpo, star": Case(),
    "flow_grpo, uniform": Case(method="flow_grpo"),
    "awm, star": Case("awm"),
    "awm, uniform": Case("awm", "flow_grpo"),
    "nft, star": Case("nft"),
    "nft, uniform": Case("nft", "flow_grpo"),
    "no checkpointing": Case(model={"gradient_checkpointing": False, "vae_slicing": False}),
}


# -- models without numbers ------------------------------------------------------------------------


def emptied(card: Card, model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """Give a model of the meta device weights on the CPU, which have no numbers either."""

    def empty(x: torch.Tensor) -> torch.Tensor:
        return card.tensor(x.shape, dtype if x.is_floating_point() else x.dtype)

    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = torch.nn.Parameter(empty(weight), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = empty(buffer)
    return model.eval()


@contextmanager
def without_weights(card: Card, params: Params, layers: int) -> Iterator[None]:
    """Make the program open SD3.5-M's parts and the reward models without a file of weights."""
    configs = known_models()
    parts = build_pipeline(configs[SD35_MEDIUM], params.model)
    with torch.device("meta"):
        transformer = random_transformer(layers)
    built = {"transformer": transformer, "vae": parts.vae}
    names = "text_encoder", "text_encoder_2", "text_encoder_3"
    built |= dict(zip(names, parts.encoders, strict=True))

    def part(folder: Path, name: str, path: str, dtype: torch.dtype) -> torch.nn.Module:
        half = AUTOCAST_DTYPES[params.model.precision]  # of the text encoders on a GPU
        return emptied(card, built[name], half if "text" in name else dtype)

    def assembled(*arguments: Any) -> StableDiffusion3Pipeline:
        pipe = inner(*arguments)
        pipe.tokenizer.model_max_length = pipe.tokenizer_2.model_max_length = CLIP_TOKENS
        pipe.tokenizer_max_length = CLIP_TOKENS
        return pipe

    def reward_model(kind: type, path: str, *rest: object) -> torch.nn.Module:
        return emptied(card, build_reward_model(configs[path], path), torch.float32)

    processor = clip._open_processor("models/miniature-preference", None, "")
    processor.image_processor.size = {"shortest_edge": CLIP_SIDE}
    processor.image_processor.crop_size = {"height": CLIP_SIDE, "width": CLIP_SIDE}
    inner, flash = loading._assembled, LOG_SUM_EXP_KERNELS["cuda"]["flash"]
    with ExitStack() as stack:
        for owner, name, other in (
            (loading, "_open_part", part),
            (loading, "_assembled", assembled),
            (sd3, "base_fingerprint", lambda _: "no numbers"),
            (sd3, "choose_kernel", lambda *_: ("flash", flash)),
            (clip, "open_model", reward_model),
            (mask2former, "open_model", reward_model),
            (clip, "_open_processor", lambda *_: processor),
            (mask2former, "find_models", lambda given: (given.path, given.color_path)),
        ):
            stack.enter_context(mock.patch.object(owner, name, other))
        yield


# -- what is run -----------------------------------------------------------------------------------


@contextmanager
def phases(card: Card, named: Sequence[tuple[Any, str, str]]) -> Iterator[None]:
    """Count methods as phases of their own: (owner, name, phase)."""

    def apart(work: Callable, phase: str) -> Callable:
        def inner(*arguments: Any, **options: Any) -> Any:
            with card.phase(phase):
                return work(*arguments, **options)

        return inner

    with ExitStack() as stack:
        for owner, name, phase in named:
            work = apart(getattr(owner, name), phase)
            stack.enter_context(mock.patch.object(owner, name, work))
        yield


def train(card: Card, case: Case, work: Path) -> Params:
    """Run a case from its opening to its held-out images, each phase counted."""
    params = case.params(str(work / "prompts"))
    with without_weights(card, params, case.layers), card.phase("opening"):
        policy = sd3.load_policy(params.model, register())
        records = with_core(prepare("geneval", params.prompts, params.seed)[0])
        run = Trainer(params, params.allocation, records, Free(), policy)
    with card.phase("encoding prompts"):
        policy.prepare_prompts([record.prompt for record in records])
    held_out = HeldOut.of(run, records[: params.train.evaluate_prompts])
    named = (
        (run, "prepare", "preparing"),
        (run, "sample", "denoising"),
        (policy, "decode", "decoding"),
        (run.credit, "weigh", "weighing"),
        (run, "update", "update"),
        (run, "step", "optimizer step"),
        (held_out.drawer, "draw", "evaluation"),
    )
    with phases(card, named):
        with card.phase("rest"):
            run.train_epoch()
        with card.phase("score of held-out images"):
            held_out.mean()
    with card.phase("state"):
        run.state()
    with card.phase("sample grid"):
        draw_sheet(run, work, None)
    return params


def score(card: Card) -> dict[str, Scorer]:
    """Score a batch by Mask2Former with CLIP's colours, and by PickScore; return what is planned.

    No object is found among zeros, so the colours are asked apart.
    """
    params, device = Case().params("none"), register()
    side, count, rewards = params.model.resolution, params.rollout.batch, params.rewards
    records = with_core(prepare("geneval", params.prompts, params.seed)[0])[:count]
    images = np.zeros((count, side, side, 3), np.uint8)
    planned = {}
    with without_weights(card, params, 1):
        with card.phase("opening PickScore"):
            preference = PreferenceReward(rewards.preference, device)
        with card.phase("PickScore"):
            preference.submit(images, records).result()
        del preference
        with card.phase("opening Mask2Former"):
            detector = mask2former.Mask2FormerDetector(rewards.geneval, device)
        with card.phase("Mask2Former"):
            GenevalReward(detector, rewards.geneval).submit(images, records).result()
        with card.phase("colours"):
            detector._colors.similarities(list(images), ["dog"] * count)
    for task, name in (("preference", "PickScore"), ("geneval", "Mask2Former")):
        models = {
            path: build_reward_model(c, path)
            for path, c in reward_configs(rewards, task).items()
            if c
        }
        planned[name] = read_scorer(rewards, models, count)
    return planned


# -- what it comes to ------------------------------------------------------------------------------


def planned_bytes(case: Case, params: Params) -> dict[str, int]:
    """Return `star plan`'s bytes of each phase, with what stays."""
    configs = dict(known_models()[SD35_MEDIUM])
    with torch.device("meta"):
        configs["transformer"] = dict(random_transformer(case.layers).config)
    estimate = MemoryEstimate(params, build_pipeline(configs, params.model), "cuda")
    memory = estimate.training("geneval", params, Scorer(0, 0), 1)
    return {phase: sum(memory.resident.values()) + memory.phases[phase] for phase in PLANNED}


def work(counts: Counts, steps: int) -> dict[str, float]:
    """Return operators and GiB moved of one of ``steps``."""
    return {"operators": counts.operators / steps, "GiB_moved": counts.moved / steps / 2**30}


def compared(counted: int, planned: int) -> dict[str, float]:
    return {"counted": counted, "planned": planned, "ratio": round(planned / counted, 4)}


def measure(case: Case) -> dict[str, Any]:
    """Return the figures of one training."""
    with Card() as card, tempfile.TemporaryDirectory() as cache:
        params = train(card, case, Path(cache))
    found, planned = card.phases, planned_bytes(case, params)
    rollouts, epoch = case.batches * STEPS, [found[name] for name in EPOCH]
    return {
        "rollout_step": work(found["denoising"], rollouts),
        "update_step": work(found["update"], case.batches * (STEPS - 1)),
        "evaluation_step": work(found["evaluation"], STEPS),
        "optimizer_step": work(found["optimizer step"], 1),
        "decoding": work(found["decoding"], case.batches + 1),
        "memory": {name: compared(found[name].peak, planned[name]) for name in PLANNED},
        "reads": dict(sum((each.reads for each in epoch), Counter())),
        "copies": dict(sum((each.copies for each in epoch), Counter())),
        "reads_of_a_state": sum(found["state"].reads.values()),
    }


def measure_scoring() -> dict[str, Any]:
    """Return the figures of the networks that score a batch."""
    with Card() as card:
        planned = score(card)
    figures = {}
    for name in ("PickScore", "Mask2Former", "colours"):
        counts = card.phases[name]
        figures[name] = {
            **work(counts, 1),
            "reads": dict(counts.reads),
            "copies": dict(counts.copies),
        }
    for name, scorer in planned.items():
        whole = scorer.resident + scorer.scoring
        figures[name]["memory"] = compared(card.phases[name].peak, whole)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, default=1, help="of an epoch")
    parser.add_argument("--layers", type=int, default=LAYERS, help="of the transformer")
    parser.add_argument(
        "--only", nargs="*", choices=[*CASES, "scoring"], default=[*CASES, "scoring"]
    )
    options = parser.parse_args()
    stay_offline()
    register()
    figures: dict[str, Any] = {"torch": torch.__version__, "layers": options.layers}
    figures["batches"] = options.batches
    for name in options.only:
        if name == "scoring":
            figures[name] = measure_scoring()
            continue
        case = dataclasses.replace(CASES[name], batches=options.batches, layers=options.layers)
        figures[name] = measure(case)
        print(name, {k: v["ratio"] for k, v in figures[name]["memory"].items()}, file=sys.stderr)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
