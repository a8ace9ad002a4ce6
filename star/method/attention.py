"""Reads the attention that image tokens pay to the core tokens inside SD3's joint transformer
blocks.

A joint block attends over ``[image; text]`` keys. For image token ``p`` and core key ``c`` the
recorded mass is the exact softmax probability ``exp(q_p . k_c / sqrt(d) - lse_p)``, averaged over
heads and chosen blocks, where ``lse_p`` is the log-sum-exp over *all* keys (README, Method, D2).
Fused kernels return ``lse`` beside the output, so only (image tokens x core tokens) is computed and
kept.

With classifier-free guidance the batch is [unconditional, conditional], as in diffusers; only the
conditional half is read."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from star.system.errors import StarError


@dataclass(frozen=True)
class CoreKeys:
    """Positions of the core tokens in the text sequence, padded to one length, and what each clause
    makes of them.

    index: long (batch, C), position in the text part of the keys.
    weight: float32 (batch, K, C), a row a clause (K is 1 where clauses are not told apart); 0 for
        what is not the clause's, padding included.
    """

    index: Tensor
    weight: Tensor

    def __getitem__(self, rows: slice) -> "CoreKeys":
        return CoreKeys(self.index[rows], self.weight[rows])

    @staticmethod
    def from_weights(weights: Tensor) -> "CoreKeys":
        """From a weight for every clause and text position, (batch, K, text tokens)."""
        total = weights.sum(1)
        index = total.topk(max(1, int((total > 0).sum(1).max())), dim=1).indices
        return CoreKeys(index, weights.gather(2, index[:, None].expand(-1, weights.shape[1], -1)))


class AttentionRecorder:
    """Sums the mass over ``blocks`` blocks; `mass` is their mean.

    It does not count them: a number that changes from block to block would be compiled anew for
    each."""

    def __init__(self, index: Tensor, blocks: int) -> None:
        self.index = index
        self._sum: Tensor | None = None
        self._blocks = blocks

    def add(self, mass: Tensor) -> None:
        self._sum = mass if self._sum is None else self._sum + mass

    @property
    def mass(self) -> Tensor:
        """Mean over the recorded blocks: float32 (batch, image tokens, C)."""
        if self._sum is None:
            raise RuntimeError(
                "no block was recorded: run the transformer inside `record_core_attention`"
            )
        return self._sum / self._blocks


# -- kernels: softmax attention that can also say what mass falls on a few keys --------------------


class Kernel(Protocol):
    """Softmax attention over (batch, heads, tokens, d), and the mass of its image queries on the
    core keys."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, core: Tensor | None, image_tokens: int
    ) -> tuple[Tensor, Tensor | None]:
        """Mixed values like ``query``; with ``core``, long (rows, C), also the mass, float32 (rows,
        image tokens, C).

        ``core`` indexes the keys and belongs to the last rows of the batch. The output is the same,
        bit for bit, with and without it."""
        ...


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, core: Tensor | None, image_tokens: int
) -> tuple[Tensor, Tensor | None]:
    """Matrix products and a softmax, whose probabilities are read as they are.

    For short sequences on the CPU, whose fused kernel has a backward pass that takes most of a
    training step there. The mass is rounded as the probabilities are: within 1e-5 of the exact one
    in float32; in bf16 off by 0.3 to 0.8 % of it (root mean square over a block of the miniature; 3
    % at most)."""
    with torch.autocast(query.device.type, enabled=False):
        probability = ((query / math.sqrt(query.shape[3])) @ key.transpose(2, 3)).softmax(-1)
        mixed = probability @ value
    if core is None:
        return mixed, None
    read = probability[-len(core) :, :, :image_tokens]
    where = core[:, None, None, :].expand(-1, read.shape[1], read.shape[2], -1)
    return mixed, read.gather(3, where).float().mean(1)


def log_sum_exp_attention(
    attend: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
) -> Kernel:
    """From a fused kernel that returns the log-sum-exp of each query's scores, (batch, heads,
    tokens), beside its output."""

    def kernel(
        query: Tensor, key: Tensor, value: Tensor, core: Tensor | None, image_tokens: int
    ) -> tuple[Tensor, Tensor | None]:
        mixed, log_sum_exp = attend(query, key, value)
        if core is None:
            return mixed, None
        rows = slice(-len(core), None)
        with torch.autocast(query.device.type, enabled=False):
            scores = query[rows, :, :image_tokens].float() @ _core_keys(
                key[rows], core
            ).float().transpose(2, 3)
            scores = scores / math.sqrt(query.shape[3]) - log_sum_exp[rows, :, :image_tokens, None]
            return mixed, scores.exp().mean(1)

    return kernel


def one_hot_attention(
    query: Tensor, key: Tensor, value: Tensor, core: Tensor | None, image_tokens: int
) -> tuple[Tensor, Tensor | None]:
    """Any device's fused attention; the mass is a second attention whose values are one-hot rows of
    the core keys.

    The exact fallback where no kernel returns a log-sum-exp: twice the attention in the recorded
    blocks, and no matrix of scores either."""
    mixed = scaled_dot_product_attention(query, key, value)
    if core is None:
        return mixed, None
    rows, width = slice(-len(core), None), query.shape[3]
    image, keys = query[rows, :, :image_tokens].float(), key[rows].float()
    masses = []
    with torch.autocast(query.device.type, enabled=False):
        for chunk in core.split(width, dim=1):  # fused kernels want values as wide as keys
            hot = torch.zeros(len(core), keys.shape[2], width, device=query.device)
            hot.scatter_(1, chunk[:, None, :], 1.0)
            masses.append(
                scaled_dot_product_attention(
                    image, keys, hot[:, None].expand(-1, keys.shape[1], -1, -1)
                )
            )
    return mixed, torch.cat(masses, dim=3)[..., : core.shape[1]].mean(1)


def _core_keys(key: Tensor, core: Tensor) -> Tensor:
    """(rows, heads, C, d) of (rows, heads, keys, d)."""
    return key.gather(2, core[:, None, :, None].expand(-1, key.shape[1], -1, key.shape[3]))


_aten = torch.ops.aten
LOG_SUM_EXP_KERNELS: dict[str, dict[str, Kernel]] = {
    "cpu": {
        "flash_cpu": log_sum_exp_attention(
            lambda *qkv: _aten._scaled_dot_product_flash_attention_for_cpu(*qkv)[:2]
        )
    },
    "cuda": {
        "flash": log_sum_exp_attention(
            lambda *qkv: _aten._scaled_dot_product_flash_attention(*qkv)[:2]
        ),
        "efficient": log_sum_exp_attention(lambda *qkv: _efficient(*qkv)),
    },
}
PLAIN_TOKENS = 512  # up to this many tokens the CPU uses plain products (measured: a quarter of the fused pass's time)
_PROBE_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def _efficient(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    mixed, log_sum_exp = _aten._scaled_dot_product_efficient_attention(
        query, key, value, None, True
    )[:2]
    return mixed, log_sum_exp[:, :, : query.shape[2]]  # it is padded to a multiple of 32


def choose_kernel(
    device: torch.device, dtype: torch.dtype, tokens: int, head_dim: int
) -> tuple[str, Kernel]:
    """The cheapest kernel whose output and mass are right on this device, and its name.

    Each candidate is tried on a few random tokens against a float64 softmax, without TF32, whose
    rounding would look like an error; one that raises or is wrong is passed over, and
    `one_hot_attention` is left in the end.

    Args:
        dtype: of the values, that is autocast's or the model's.
        tokens: image and text tokens of a sequence.
    """
    if device.type == "cpu" and tokens <= PLAIN_TOKENS:
        return "plain", plain_attention
    for name, kernel in LOG_SUM_EXP_KERNELS.get(device.type, {}).items():
        if _is_right(kernel, device, dtype, head_dim):
            return name, kernel
    return "one_hot", one_hot_attention


@torch.no_grad()
def _is_right(kernel: Kernel, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(3, 2, 2, 48, head_dim, generator=generator).to(
        device, dtype
    )  # query, key, value
    core = torch.tensor([[37, 41]], device=device)
    query, key, value = drawn
    scores = query.double() @ key.double().transpose(2, 3)
    probability = (scores / math.sqrt(head_dim)).softmax(-1)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        mixed, mass = kernel(query, key, value, core, 40)
    except (RuntimeError, NotImplementedError):
        return False
    finally:
        torch.set_float32_matmul_precision(precision)
    expected = probability[-1:, :, :40].mean(1)[..., core[0]]
    right = torch.allclose(
        mixed.double(), probability @ value.double(), atol=_PROBE_TOLERANCE[dtype]
    )
    return right and mass is not None and torch.allclose(mass.double(), expected, atol=1e-5)


# -- the processor ---------------------------------------------------------------------------------


class JointProcessor:
    """SD3's attention, the stock processor's arithmetic, by one `Kernel` in rollout and update
    alike.

    Serves joint attention and the image-only ``attn2`` of dual-attention blocks. With a recorder it
    also feeds that."""

    def __init__(self, kernel: Kernel, recorder: AttentionRecorder | None = None) -> None:
        self.kernel, self.recorder = kernel, recorder

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        def heads(projected: Tensor, norm: torch.nn.Module | None = None) -> Tensor:
            split = projected.unflatten(-1, (attn.heads, -1)).transpose(
                1, 2
            )  # (batch, heads, tokens, d)
            return split if norm is None else norm(split)

        image_tokens = hidden_states.shape[1]
        query, key = (
            heads(attn.to_q(hidden_states), attn.norm_q),
            heads(attn.to_k(hidden_states), attn.norm_k),
        )
        value = heads(attn.to_v(hidden_states))
        if encoder_hidden_states is not None:
            query = torch.cat(
                [query, heads(attn.add_q_proj(encoder_hidden_states), attn.norm_added_q)], dim=2
            )
            key = torch.cat(
                [key, heads(attn.add_k_proj(encoder_hidden_states), attn.norm_added_k)], dim=2
            )
            value = torch.cat([value, heads(attn.add_v_proj(encoder_hidden_states))], dim=2)
        query, key = (
            query.to(value.dtype),
            key.to(value.dtype),
        )  # RMS norms under autocast return float32
        core = None if self.recorder is None else image_tokens + self.recorder.index
        mixed, mass = self.kernel(query, key, value, core, image_tokens)
        if self.recorder is not None and mass is not None:
            self.recorder.add(mass)
        mixed = mixed.transpose(1, 2).flatten(2)  # (batch, tokens, heads * d)
        image, text = mixed[:, :image_tokens], mixed[:, image_tokens:]
        for layer in attn.to_out:  # projection, dropout
            image = layer(image)
        if encoder_hidden_states is None:
            return image
        return image, text if attn.context_pre_only else attn.to_add_out(text)


def use_joint_processor(transformer: SD3Transformer2DModel, kernel: Kernel) -> None:
    """Install `JointProcessor` on every attention layer of an SD3 transformer."""
    for block in transformer.transformer_blocks:
        for layer in (block.attn, getattr(block, "attn2", None)):
            if layer is not None:
                layer.processor = JointProcessor(kernel)


@contextmanager
def record_core_attention(
    transformer: SD3Transformer2DModel, core: CoreKeys, blocks: str | Sequence[int]
) -> Iterator[AttentionRecorder]:
    """Record the one forward pass made inside; the earlier processors are put back on leaving.

    Args:
        transformer: plain or with LoRA layers, after `use_joint_processor`.
        core: of the conditional batch.
        blocks: ``"all"`` or block indices.

    Raises:
        StarError: a block index that the model does not have.
    """
    chosen = (
        range(len(transformer.transformer_blocks)) if blocks == "all" else [int(b) for b in blocks]
    )
    unknown = [b for b in chosen if not 0 <= b < len(transformer.transformer_blocks)]
    if unknown:
        raise StarError(
            f"allocation.blocks: no block {unknown[0]}; the model has 0 to {len(transformer.transformer_blocks) - 1}"
        )
    layers = [transformer.transformer_blocks[b].attn for b in chosen]
    recorder = AttentionRecorder(core.index, len(layers))
    earlier = [layer.processor for layer in layers]
    for layer, processor in zip(layers, earlier, strict=True):
        layer.processor = JointProcessor(processor.kernel, recorder)
    try:
        yield recorder
    finally:
        for layer, processor in zip(layers, earlier, strict=True):
            layer.processor = processor
