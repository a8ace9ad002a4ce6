"""Pretraining of a synthetic stand-in for a preference model: a small CLIP model on the miniature's
world.

It is taught three things at once: which caption of a batch belongs to an image (CLIP's loss), that
the right caption scores above wrong ones that differ in one fact, and that the better of two
images scores above the worse one under the same caption (logistic loss of the score difference,
as preference models are trained on pairs, arXiv 2305.01569). A linear head that names the scene's
attributes speeds up the image tower and is thrown away.

Every batch is drawn from a generator seeded by (seed, step): a resumed run continues exactly.
"""

import math
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy, normalize, softplus
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

from star.method.precision import autocast
from star.miniature import world
from star.pretraining.loop import append_log, forget_log_after, rate_factor, split_optimizers
from star.pretraining.preference_card import pair_accuracy, write_card
from star.pretraining.preference_pairs import (
    ATTRIBUTE_SIZES,
    IGNORED,
    PairBatch,
    sample_pairs,
)
from star.pretraining.tokenizers import CLIP_LENGTH, save_clip_tokenizer
from star.system.progress import Progress
from star.training.checkpoint import load_state, optimizer_tensors, restore_optimizer, save_state

LOGIT_SCALE = (
    30.0  # exp(logit_scale), fixed: scores of unlike pairs about 12, of good images above 20
)
UNLIKE_SCORE = 12.0


@dataclass(frozen=True)
class PreferenceConfig:
    """Sizes and lengths of the pretraining; ``steps`` count batches."""

    seed: int = 0
    steps: int = 1600
    batch: int = 96  # images; half of them with a worse version beside them
    wrong: int = 3  # wrong captions an image
    mild_share: float = 0.3  # of pairs whose better image is itself mildly corrupted
    learning_rate: float = 2e-3
    warmup: int = 100
    decay_share: float = 0.5  # share of the steps over which the rate falls linearly to zero
    width: int = 128
    vision_layers: int = 4
    text_layers: int = 2
    save_every: int = 250
    log_every: int = 25
    held_out: int = 600  # pairs a kind


def pretrain_preference(output: Path, work: Path, config: PreferenceConfig) -> None:
    """Train the stand-in, write the `CLIPModel` directory ``output`` with its card; state and log
    lie in ``work``."""
    work.mkdir(parents=True, exist_ok=True)
    processor = _new_processor(work)
    model = _new_model(processor.tokenizer, config)
    _train(model, processor, work, config)
    model.half().save_pretrained(output)
    processor.save_pretrained(output)
    shutil.copyfile(work / "log.jsonl", output / "log.jsonl")
    write_card(output, pair_accuracy(output, config.held_out, config.seed), asdict(config))


# ---------------------------------------------------------------- model


def _new_processor(work: Path) -> CLIPProcessor:
    if not (
        work / "tokenizer"
    ).exists():  # never a new vocabulary under weights that a resume reads
        save_clip_tokenizer(work / "tokenizer")
    side = world.SIZE
    images = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    return CLIPProcessor(
        image_processor=images, tokenizer=CLIPTokenizer.from_pretrained(work / "tokenizer")
    )


def _new_model(tokenizer: CLIPTokenizer, config: PreferenceConfig) -> CLIPModel:
    torch.manual_seed(config.seed)
    tower = {
        "hidden_size": config.width,
        "intermediate_size": 3 * config.width,
        "num_attention_heads": config.width // 32,
        "hidden_act": "gelu",
    }
    text = tower | {
        "num_hidden_layers": config.text_layers,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": CLIP_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = tower | {
        "num_hidden_layers": config.vision_layers,
        "image_size": world.SIZE,
        "patch_size": 8,
    }
    model = CLIPModel(
        CLIPConfig(
            text_config=text,
            vision_config=vision,
            projection_dim=config.width,
            logit_scale_init_value=math.log(LOGIT_SCALE),
        )
    )
    model.logit_scale.requires_grad_(False)
    model.set_attn_implementation(
        "eager"
    )  # torch's fused CPU attention is 6x slower backward in bf16 at 65 tokens
    return model


# ---------------------------------------------------------------- training


def _train(
    model: CLIPModel, processor: CLIPProcessor, work: Path, config: PreferenceConfig
) -> None:
    head = torch.nn.Linear(config.width, sum(ATTRIBUTE_SIZES))
    modules = torch.nn.ModuleDict({"clip": model, "head": head}).train()
    muon, adamw = split_optimizers(modules, _is_layer_matrix, config.learning_rate)
    state, first = work / "preference.safetensors", 0
    if state.exists():
        tensors, facts = load_state(state)
        modules.load_state_dict(
            {k[6:]: v for k, v in tensors.items() if k.startswith("model.")}, strict=False
        )
        restore_optimizer(muon, tensors, "muon.")
        restore_optimizer(adamw, tensors, "adamw.")
        first = facts["step"]
        forget_log_after(work, first, "preference")
    bar = Progress(
        range(first, config.steps),
        initial=first,
        total=config.steps,
        desc="preference",
        mininterval=5,
    )
    started, history = time.time(), []
    for step in bar:
        rng = np.random.default_rng([config.seed, 4, step])
        batch = sample_pairs(config.batch, config.wrong, config.mild_share, rng)
        losses = pair_losses(model, head, processor, batch)
        rate = rate_factor(step, config.steps, config.warmup, config.decay_share)
        for optimizer in (muon, adamw):
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * rate
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        muon.step()
        adamw.step()
        history.append([loss.item() for loss in losses.values()])
        if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
            means = dict(zip(losses, np.mean(history, axis=0).round(4).tolist(), strict=True))
            speed = round(config.batch * (step + 1 - first) / (time.time() - started), 1)
            line = {
                "part": "preference",
                "step": step + 1,
                **means,
                "images": config.batch * (step + 1),
            }
            line["images_per_s"] = speed
            append_log(work, line)
            bar.set_postfix(means)
            history = []
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            tensors = {f"model.{k}": v for k, v in modules.named_parameters()}
            tensors |= optimizer_tensors(muon, "muon.") | optimizer_tensors(adamw, "adamw.")
            save_state(state, tensors, {"step": step + 1})
    model.eval()


def pair_losses(
    model: CLIPModel, head: torch.nn.Linear, processor: CLIPProcessor, batch: PairBatch
) -> dict[str, torch.Tensor]:
    """The terms of the loss on one batch; their sum is minimised.

    Args:
        model: in float32; its matrix products run in bfloat16 where the processor has it.
        head: pooled image -> logits of the attributes.
        processor: its mean, deviation and tokenizer are used.
        batch: n images, n // 2 worse ones, n captions, n x k wrong captions.
    """
    size, half = len(batch.better), len(batch.worse)
    pixels = _pixels(np.concatenate([batch.better, batch.worse]), processor)
    texts = batch.captions + [text for texts in batch.wrong for text in texts]
    tokens = processor.tokenizer(
        texts, padding=True, truncation=True, max_length=CLIP_LENGTH, return_tensors="pt"
    )
    with autocast("auto", torch.device("cpu")):
        pooled = model.vision_model(pixel_values=pixels).pooler_output  # (n + n/2, width)
        images = model.visual_projection(pooled)
        captions = model.get_text_features(**tokens).pooler_output  # (n + n k, width)
        attributes = head(pooled[:size])
    scale = model.logit_scale.exp()
    images, captions = normalize(images.float(), dim=-1), normalize(captions.float(), dim=-1)
    better, worse = images[:size], images[size:]
    right, wrong = (
        captions[:size],
        captions[size:].view(size, -1, captions.shape[-1]),
    )  # (n, k, width)

    table = scale * better @ right.T  # (n, n)
    own = table.diagonal()
    own_wrong = scale * torch.einsum("nd,nkd->nk", better, wrong)
    same = np.array(batch.captions)[:, None] == np.array(batch.captions)
    unlike = table.masked_fill(torch.from_numpy(same & ~np.eye(size, dtype=bool)), -math.inf)
    target = torch.arange(size)
    return {
        "contrast": 0.5 * cross_entropy(torch.cat([unlike, own_wrong], 1), target)
        + 0.5 * cross_entropy(unlike.T, target),
        "captions": softplus(own_wrong - own[:, None]).mean(),
        "corrupted": softplus(scale * (worse * right[:half]).sum(-1) - own[:half]).mean(),
        "attributes": 0.5 * _attribute_loss(attributes.float(), torch.from_numpy(batch.attributes)),
        "anchor": 0.01 * (table[~torch.from_numpy(same)].mean() - UNLIKE_SCORE).square(),
    }


def _attribute_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    known = (targets != IGNORED).sum()
    parts = zip(logits.split(ATTRIBUTE_SIZES, dim=1), targets.T, strict=True)
    return (
        sum(cross_entropy(part, t, ignore_index=IGNORED, reduction="sum") for part, t in parts)
        / known
    )


def _pixels(images: np.ndarray, processor: CLIPProcessor) -> torch.Tensor:
    """What the processor makes of uint8 images of the model's own size: float32 (n, 3, 64,
    64)."""
    settings = processor.image_processor
    mean, deviation = (
        torch.tensor(values)[:, None, None] for values in (settings.image_mean, settings.image_std)
    )
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / deviation


def _is_layer_matrix(name: str, parameter: torch.nn.Parameter) -> bool:
    return ".layers." in name and parameter.ndim == 2
