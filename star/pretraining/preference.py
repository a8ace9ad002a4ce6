"""Pretraining of a synthetic stand-in for a preference model: a small CLIP model on the miniature's
world.

It is taught three things together. Which caption of a batch belongs to an image: CLIP's loss. That
the right caption scores above wrong ones that differ in one fact. That the better of two images
scores above the worse one under the same caption. The latter two have a logistic loss of the score
difference, as preference models are trained on pairs (arXiv 2305.01569). A linear head that names
the scene's attributes speeds up the image tower and is thrown away.

Every batch is drawn from a generator seeded by (seed, step): a resumed run continues exactly."""

import math
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy, normalize, softplus
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

from star.method.precision import autocast
from star.miniature import world
from star.pretraining.config import PreferenceConfig
from star.pretraining.loop import train
from star.pretraining.preference_card import pair_accuracy, write_card
from star.pretraining.preference_pairs import ATTRIBUTE_SIZES, IGNORED, PairBatch, sample_pairs
from star.pretraining.tokenizers import CLIP_LENGTH, save_clip_tokenizer

# exp(logit_scale), fixed: scores of unlike pairs are about 12, of good images above 20.
LOGIT_SCALE = 30.0
UNLIKE_SCORE = 12.0


def pretrain_preference(output: Path, work: Path, config: PreferenceConfig) -> None:
    """Train the stand-in and write its `CLIPModel` directory with a card; state and log lie in
    ``work``."""
    work.mkdir(parents=True, exist_ok=True)
    processor = new_processor(work)
    model = new_model(processor.tokenizer, config)
    head = torch.nn.Linear(config.width, sum(ATTRIBUTE_SIZES))

    def losses_of(step: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng([config.seed, 4, step])
        batch = sample_pairs(config.batch, config.wrong, config.mild_share, rng, config.world)
        return pair_losses(model, head, processor, batch)

    modules = torch.nn.ModuleDict({"clip": model, "head": head}).train()
    train("preference", modules, _is_layer_matrix, losses_of, work, config, digits=4)
    model.eval().half().save_pretrained(output)
    processor.save_pretrained(output)
    shutil.copyfile(work / "log.jsonl", output / "log.jsonl")
    accuracy = pair_accuracy(output, config.held_out, config.seed, config.world)
    write_card(output, accuracy, asdict(config))


def new_processor(work: Path) -> CLIPProcessor:
    """Return a processor of the world's images and words; its vocabulary lies in ``work``."""
    # Never a new vocabulary under weights that a resume reads.
    if not (work / "tokenizer").exists():
        save_clip_tokenizer(work / "tokenizer")
    side = world.SIZE
    images = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    return CLIPProcessor(image_processor=images, tokenizer=tokenizer)


def new_model(tokenizer: CLIPTokenizer, config: PreferenceConfig) -> CLIPModel:
    """Return the untrained model."""
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
    vision = {"num_hidden_layers": config.vision_layers, "image_size": world.SIZE, "patch_size": 8}
    settings = CLIPConfig(
        text_config=text,
        vision_config=tower | vision,
        projection_dim=config.width,
        logit_scale_init_value=math.log(LOGIT_SCALE),
    )
    model = CLIPModel(settings)
    model.logit_scale.requires_grad_(False)
    # torch's fused CPU attention is 6x slower backward in bf16 at 65 tokens.
    model.set_attn_implementation("eager")
    return model


def pair_losses(
    model: CLIPModel, head: torch.nn.Linear, processor: CLIPProcessor, batch: PairBatch
) -> dict[str, torch.Tensor]:
    """Return the terms of the loss on one batch; their sum is minimised.

    Args:
        model: in float32; its matrix products run in bfloat16 where the machine has it.
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
    right, wrong = captions[:size], captions[size:].view(size, -1, captions.shape[-1])  # (n, k, w)

    table = scale * better @ right.T  # (n, n)
    own = table.diagonal()
    own_wrong = scale * torch.einsum("nd,nkd->nk", better, wrong)
    same = np.array(batch.captions)[:, None] == np.array(batch.captions)
    unlike = table.masked_fill(torch.from_numpy(same & ~np.eye(size, dtype=bool)), -math.inf)
    target = torch.arange(size)
    of_images = cross_entropy(torch.cat([unlike, own_wrong], 1), target)
    of_captions = cross_entropy(unlike.T, target)
    targets = torch.from_numpy(batch.attributes)
    return {
        "contrast": 0.5 * of_images + 0.5 * of_captions,
        "captions": softplus(own_wrong - own[:, None]).mean(),
        "corrupted": softplus(scale * (worse * right[:half]).sum(-1) - own[:half]).mean(),
        "attributes": 0.5 * _attribute_loss(attributes.float(), targets),
        "anchor": 0.01 * (table[~torch.from_numpy(same)].mean() - UNLIKE_SCORE).square(),
    }


def _attribute_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    parts = zip(logits.split(ATTRIBUTE_SIZES, dim=1), targets.T, strict=True)
    losses = (cross_entropy(part, t, ignore_index=IGNORED, reduction="sum") for part, t in parts)
    return sum(losses) / (targets != IGNORED).sum()


def _pixels(images: np.ndarray, processor: CLIPProcessor) -> torch.Tensor:
    """Return what the processor makes of uint8 images of the model's own size: float32 (n, 3, 64,
    64)."""
    settings = processor.image_processor
    mean, deviation = (
        torch.tensor(values)[:, None, None] for values in (settings.image_mean, settings.image_std)
    )
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / deviation


def _is_layer_matrix(name: str, parameter: torch.nn.Parameter) -> bool:
    return ".layers." in name and parameter.ndim == 2
