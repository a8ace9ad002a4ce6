"""Build Stable Diffusion 3.5 Medium's shapes with random weights, as the project's own trainer.

Nothing is asked of the hub. Text comes as random embeddings, tokenised by the tokenizers of a small
local pipeline, whose text encoders stand unused beside the model. The shapes are those that `star
plan` knows.
"""

import copy
import itertools

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline

from benchmarks.speed import Free
from star.config.params import AllocationParams, Params
from star.plan.configs import SD35_MEDIUM, known_models
from star.policy.conditioning import Conditioning
from star.policy.sd3 import SD3Policy
from star.prompts.core_content import with_core
from star.prompts.prepare import prepare
from star.training.trainer import Trainer

LAYERS, CLIP_TOKENS, T5_TOKENS, TEXT_WIDTH, POOLED_WIDTH = 24, 77, 128, 4096, 2048
TINY_VAE = {
    **{"block_out_channels": (16,) * 4, "layers_per_block": 1, "norm_num_groups": 8},
    "mid_block_add_attention": False,
}


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
    generator = torch.Generator().manual_seed(0)
    for prompt in [*(record.prompt for record in records), ""]:  # the empty one is the guidance's
        embeds = torch.randn(CLIP_TOKENS + params.model.t5_tokens, TEXT_WIDTH, generator=generator)
        pooled = torch.randn(POOLED_WIDTH, generator=generator)
        policy.prompts.keep(prompt, Conditioning(embeds.to(device), pooled.to(device)))
    return Trainer(params, allocation, records, Free(), policy)
