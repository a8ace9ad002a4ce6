"""What tests of the policy and of trainings share: small parameters, prompts, rewards, a policy.

A pipeline is opened once a process, and a test gets copies of what it may change. Trainings have
two of the miniature's eight blocks, since what they learn does not matter.
"""

import atexit
import copy
import dataclasses
import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

from star.config.params import ModelParams, Params
from star.config.reading import load_params
from star.method.attention import CoreKeys
from star.method.precision import resolve_precision
from star.policy.loading import open_pipeline
from star.policy.sd3 import SD3Policy
from star.prompts.core_content import extract_core
from star.prompts.prepare import prepare
from star.prompts.records import PromptRecord
from star.rewards.base import RewardError, RewardResult, finished
from star.training.credit import Scored
from star.training.trainer import LogLine, Trainer

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
PROMPTS = ["a photo of a red car", 'a sign that says "STAR"']
TIMES = ("seconds", "images_per_s")  # of a log line: what differs between two equal epochs


def changed(params: Params, **sections: Any) -> Params:
    """Return parameters with other values: ``changed(params, seed=1, train={"epochs": 2})``."""
    new = {
        name: dataclasses.replace(getattr(params, name), **value)
        if dataclasses.is_dataclass(getattr(params, name))
        else value
        for name, value in sections.items()
    }
    return dataclasses.replace(params, **new)


# Methods that train as long, and by the algorithm, that a test says.
METHODS = {
    "star": {"source": "attention", "objective": "local"},
    "flow_grpo": {"source": "uniform", "objective": "scalar"},
}
BASE = changed(load_params(ROOT / "params.yaml"), methods=METHODS)
EXACT = dataclasses.replace(BASE.model, path=str(ROOT / "models/miniature"), precision="no")

# -- policies --------------------------------------------------------------------------------------


@functools.cache
def _opened(path: str) -> StableDiffusion3Pipeline:
    return open_pipeline(Path(path), EXACT, torch.float32)


def policy_of(model: ModelParams = EXACT, **changes: Any) -> SD3Policy:
    """Return what `load_policy` returns; the text encoders alone are shared with other tests."""
    model = dataclasses.replace(model, **changes)
    model = dataclasses.replace(model, precision=resolve_precision(model.precision, CPU))
    parts = dict(_opened(model.path).components)
    parts |= {name: copy.deepcopy(parts[name]) for name in ("transformer", "vae")}
    return SD3Policy(StableDiffusion3Pipeline(**parts), model, CPU)


def core_keys(policy: SD3Policy, weights: bool = False) -> Any:
    """Return core tokens 3 to 5 of two prompts, as keys or as their weights."""
    given = torch.zeros(2, 1, sum(policy.text_lengths))
    given[:, :, 3:6] = 1
    return given if weights else CoreKeys.from_weights(given)


def stock_images(steps: int, guidance: float = 1.0, adapter: Path | None = None) -> np.ndarray:
    """Return what diffusers' own pipeline draws of `PROMPTS` from the noise of seeds 1 and 2."""
    pipe = StableDiffusion3Pipeline.from_pretrained(EXACT.path, dtype=torch.float32)
    if adapter is not None:
        pipe.load_lora_weights(adapter)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(
        PROMPTS,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=policy_of().noise([1, 2]),
        height=EXACT.resolution,
        width=EXACT.resolution,
        max_sequence_length=EXACT.t5_tokens,
        output_type="np",
    ).images
    return (images * 255).round().astype(np.uint8)


def assert_same_images(ours: np.ndarray, stock: np.ndarray) -> None:
    """Allow single grey levels where the two attention kernels round a tie differently."""
    difference = np.abs(ours.astype(int) - stock.astype(int))
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


@functools.cache
def short_model(*middle: int) -> str:
    """Return the folder of the miniature with its first and last block, and those of ``middle``."""
    folder = Path(tempfile.mkdtemp(prefix="star-short-"))
    atexit.register(shutil.rmtree, folder)
    whole = _opened(EXACT.path).transformer
    kept = [0, *middle, whole.config.num_layers - 1]
    dual = [new for new, old in enumerate(kept) if old in whole.config.dual_attention_layers]
    short = SD3Transformer2DModel.from_config(
        {**whole.config, "num_layers": len(kept), "dual_attention_layers": dual}
    )
    blocks = torch.nn.ModuleList(whole.transformer_blocks[old] for old in kept)
    weights = {k: v for k, v in whole.state_dict().items() if "transformer_blocks." not in k}
    short.load_state_dict(weights | blocks.state_dict(prefix="transformer_blocks."))
    short.save_pretrained(folder / "transformer")
    for part in Path(EXACT.path).iterdir():
        if part.name != "transformer":
            (folder / part.name).symlink_to(part)
    return str(folder)


# -- trainings -------------------------------------------------------------------------------------


# `forward` of a small training: as the trial that chose AWM's defaults, and as NFT's paper.
FORWARD: dict[str, dict[str, Any]] = {
    "flow_grpo": {},
    "awm": {"draws": 3, "anchor_to": "ema", "anchor_decay": 0.3},
    "nft": {
        **{"solver": "dpm2m", "draws": 2, "levels": "steps", "shared_noise": False},
        **{"anchor": 1e-4, "anchor_to": "base", "nft_beta": 0.1, "old_rate": 0.2},
    },
}


def small(algorithm: str = "flow_grpo", **sections: Any) -> Params:
    """Return parameters of a training of seconds, in float32: two epochs of four groups of four."""
    train = {"algorithm": algorithm, "epochs": 2, "prompts_per_epoch": 4, "group_size": 4}
    train |= {"updates_per_epoch": 2}
    train |= {"sample_every": 1, "save_every": 1, "tracker": "none", "learning_rate": 1e-2}
    train["evaluate_every"] = 0
    defaults = {
        "model": {"path": short_model(), "precision": "no", "resolution": 32},
        "rollout": {"steps": 3, "window": [0, 2], "batch": 8},
        "allocation": {"blocks": "all"},
        "train": train,
        "forward": FORWARD[algorithm],
    }
    given = {
        name: {**defaults.get(name, {}), **value} if isinstance(value, dict) else value
        for name, value in sections.items()
    }
    return changed(BASE, **{**defaults, **given})


@functools.cache
def geneval_records(count: int = 32) -> tuple[PromptRecord, ...]:
    """Return training prompts of GenEval with their core."""
    source = dataclasses.replace(BASE.prompts.geneval, train=count, test=6)
    params = changed(BASE, prompts={"geneval": source})
    made = prepare("geneval", params.prompts, params.seed)[0]
    return tuple(dataclasses.replace(record, core=extract_core(record)) for record in made)


def redness(images: np.ndarray) -> np.ndarray:
    """Return red minus blue of each pixel: a score that varies on any base model."""
    return (images[..., 0].astype(np.float32) - images[..., 2]) / 255


class Redness:
    """The mean redness of images; ``wrong`` maps the number of a call to what goes wrong then."""

    name = "redness"

    def __init__(self, wrong: dict[int, str] | None = None) -> None:
        self.calls, self.wrong = 0, wrong or {}

    def submit(self, images, records):
        self.calls += 1
        scores = redness(images).mean((1, 2))
        if self.wrong.get(self.calls) == "raises":
            raise RewardError(f"{records[5].id}: the reader failed")
        if self.wrong.get(self.calls) == "nan":
            scores[2] = np.nan
        return finished(RewardResult(scores, [{} for _ in records]))

    def close(self) -> None:
        pass


class Clauses(Redness):
    """Redness with shares of two clauses: the left and the right half of the image."""

    def submit(self, images, records):
        halves = np.split(redness(images), 2, axis=2)
        shares = np.stack([half.mean((1, 2)) / 2 for half in halves], axis=1)
        pairs = zip(shares, records, strict=True)
        of_each = [s if len(r.metadata["include"]) == 2 else s.sum(keepdims=True) for s, r in pairs]
        return finished(RewardResult(shares.sum(1), [{} for _ in records], of_each))


def trainer(params=None, method="star", records=None, reward=None, **allocation) -> Trainer:
    """Return a trainer with a policy of its own; keywords change the method's allocation."""
    params = params or small()
    how = dataclasses.replace(params.with_method(method).allocation, **allocation)
    records = list(records or geneval_records())
    return Trainer(params, how, records, reward or Redness(), policy_of(params.model))


def scored(run: Trainer) -> list[Scored]:
    """Return an epoch up to its update."""
    planned = run.plan.batches(run.epoch)
    trajectories = [run.sample(batch) for batch in planned]
    drawn = zip(trajectories, planned, strict=True)
    results = [run.reward.submit(t.images, b.records).result() for t, b in drawn]
    return run.credit.weigh(run.epoch, planned, trajectories, results)


def push(run: Trainer) -> None:
    """Move the adapter at random: a policy that is neither the base nor the one before."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in run.parameters:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def adapter_bytes(run: Trainer) -> list[bytes]:
    """Return the adapter and its average to the bit."""
    return [p.detach().numpy().tobytes() for p in (*run.parameters, *run.average.values)]


def raising(error: BaseException) -> Callable[..., Any]:
    """Return a function that raises the error, whatever it is called with."""

    def inner(*arguments, **options):
        raise error

    return inner


def timeless(line: LogLine | dict) -> dict[str, Any]:
    """Return a line of the log without its times."""
    line = line if isinstance(line, dict) else dataclasses.asdict(line)
    return {key: value for key, value in line.items() if key not in TIMES}
