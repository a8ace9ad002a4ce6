"""Floating-point operations: two for each multiply-add of matrix products, attention and
convolutions.

Counted: the transformer (embedders, blocks, LoRA, head) and the VAE's decoder. Not counted:
element-wise work, the reading of maps, text encoders (once a prompt), rewards, sample grids and
saved states: a few per cent at most."""

from dataclasses import dataclass

from star.config.params import AllocationParams, Params
from star.plan.counts import branches, count_passes
from star.plan.shapes import TIME_FREQUENCIES, Pipeline, Transformer, Vae


@dataclass(frozen=True)
class Operations:
    """Of one training, all processes together, and of the evaluation of one checkpoint."""

    rollout: int
    update: int
    evaluation: int


def count_operations(
    params: Params, allocation: AllocationParams, pipeline: Pipeline, fused: bool
) -> Operations:
    """Of one method. ``fused``: whether attention's backward pass recomputes its scores."""
    model, transformer = params.model, pipeline.transformer
    tokens = (pipeline.image_tokens(model.resolution), pipeline.clip_tokens + model.t5_tokens)
    passes = count_passes(params, allocation)
    adapted = forward(transformer, *tokens, model.lora_rank)
    step = adapted + backward(transformer, *tokens, model.lora_rank, fused)
    if model.gradient_checkpointing:
        step += sum(
            block_forward(transformer, i, *tokens, model.lora_rank)
            for i in range(transformer.depth)
        )
    image = decode(pipeline.vae, model.resolution)
    tested = passes.evaluation // (params.evaluate.steps * branches(params))
    return Operations(
        rollout=passes.rollout * adapted + params.images_per_epoch * params.train.epochs * image,
        update=passes.update * step + passes.reference * forward(transformer, *tokens, 0),
        evaluation=passes.evaluation * adapted + tested * image,
    )


def forward(t: Transformer, image: int, text: int, rank: int) -> int:
    """One sequence of ``image`` and ``text`` tokens through the transformer; rank 0 is no
    adapter."""
    d, patch = t.width, t.patch**2 * t.channels
    embedders = (
        image * patch * d
        + text * t.text_width * d
        + (TIME_FREQUENCIES + t.pooled_width + 2 * d) * d
    )
    head = 2 * d * d + image * d * patch
    return 2 * (embedders + head) + sum(
        block_forward(t, i, image, text, rank) for i in range(t.depth)
    )


def block_forward(t: Transformer, index: int, image: int, text: int, rank: int) -> int:
    d, last, dual = t.width, index == t.depth - 1, index in t.dual
    modulation = d * d * (9 if dual else 6) + d * d * (2 if last else 6)
    inner, outer = _linears(t, index, image, text)
    adapter = 2 * rank * d * (3 * (image + text) + image + (0 if last else text))
    return 2 * (modulation + inner + outer + adapter) + sum(_attention(t, index, image, text))


def backward(t: Transformer, image: int, text: int, rank: int, fused: bool) -> int:
    """Gradients of the adapter alone: each frozen product is met once, by its input's gradient,
    where that has one.

    The first block's inputs have none; modulation and embedders see no adapter at all. Attention
    has two products for each of its own, and fused kernels compute the scores again."""
    operations = 2 * image * t.width * t.patch**2 * t.channels
    for index in range(t.depth):
        inner, outer = _linears(t, index, image, text)
        joint, dual = _attention(t, index, image, text)
        adapter = (
            2 * rank * t.width * (3 * (image + text) + image + (text if index < t.depth - 1 else 0))
        )
        if index == 0:
            inner, dual = 0, 0
            outer -= image * t.width**2 if 0 in t.dual else 0
        unused = rank * t.width * 3 * (image + text) if index == 0 else 0
        operations += (
            2 * (inner + outer + 2 * adapter - unused) + (joint + dual) * (5 if fused else 4) // 2
        )
    return operations


def _linears(t: Transformer, index: int, image: int, text: int) -> tuple[int, int]:
    """Multiply-adds of frozen products: of queries, keys and values; of attention's outputs and the
    MLPs."""
    square, streamed = t.width**2, image + (text if index < t.depth - 1 else 0)
    dual = index in t.dual
    return square * 3 * (image + text + dual * image), square * (9 * streamed + dual * image)


def _attention(t: Transformer, index: int, image: int, text: int) -> tuple[int, int]:
    """Operations of scores and mixing: joint, image-only."""
    return 4 * (image + text) ** 2 * t.width, 4 * image**2 * t.width if index in t.dual else 0


def decode(vae: Vae, resolution: int) -> int:
    """One image from its latent."""
    latent = (resolution // vae.factor) ** 2  # positions
    deep = vae.widths[-1]
    products = latent * 9 * (vae.latent * deep + 4 * deep * deep)
    products += latent * vae.latent**2 if vae.post_quant else 0
    products += latent * 4 * deep * deep + 2 * latent**2 * deep if vae.attention else 0
    for scale, resnets, upsampled in vae.decoder():
        for resnet in resnets:
            shortcut = resnet.inner * resnet.outer if resnet.inner != resnet.outer else 0
            products += (
                latent * scale**2 * (9 * (resnet.inner + resnet.outer) * resnet.outer + shortcut)
            )
        products += latent * (2 * scale) ** 2 * 9 * upsampled**2
    products += resolution**2 * 9 * vae.widths[0] * 3
    return 2 * products
