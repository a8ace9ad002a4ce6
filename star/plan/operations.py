"""Floating-point operations as torch counts them: matrix products, attention and convolutions.

Counted are the transformer with its adapter and the VAE's decoder. Element-wise work, maps, text
encoders, rewards, sample grids and saved states are not: a few per cent at most.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from star.config.params import AllocationParams, ModelParams, Params
from star.method.attention import LOG_SUM_EXP_KERNELS, use_joint_processor
from star.plan.counts import count_passes, tested_images
from star.plan.models import Pipeline
from star.plan.result import Operations


@dataclass(frozen=True)
class Costs:
    """Operations of one sequence: without gradient, without the adapter, and of a training step.

    decoding: of one image.
    """

    forward: int
    reference: int
    training: int
    decoding: int


def count_costs(pipeline: Pipeline, model: ModelParams, fused: bool) -> Costs:
    """Count what one sequence and one image take.

    Args:
        fused: whether attention keeps no scores; its backward pass computes them again.
    """
    transformer, config = pipeline.transformer, pipeline.transformer.config
    kernel = LOG_SUM_EXP_KERNELS["cuda"]["flash"] if fused else _plain_attention
    use_joint_processor(transformer, kernel)
    transformer.gradient_checkpointing = False
    if model.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    latent = torch.zeros(1, *pipeline.latent(model.resolution), device="meta")
    text = (1, pipeline.tokens(model)[1], config.joint_attention_dim)

    def predict() -> Tensor:
        return transformer(
            hidden_states=latent,
            timestep=torch.zeros(1, device="meta"),
            encoder_hidden_states=torch.zeros(text, device="meta"),
            pooled_projections=torch.zeros(1, config.pooled_projection_dim, device="meta"),
            return_dict=False,
        )[0]

    with torch.no_grad():
        forward = _count(predict)
        transformer.disable_adapters()
        reference = _count(predict)
        transformer.enable_adapters()
        decoding = _count(lambda: pipeline.vae.decode(latent))
    return Costs(forward, reference, _count(lambda: predict().sum().backward()), decoding)


def _plain_attention(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, None]:
    """Attend as `star.method.attention.plain_attention`, whose autocast has no meta device."""
    return (query @ key.transpose(2, 3)).softmax(-1) @ value, None


def _count(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def count_operations(params: Params, allocation: AllocationParams, costs: Costs) -> Operations:
    """Return the operations of a training by one method, and of an evaluation."""
    passes = count_passes(params, allocation)
    drawn = params.images_per_epoch * params.train.epochs
    return Operations(
        rollout=passes.rollout * costs.forward + drawn * costs.decoding,
        update=passes.update * costs.training + passes.reference * costs.reference,
        evaluation=passes.evaluation * costs.forward + tested_images(params) * costs.decoding,
    )
