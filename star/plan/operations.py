"""Floating-point operations as torch counts them: matrix products, attention and convolutions.

Counted are the transformer with its adapter and the VAE's decoder. Element-wise work, maps, text
encoders, rewards, sample grids and saved states are not: a few per cent at most.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from star.config.params import ModelParams, Params
from star.method.attention import LOG_SUM_EXP_KERNELS, use_joint_processor
from star.plan.counts import count_passes, held_out_images, tested_images
from star.plan.models import Pipeline
from star.plan.result import Operations

BLOCK = re.compile(r"\.transformer_blocks\.\d+$")


@dataclass(frozen=True)
class Costs:
    """Operations of one sequence, and of the decoding of one image."""

    forward: int
    reference: int  # forward without the adapter
    training: int  # forward and backward
    decoding: int


def count_costs(pipeline: Pipeline, model: ModelParams, fused: bool) -> Costs:
    """Count what one sequence and one image take.

    Args:
        fused: whether attention keeps no scores; its backward pass computes them again.
    """
    transformer, config = pipeline.transformer, pipeline.transformer.config
    kernel = LOG_SUM_EXP_KERNELS["cuda"]["flash"] if fused else _plain_attention
    use_joint_processor(transformer, kernel)
    latent = torch.zeros(1, *pipeline.latent(model.resolution), device="meta")
    text = torch.zeros(1, pipeline.tokens(model)[1], config.joint_attention_dim, device="meta")
    pooled = torch.zeros(1, config.pooled_projection_dim, device="meta")
    with FlopCounterMode(display=False) as forward:
        velocity = transformer(latent, text, pooled, torch.zeros(1, device="meta")).sample
    with FlopCounterMode(display=False) as backward:
        velocity.sum().backward()
    with FlopCounterMode(display=False) as decoding, torch.no_grad():
        pipeline.vae.decode(latent)
    modules = {name: sum(counts.values()) for name, counts in forward.get_flop_counts().items()}
    adapter = sum(count for name, count in modules.items() if ".lora_" in name)
    blocks = sum(count for name, count in modules.items() if BLOCK.search(name))
    once = forward.get_total_flops()
    return Costs(
        forward=once,
        reference=once - adapter,
        training=once + backward.get_total_flops() + blocks * model.gradient_checkpointing,
        decoding=decoding.get_total_flops(),
    )


def _plain_attention(
    query: Tensor, key: Tensor, value: Tensor, core: Tensor | None, image_tokens: int
) -> tuple[Tensor, None]:
    """Attend as `star.method.attention.plain_attention`, whose autocast has no meta device."""
    return (query @ key.transpose(2, 3)).softmax(-1) @ value, None


def count_operations(params: Params, costs: Costs) -> Operations:
    """Return the operations of a training by one method, and of an evaluation."""
    passes = count_passes(params)
    drawn = params.images_per_epoch * params.train.epochs
    return Operations(
        rollout=passes.rollout * costs.forward + drawn * costs.decoding,
        update=passes.update * costs.training + passes.reference * costs.reference,
        evaluation=passes.evaluation * costs.forward + tested_images(params) * costs.decoding,
        held_out=passes.held_out * costs.forward + held_out_images(params) * costs.decoding,
    )
