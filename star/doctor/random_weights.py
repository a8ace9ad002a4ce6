"""Build Stable Diffusion 3.5 Medium's shapes with random weights, as the project's own trainer.

Nothing is asked of the hub. Text comes as random embeddings, tokenised by the tokenizers of a small
local pipeline, whose text encoders stand unused beside the model. The shapes are those that `star
plan` knows.
"""

import copy
import itertools
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline

from star.config.params import AllocationParams, Params
from star.plan.configs import SD35_MEDIUM, known_models
from star.policy.conditioning import Conditioning
from star.policy.sd3 import SD3Policy
from star.prompts.core_content import with_core
from star.prompts.prepare import prepare
from star.prompts.records import PromptRecord
from star.rewards.base import RewardResult, finished
from star.training.trainer import Trainer

LAYERS, CLIP_TOKENS, T5_TOKENS = 24, 77, 128
POOLED = 0.33  # std, as the miniature's own; at 1 its fp16 overflows
TINY_VAE = {
    **{"block_out_channels": (16,) * 4, "layers_per_block": 1, "norm_num_groups": 8},
    "mid_block_add_attention": False,
}


class Free:
    """A reward that costs nothing and has variance in every group."""

    name = "free"

    def submit(self, images: np.ndarray, records: Sequence[PromptRecord]) -> Future[RewardResult]:
        scores = np.arange(len(records), dtype=np.float32) % 7 / 7
        return finished(RewardResult(scores, [{} for _ in records]))

    def close(self) -> None:
        """Do nothing: there is nothing to close."""


def random_transformer(layers: int = LAYERS, positions: int = 384) -> SD3Transformer2DModel:
    """Return SD3.5-M's transformer cut to ``layers`` blocks.

    ``positions``: side of its position table, in image tokens.
    """
    whole = known_models()[SD35_MEDIUM]["transformer"]
    cut = {
        "num_layers": layers,
        "pos_embed_max_size": positions,
        "dual_attention_layers": tuple(i for i in whole["dual_attention_layers"] if i < layers),
    }
    return SD3Transformer2DModel(**{**whole, **cut})


def random_vae(tiny: bool = False) -> AutoencoderKL:
    """Return SD3.5-M's VAE, or a ``tiny`` one of the same latent."""
    return AutoencoderKL(**{**known_models()[SD35_MEDIUM]["vae"], **(TINY_VAE if tiny else {})})


def random_pipeline(
    tokenizers: str, transformer: SD3Transformer2DModel, vae: AutoencoderKL
) -> StableDiffusion3Pipeline:
    """Return a pipeline of these parts; the others are those of the directory ``tokenizers``."""
    pipe = StableDiffusion3Pipeline.from_pretrained(tokenizers, dtype=torch.float32)
    pipe.tokenizer.model_max_length = pipe.tokenizer_2.model_max_length = CLIP_TOKENS
    return StableDiffusion3Pipeline(**{**pipe.components, "transformer": transformer, "vae": vae})


def sharing(pipe: StableDiffusion3Pipeline) -> StableDiffusion3Pipeline:
    """Return the pipeline with a transformer of its own over the same frozen weights.

    It has its own adapter, attention processors, checkpointing and compilation.
    """
    weights = itertools.chain(pipe.transformer.parameters(), pipe.transformer.buffers())
    transformer = copy.deepcopy(pipe.transformer, {id(tensor): tensor for tensor in weights})
    return StableDiffusion3Pipeline(**{**pipe.components, "transformer": transformer})


def random_trainer(
    params: Params,
    allocation: AllocationParams,
    pipe: StableDiffusion3Pipeline,
    device: torch.device,
) -> Trainer:
    """A trainer on GenEval's prompts, with random text and a reward that costs nothing."""
    records = with_core(prepare("geneval", params.prompts, params.seed)[0])
    policy = SD3Policy(pipe, params.model, device)
    config, generator = pipe.transformer.config, torch.Generator().manual_seed(0)
    sizes = sum(policy.text_lengths), config.joint_attention_dim
    for prompt in [*(record.prompt for record in records), ""]:  # the empty one is the guidance's
        embeds = torch.randn(sizes, generator=generator)
        pooled = POOLED * torch.randn(config.pooled_projection_dim, generator=generator)
        policy.prompts.keep(prompt, Conditioning(embeds.to(device), pooled.to(device)))
    return Trainer(params, allocation, records, Free(), policy)
