"""Reads the attention that image tokens pay to the core tokens inside SD3's joint transformer blocks.

A joint block attends over ``[image; text]`` keys. For image token ``p`` and core key ``c`` the recorded mass is the
exact softmax probability ``exp(q_p . k_c / sqrt(d) - lse_p)``, averaged over heads and chosen blocks, where ``lse_p``
is the log-sum-exp over *all* keys (README, Method, D2). Only (image tokens x core tokens) is kept.

With classifier-free guidance the batch is [unconditional, conditional], as in diffusers; only the conditional half is
read.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor

from star.errors import StarError


@dataclass(frozen=True)
class CoreKeys:
    """Positions of the core tokens in the text sequence, padded to one length.

    index: long (batch, C), position in the text part of the keys; weight: float32 (batch, C), 0 for padding.
    """

    index: Tensor
    weight: Tensor

    def __getitem__(self, rows: slice) -> "CoreKeys":
        return CoreKeys(self.index[rows], self.weight[rows])

    @staticmethod
    def from_weights(weights: Tensor) -> "CoreKeys":
        """From a weight for every text position, (batch, text tokens); each row needs one positive weight."""
        most = int((weights > 0).sum(1).max())
        weight, index = weights.topk(most, dim=1)
        return CoreKeys(index, weight)


class AttentionRecorder:
    """Sums the mass over blocks; `mass` is their mean."""

    def __init__(self, core: CoreKeys) -> None:
        self.core = core
        self._sum: Tensor | None = None
        self._blocks = 0

    def add(self, query: Tensor, key: Tensor, image_tokens: int) -> None:
        """One block: query and key (batch, heads, tokens, d), image tokens first."""
        conditional = slice(query.shape[0] - self.core.index.shape[0], None)
        with torch.autocast(query.device.type, enabled=False):
            mass = core_mass(query[conditional, :, :image_tokens], key[conditional], image_tokens + self.core.index)
        self._sum = mass if self._sum is None else self._sum + mass
        self._blocks += 1

    @property
    def mass(self) -> Tensor:
        """Mean over the recorded blocks: float32 (batch, image tokens, C)."""
        if self._sum is None:
            raise RuntimeError("no block was recorded: run the transformer inside `record_core_attention`")
        return self._sum / self._blocks


def core_mass(query: Tensor, key: Tensor, index: Tensor) -> Tensor:
    """Softmax probability of chosen keys, averaged over heads, in float32 (Method, D2).

    Args:
        query: (batch, heads, image tokens, d).
        key: all keys of the softmax, (batch, heads, keys, d).
        index: long (batch, C), which keys to read.

    Returns:
        (batch, image tokens, C).
    """
    query, key = query.float() / math.sqrt(query.shape[3]), key.float()
    core_key = key.gather(2, index[:, None, :, None].expand(-1, key.shape[1], -1, key.shape[3]))  # (batch, heads, C, d)
    log_sum_exp = torch.logsumexp(query @ key.transpose(2, 3), dim=3, keepdim=True)
    return torch.exp(query @ core_key.transpose(2, 3) - log_sum_exp).mean(1)


class JointProcessor:
    """SD3's attention, the stock processor's arithmetic, with a backward pass that is fast on the CPU too.

    Serves joint attention and the image-only ``attn2`` of dual-attention blocks. With a recorder it also feeds that.
    """

    def __init__(self, recorder: AttentionRecorder | None = None) -> None:
        self.recorder = recorder

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        def heads(projected: Tensor, norm: torch.nn.Module | None = None) -> Tensor:
            split = projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # (batch, heads, tokens, d)
            return split if norm is None else norm(split)

        image_tokens = hidden_states.shape[1]
        query, key = heads(attn.to_q(hidden_states), attn.norm_q), heads(attn.to_k(hidden_states), attn.norm_k)
        value = heads(attn.to_v(hidden_states))
        if encoder_hidden_states is not None:
            query = torch.cat([query, heads(attn.add_q_proj(encoder_hidden_states), attn.norm_added_q)], dim=2)
            key = torch.cat([key, heads(attn.add_k_proj(encoder_hidden_states), attn.norm_added_k)], dim=2)
            value = torch.cat([value, heads(attn.add_v_proj(encoder_hidden_states))], dim=2)
        if self.recorder is not None:
            self.recorder.add(query, key, image_tokens)
        mixed = _attend(query, key, value).transpose(1, 2).flatten(2)  # (batch, tokens, heads * d)
        image, text = mixed[:, :image_tokens], mixed[:, image_tokens:]
        for layer in attn.to_out:  # projection, dropout
            image = layer(image)
        if encoder_hidden_states is None:
            return image
        return image, text if attn.context_pre_only else attn.to_add_out(text)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention in the value's dtype, (batch, heads, tokens, d).

    The CPU's fused kernel has a backward pass that took three quarters of a training step of the miniature; plain
    matrix products take a tenth. Other devices use the fused kernel.
    """
    query, key = query.to(value.dtype), key.to(value.dtype)  # RMS norms under autocast return float32
    if query.device.type != "cpu":
        return torch.nn.functional.scaled_dot_product_attention(query, key, value)
    with torch.autocast("cpu", enabled=False):
        scores = (query / math.sqrt(query.shape[3])) @ key.transpose(2, 3)
        return scores.softmax(-1) @ value


def use_joint_processor(transformer: SD3Transformer2DModel) -> None:
    """Install `JointProcessor` on every attention layer of an SD3 transformer."""
    for block in transformer.transformer_blocks:
        for layer in (block.attn, getattr(block, "attn2", None)):
            if layer is not None:
                layer.processor = JointProcessor()


@contextmanager
def record_core_attention(
    transformer: SD3Transformer2DModel, core: CoreKeys, blocks: str | Sequence[int]
) -> Iterator[AttentionRecorder]:
    """Record the forward passes made inside; the earlier processors are put back on leaving.

    Args:
        transformer: plain or with LoRA layers.
        core: of the conditional batch.
        blocks: ``"all"`` or block indices.

    Raises:
        StarError: a block index that the model does not have.
    """
    chosen = range(len(transformer.transformer_blocks)) if blocks == "all" else [int(b) for b in blocks]
    unknown = [b for b in chosen if not 0 <= b < len(transformer.transformer_blocks)]
    if unknown:
        raise StarError(
            f"allocation.blocks: no block {unknown[0]}; the model has 0 to {len(transformer.transformer_blocks) - 1}"
        )
    recorder = AttentionRecorder(core)
    layers = [transformer.transformer_blocks[b].attn for b in chosen]
    earlier = [layer.processor for layer in layers]
    for layer in layers:
        layer.processor = JointProcessor(recorder)
    try:
        yield recorder
    finally:
        for layer, processor in zip(layers, earlier, strict=True):
            layer.processor = processor
