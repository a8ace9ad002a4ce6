"""Reads the attention that image tokens pay to the core tokens in SD3's joint transformer blocks.

A joint block attends over ``[image; text]`` keys. For image token ``p`` and core key ``c`` the
recorded mass is the exact softmax probability ``exp(q_p . k_c / sqrt(d) - lse_p)``, averaged over
heads and chosen blocks (docs/method.md, D2). ``lse_p`` is the log-sum-exp over *all* keys. Fused
kernels return it with the output, so only (image tokens x core tokens) is computed and kept.

With classifier-free guidance the batch is [unconditional, conditional], as in diffusers. Only the
conditional half is read.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from star.method.precision import without_tf32
from star.system.errors import StarError

if TYPE_CHECKING:  # slow, and a kernel is chosen without it
    from diffusers import SD3Transformer2DModel
    from diffusers.models.attention_processor import Attention

# Softmax attention over (batch, heads, tokens, d): query, key, value, core, image tokens -> mixed
# values like the query, and the mass of the image queries on the core keys, float32 (rows, image
# tokens, C). ``core``, long (rows, C), indexes the keys and belongs to the last rows of the batch;
# without it there is no mass, which has no gradient. The mixed values are the same, bit for bit,
# with and without it.
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None, int], tuple[Tensor, Tensor | None]]

PLAIN_TOKENS = 512  # up to so many a CPU is faster unfused: a quarter of the time (measured)
_TIMED = 8  # sequences in which kernels are compared
_PROBE_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


@dataclass(frozen=True)
class CoreKeys:
    """Core tokens of a batch of prompts, padded to one length.

    index: long (batch, C), position in the text part of the keys.
    weight: float32 (batch, K, C), a row for each clause (K is 1 without clause-wise credit);
        0 for what is not the clause's, padding included.
    """

    index: Tensor
    weight: Tensor

    def __getitem__(self, rows: slice) -> "CoreKeys":
        return CoreKeys(self.index[rows], self.weight[rows])

    @staticmethod
    def from_weights(weights: Tensor, most: int | None = None) -> "CoreKeys":
        """Take the positions with weight from (batch, K, text tokens).

        Args:
            most: core tokens of the prompt that has most. None reads it, for which a GPU is waited.
        """
        total = weights.sum(1)
        if most is None:
            most = int((total > 0).sum(1).max())
        index = total.topk(max(1, most), dim=1).indices
        return CoreKeys(index, weights.gather(2, index[:, None].expand(-1, weights.shape[1], -1)))


class AttentionRecorder:
    """Averages the mass over a number of ``blocks``.

    It does not count them: a number that changes from block to block would be compiled again for
    each.
    """

    def __init__(self, index: Tensor, blocks: int) -> None:
        self.index = index
        self._sum: Tensor | None = None
        self._blocks = blocks

    def add(self, mass: Tensor) -> None:
        self._sum = mass if self._sum is None else self._sum + mass

    @property
    def mass(self) -> Tensor:
        """Return the mean over the recorded blocks, float32 (batch, image tokens, C)."""
        if self._sum is None:
            raise RuntimeError("no block was recorded: run the transformer inside the context")
        return self._sum / self._blocks


# -- kernels ---------------------------------------------------------------------------------------


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, core: Tensor | None, image_tokens: int
) -> tuple[Tensor, Tensor | None]:
    """Attend by matrix products and a softmax, whose probabilities are the mass.

    For short sequences on a CPU: the backward pass of its fused kernel takes most of a training
    step there. The mass is rounded as the probabilities are. In float32 it is within 1e-5 of the
    exact one; in bf16 off by 0.3 to 0.8 % (root mean square over a block of the miniature; 3 % at
    most).
    """
    with torch.autocast(query.device.type, enabled=False):
        probability = ((query / math.sqrt(query.shape[3])) @ key.transpose(2, 3)).softmax(-1)
        mixed = probability @ value
    if core is None:
        return mixed, None
    read = probability.detach()[-len(core) :, :, :image_tokens]
    where = core[:, None, None, :].expand(-1, read.shape[1], read.shape[2], -1)
    return mixed, read.gather(3, where).float().mean(1)


def log_sum_exp_attention(attend: Callable[..., Sequence[Tensor]]) -> Kernel:
    """Make a kernel of a fused one that returns the log-sum-exp of each query's scores.

    Args:
        attend: query, key, value -> mixed values, log-sum-exp (batch, heads, tokens or more), ...;
            cuDNN's has a last dimension of 1 besides.
    """

    def kernel(
        query: Tensor, key: Tensor, value: Tensor, core: Tensor | None, image_tokens: int
    ) -> tuple[Tensor, Tensor | None]:
        mixed, log_sum_exp = attend(query, key, value)[:2]
        if core is None:
            return mixed, None
        rows, width = slice(-len(core), None), query.shape[3]
        where = core[:, None, :, None].expand(-1, key.shape[1], -1, width)
        with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
            core_keys = key[rows].gather(2, where).float()  # (rows, heads, C, d)
            scores = query[rows, :, :image_tokens].float() @ core_keys.transpose(2, 3)
            # Some kernels pad the log-sum-exp's tokens to a multiple of 32.
            log_sum_exp = log_sum_exp.flatten(2)[rows, :, :image_tokens, None]
            scores = scores / math.sqrt(width) - log_sum_exp
            return mixed, scores.exp().mean(1)

    return kernel


def one_hot_attention(
    query: Tensor, key: Tensor, value: Tensor, core: Tensor | None, image_tokens: int
) -> tuple[Tensor, Tensor | None]:
    """Attend by any device's fused kernel; a second pass over one-hot values gives the mass.

    The exact fallback where no kernel returns a log-sum-exp. It costs twice the attention in the
    recorded blocks, and keeps no matrix of scores either.
    """
    mixed = scaled_dot_product_attention(query, key, value)
    if core is None:
        return mixed, None
    rows, width = slice(-len(core), None), query.shape[3]
    masses = []
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        image, keys = query[rows, :, :image_tokens].float(), key[rows].float()
        for chunk in core.split(width, dim=1):  # fused kernels want values as wide as keys
            hot = torch.zeros(len(core), keys.shape[2], width, device=query.device)
            hot.scatter_(1, chunk[:, None, :], 1.0)
            values = hot[:, None].expand(-1, keys.shape[1], -1, -1)
            masses.append(scaled_dot_product_attention(image, keys, values))
    return mixed, torch.cat(masses, dim=3)[..., : core.shape[1]].mean(1)


_aten = torch.ops.aten
_with_log_sum_exp = {"attn_bias": None, "compute_log_sumexp": True}
FUSED: dict[str, dict[str, Callable[..., Sequence[Tensor]]]] = {
    "cpu": {"flash_cpu": _aten._scaled_dot_product_flash_attention_for_cpu},
    "cuda": {
        "flash": _aten._scaled_dot_product_flash_attention,
        "efficient": partial(_aten._scaled_dot_product_efficient_attention, **_with_log_sum_exp),
        "cudnn": partial(_aten._scaled_dot_product_cudnn_attention, **_with_log_sum_exp),
    },
}
LOG_SUM_EXP_KERNELS: dict[str, dict[str, Kernel]] = {
    device: {name: log_sum_exp_attention(attend) for name, attend in kernels.items()}
    for device, kernels in FUSED.items()
}


def choose_kernel(
    device: torch.device, dtype: torch.dtype, tokens: int, heads: int, head_dim: int
) -> tuple[str, Kernel]:
    """Return the fastest kernel whose output and mass are right on this device, and its name.

    Each candidate is tried on a few random tokens against a float64 softmax. One that raises or is
    wrong is skipped. Several that are right are timed on sequences of the real size; the first
    within 5 % of the fastest is taken, so that noise seldom decides. `one_hot_attention` remains if
    none is right.

    Args:
        dtype: of the values, that is autocast's or the model's.
        tokens: image and text tokens of a sequence.
    """
    if device.type == "cpu" and tokens <= PLAIN_TOKENS:
        return "plain", plain_attention
    candidates = LOG_SUM_EXP_KERNELS.get(device.type, {})
    right = [name for name, k in candidates.items() if _is_right(k, device, dtype, head_dim)]
    if not right:
        return "one_hot", one_hot_attention
    if len(right) > 1:
        drawn = torch.Generator(device).manual_seed(0)
        shape = 3, _TIMED, heads, tokens, head_dim
        given = torch.randn(shape, generator=drawn, device=device, dtype=dtype).unbind()
        taken = {name: _seconds(candidates[name], given) for name in right}
        right = [name for name in right if taken[name] <= 1.05 * min(taken.values())]
    return right[0], candidates[right[0]]


@torch.enable_grad()
def _seconds(kernel: Kernel, given: Sequence[Tensor]) -> float:
    """Return the least seconds of a forward and backward pass; infinite if they fail."""
    query, key, value = (tensor.detach().requires_grad_() for tensor in given)
    taken = []
    for _ in range(6):  # the first one also sets up the kernel
        start = time.perf_counter()
        try:
            mixed, _ = kernel(query, key, value, None, query.shape[2])
            torch.autograd.grad(mixed, query, mixed)[0].sum().item()  # waits for the device
        except RuntimeError:
            return math.inf
        taken.append(time.perf_counter() - start)
    return min(taken)


@torch.no_grad()
def _is_right(kernel: Kernel, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    drawn = torch.randn(3, 2, 2, 48, head_dim, generator=torch.Generator().manual_seed(0))
    query, key, value = drawn.to(device, dtype)
    core = torch.tensor([[37, 41]], device=device)
    try:
        with without_tf32():  # whose rounding would look like an error
            mixed, mass = kernel(query, key, value, core, 40)
    except (RuntimeError, NotImplementedError):
        return False
    scores = query.double() @ key.double().transpose(2, 3)
    probability = (scores / math.sqrt(head_dim)).softmax(-1)
    expected = probability[-1:, :, :40].mean(1)[..., core[0]]
    tolerance = _PROBE_TOLERANCE[dtype]
    right = torch.allclose(mixed.double(), probability @ value.double(), atol=tolerance)
    return right and mass is not None and torch.allclose(mass.double(), expected, atol=1e-5)


# -- the processor ---------------------------------------------------------------------------------


class JointProcessor:
    """SD3's attention with the stock processor's arithmetic, by one `Kernel`.

    Serves joint attention and the image-only ``attn2`` of dual-attention blocks. Rollout and update
    use it the same way. With a recorder it feeds that too.
    """

    def __init__(self, kernel: Kernel, recorder: AttentionRecorder | None = None) -> None:
        self.kernel, self.recorder = kernel, recorder

    def __call__(
        self,
        attn: "Attention",
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        def heads(projected: Tensor, norm: torch.nn.Module | None = None) -> Tensor:
            split = projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            return split if norm is None else norm(split)  # (batch, heads, tokens, d)

        image, text = hidden_states, encoder_hidden_states
        image_tokens = image.shape[1]
        query = heads(attn.to_q(image), attn.norm_q)
        key = heads(attn.to_k(image), attn.norm_k)
        value = heads(attn.to_v(image))
        if text is not None:
            query = torch.cat([query, heads(attn.add_q_proj(text), attn.norm_added_q)], dim=2)
            key = torch.cat([key, heads(attn.add_k_proj(text), attn.norm_added_k)], dim=2)
            value = torch.cat([value, heads(attn.add_v_proj(text))], dim=2)
        # RMS norms under autocast return float32.
        query, key = query.to(value.dtype), key.to(value.dtype)
        core = None if self.recorder is None else image_tokens + self.recorder.index
        mixed, mass = self.kernel(query, key, value, core, image_tokens)
        if self.recorder is not None and mass is not None:
            self.recorder.add(mass)
        mixed = mixed.transpose(1, 2).flatten(2)  # (batch, tokens, heads * d)
        image = mixed[:, :image_tokens]
        for layer in attn.to_out:  # projection, dropout
            image = layer(image)
        if text is None:
            return image
        text = mixed[:, image_tokens:]
        return image, text if attn.context_pre_only else attn.to_add_out(text)


def use_joint_processor(transformer: "SD3Transformer2DModel", kernel: Kernel) -> None:
    """Install `JointProcessor` on every attention layer of an SD3 transformer."""
    for block in transformer.transformer_blocks:
        for layer in (block.attn, getattr(block, "attn2", None)):
            if layer is not None:
                layer.processor = JointProcessor(kernel)


@contextmanager
def record_core_attention(
    transformer: "SD3Transformer2DModel", core: CoreKeys, blocks: str | Sequence[int]
) -> Iterator[AttentionRecorder]:
    """Record the one forward pass made inside; put the earlier processors back on leaving.

    Args:
        transformer: plain or with LoRA layers, after `use_joint_processor`.
        core: of the conditional batch.
        blocks: ``"all"`` or block indices.

    Raises:
        StarError: a block index that the model does not have.
    """
    count = len(transformer.transformer_blocks)
    chosen = range(count) if blocks == "all" else [int(block) for block in blocks]
    if unknown := [block for block in chosen if not 0 <= block < count]:
        raise StarError(f"allocation.blocks: no block {unknown[0]}; the model has 0 to {count - 1}")
    layers = [transformer.transformer_blocks[block].attn for block in chosen]
    recorder = AttentionRecorder(core.index, len(layers))
    earlier = [layer.processor for layer in layers]
    for layer, processor in zip(layers, earlier, strict=True):
        layer.processor = JointProcessor(processor.kernel, recorder)
    try:
        yield recorder
    finally:
        for layer, processor in zip(layers, earlier, strict=True):
            layer.processor = processor
