"""The sizes of a pipeline's parts, read from its config files and counted by formula: no weights,
no torch.

Field names are those of the config files; what a file leaves out has the library's default.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from star.system.errors import StarError

TIME_FREQUENCIES = 256  # sinusoids of a timestep (diffusers, CombinedTimestepTextProjEmbeddings)
JOINT_TARGETS = 8  # LoRA layers of a block: query, key, value and output of both streams


@dataclass(frozen=True)
class Transformer:
    """An `SD3Transformer2DModel`. depth: blocks; dual: those with an image-only attention beside
    the joint one; qk_norm: whether queries and keys are normalised; position_side: of the position
    table, in image tokens."""

    depth: int
    heads: int
    head_dim: int
    channels: int
    patch: int
    text_width: int
    pooled_width: int
    position_side: int
    dual: frozenset[int]
    qk_norm: bool

    @staticmethod
    def read(config: Mapping[str, Any]) -> "Transformer":
        return Transformer(
            config["num_layers"],
            config["num_attention_heads"],
            config["attention_head_dim"],
            config["in_channels"],
            config["patch_size"],
            config["joint_attention_dim"],
            config["pooled_projection_dim"],
            config["pos_embed_max_size"],
            frozenset(config.get("dual_attention_layers", ())),
            config.get("qk_norm") is not None,
        )

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def positions(self) -> int:
        """Elements of the position table, a float32 buffer that is no parameter."""
        return self.position_side**2 * self.width

    def parameters(self) -> int:
        d, patch = self.width, self.patch**2 * self.channels
        embedders = linear(patch, d) + linear(self.text_width, d)
        embedders += linear(TIME_FREQUENCIES, d) + linear(self.pooled_width, d) + 2 * linear(d, d)
        head = linear(d, 2 * d) + linear(d, patch)
        return embedders + head + sum(self._block(i) for i in range(self.depth))

    def _block(self, index: int) -> int:
        d, last = self.width, index == self.depth - 1
        attention, mlp = 4 * linear(d, d), linear(d, 4 * d) + linear(4 * d, d)
        norms = 2 * self.head_dim if self.qk_norm else 0  # of queries and keys, in each attention
        image = attention + norms + mlp + linear(d, 6 * d)
        if index in self.dual:
            image += attention + norms + linear(d, 3 * d)
        if last:  # its text stream ends with its keys and values
            return image + 3 * linear(d, d) + norms + linear(d, 2 * d)
        return image + attention + norms + mlp + linear(d, 6 * d)

    def adapter(self, rank: int) -> int:
        """Parameters of a LoRA adapter of `star.policy.sd3.LORA_TARGETS`; the last block has no
        text output."""
        return (JOINT_TARGETS * self.depth - 1) * 2 * rank * self.width


@dataclass(frozen=True)
class Resnet:
    """Two 3 x 3 convolutions at one side (pixels); a third, 1 x 1, where the channels change."""

    inner: int
    outer: int

    def parameters(self) -> int:
        norms, shortcut = 2 * (self.inner + self.outer), self.inner != self.outer
        return (
            norms
            + conv(self.inner, self.outer)
            + conv(self.outer, self.outer)
            + (conv(self.inner, self.outer, 1) if shortcut else 0)
        )


@dataclass(frozen=True)
class Vae:
    """An `AutoencoderKL`. widths: channels of its levels, from the image inwards; layers: resnets
    a level."""

    widths: tuple[int, ...]
    layers: int
    latent: int
    attention: bool
    quant: bool
    post_quant: bool

    @staticmethod
    def read(config: Mapping[str, Any]) -> "Vae":
        return Vae(
            tuple(config["block_out_channels"]),
            config["layers_per_block"],
            config["latent_channels"],
            config.get("mid_block_add_attention", True),
            config.get("use_quant_conv", True),
            config.get("use_post_quant_conv", True),
        )

    @property
    def factor(self) -> int:
        """Pixels along the side of a latent one."""
        return 2 ** (len(self.widths) - 1)

    def decoder(self) -> Iterator[tuple[int, list[Resnet], int]]:
        """The decoder's levels from the latent outwards: side in latent pixels, resnets, channels
        of the upsampling convolution behind them (0: none)."""
        inner = self.widths[-1]
        for level, outer in enumerate(reversed(self.widths)):
            resnets = [Resnet(inner if i == 0 else outer, outer) for i in range(self.layers + 1)]
            yield 2**level, resnets, outer if level < len(self.widths) - 1 else 0
            inner = outer

    def parameters(self) -> int:
        first, deep, latent = self.widths[0], self.widths[-1], self.latent
        middle = 2 * Resnet(deep, deep).parameters() + self.attention * (
            2 * deep + 4 * linear(deep, deep)
        )
        encoder = conv(3, first) + middle + 2 * deep + conv(deep, 2 * latent)
        inner = first
        for level, outer in enumerate(self.widths):
            encoder += sum(
                Resnet(inner if i == 0 else outer, outer).parameters() for i in range(self.layers)
            )
            encoder += conv(outer, outer) if level < len(self.widths) - 1 else 0
            inner = outer
        decoder = conv(latent, deep) + middle + 2 * first + conv(first, 3)
        for _, resnets, upsampled in self.decoder():
            decoder += sum(r.parameters() for r in resnets) + (
                conv(upsampled, upsampled) if upsampled else 0
            )
        quant = self.quant * conv(2 * latent, 2 * latent, 1) + self.post_quant * conv(
            latent, latent, 1
        )
        return encoder + decoder + quant


@dataclass(frozen=True)
class Encoder:
    """A stack of transformer layers, of text or images. tokens: of a sequence (0:
    `model.t5_tokens`); mlp: elements of a layer's hidden MLP values for each token."""

    parameters: int
    layers: int
    width: int
    mlp: int
    heads: int
    tokens: int

    def fullest(self, value: int, t5_tokens: int = 0) -> int:
        """Bytes of one text or image at the fullest moment of a layer, with ``value`` bytes each:
        roughly, as it is never the most."""
        tokens = self.tokens or t5_tokens
        return tokens * (6 * self.width + 2 * self.mlp + 2 * self.heads * tokens) * value


def clip_text(config: Mapping[str, Any]) -> Encoder:
    """A `CLIPTextModelWithProjection`."""
    width, tokens = config["hidden_size"], config["max_position_embeddings"]
    parameters = (config["vocab_size"] + tokens) * width + _clip_layers(config) + 2 * width
    parameters += config["projection_dim"] * width
    return _encoder(config, parameters, tokens)


def clip_pair(config: Mapping[str, Any]) -> tuple[Encoder, Encoder]:
    """The text and the image half of a `CLIPModel`, with the projections; the logit scale counts
    as text."""
    text, vision, projection = (
        config["text_config"],
        config["vision_config"],
        config["projection_dim"],
    )
    words = clip_text({**text, "projection_dim": projection})
    width, patch = vision["hidden_size"], vision["patch_size"]
    tokens = (vision["image_size"] // patch) ** 2 + 1  # the class token
    parameters = width + tokens * width + vision.get("num_channels", 3) * patch**2 * width
    parameters += _clip_layers(vision) + 4 * width + projection * width
    return _encoder(text, words.parameters + 1, words.tokens), _encoder(vision, parameters, tokens)


def _encoder(config: Mapping[str, Any], parameters: int, tokens: int) -> Encoder:
    layers, heads, width = (
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config["hidden_size"],
    )
    return Encoder(parameters, layers, width, config["intermediate_size"], heads, tokens)


def _clip_layers(config: Mapping[str, Any]) -> int:
    width, hidden = config["hidden_size"], config["intermediate_size"]
    layer = 4 * linear(width, width) + linear(width, hidden) + linear(hidden, width) + 4 * width
    return config["num_hidden_layers"] * layer


def t5(config: Mapping[str, Any]) -> Encoder:
    """A `T5EncoderModel`: no biases, one table of relative positions for all layers."""
    width, hidden, heads = config["d_model"], config["d_ff"], config["num_heads"]
    gated = config.get("feed_forward_proj", "relu").startswith("gated")
    layer = 4 * width * heads * config["d_kv"] + (3 if gated else 2) * width * hidden + 2 * width
    parameters = config["vocab_size"] * width + config["num_layers"] * layer + width
    parameters += config["relative_attention_num_buckets"] * heads
    return Encoder(parameters, config["num_layers"], width, (2 if gated else 1) * hidden, heads, 0)


def linear(inner: int, outer: int) -> int:
    return inner * outer + outer


def conv(inner: int, outer: int, side: int = 3) -> int:
    return inner * outer * side**2 + outer


@dataclass(frozen=True)
class Pipeline:
    """An SD3 pipeline. encoders: CLIP, second CLIP, T5; clip_tokens: length of the CLIP part of the
    text sequence."""

    transformer: Transformer
    vae: Vae
    encoders: tuple[Encoder, Encoder, Encoder]
    clip_tokens: int

    def image_tokens(self, resolution: int) -> int:
        return (resolution // self.vae.factor // self.transformer.patch) ** 2


def read_pipeline(path: str) -> Pipeline | None:
    """Of a local directory, from its files; of Stable Diffusion 3.5 Medium, from `SD35_MEDIUM`;
    None of other hub ids.

    Raises:
        StarError: a config file that is missing, unreadable or lacks a value.
    """
    if path == SD35_MEDIUM_ID:
        return _pipeline(SD35_MEDIUM, path)
    folder = Path(path)
    if not folder.is_dir():
        return None
    parts = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
    configs = {part: read_config(folder / part / "config.json") for part in parts}
    configs["tokenizer"] = read_config(folder / "tokenizer" / "tokenizer_config.json")
    return _pipeline(configs, path)


def _pipeline(configs: Mapping[str, Mapping[str, Any]], path: str) -> Pipeline:
    try:
        return Pipeline(
            Transformer.read(configs["transformer"]),
            Vae.read(configs["vae"]),
            (
                clip_text(configs["text_encoder"]),
                clip_text(configs["text_encoder_2"]),
                t5(configs["text_encoder_3"]),
            ),
            configs["tokenizer"]["model_max_length"],
        )
    except KeyError as error:
        raise StarError(
            f"model.path {path}: a config file has no {error}; is it an SD3 pipeline?"
        ) from error


def read_config(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StarError(
            f"{path}: {error}; `star plan` reads sizes from a pipeline's config files"
        ) from error


# -- what hub ids stand for ------------------------------------------------------------------------
# The transformer's and the VAE's shapes are those of the published model (README, Pointing it at
# SD3.5-M). The text encoders are CLIP ViT-L/14, OpenCLIP ViT-bigG/14 and T5 v1.1 XXL; the counts
# that follow from them (123,650,304, 694,659,840 and 4,762,310,656) are the known ones. No file of
# the published pipelines was read for this table.

SD35_MEDIUM_ID = "stabilityai/stable-diffusion-3.5-medium"
_CLIP = {"vocab_size": 49408, "max_position_embeddings": 77}
SD35_MEDIUM: dict[str, dict[str, Any]] = {
    "transformer": {
        **{
            "num_layers": 24,
            "num_attention_heads": 24,
            "attention_head_dim": 64,
            "in_channels": 16,
            "patch_size": 2,
        },
        **{"joint_attention_dim": 4096, "pooled_projection_dim": 2048, "pos_embed_max_size": 384},
        **{"dual_attention_layers": range(13), "qk_norm": "rms_norm"},
    },
    "vae": {
        **{
            "block_out_channels": (128, 256, 512, 512),
            "layers_per_block": 2,
            "latent_channels": 16,
        },
        **{"use_quant_conv": False, "use_post_quant_conv": False},
    },
    "text_encoder": {
        **_CLIP,
        **{
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
        },
        "projection_dim": 768,
    },
    "text_encoder_2": {
        **_CLIP,
        **{
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_attention_heads": 20,
        },
        "projection_dim": 1280,
    },
    "text_encoder_3": {
        **{
            "vocab_size": 32128,
            "d_model": 4096,
            "d_ff": 10240,
            "d_kv": 64,
            "num_layers": 24,
            "num_heads": 64,
        },
        **{"feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 32},
    },
    "tokenizer": {"model_max_length": 77},
}
# CLIP ViT-H/14, PickScore's architecture, and ViT-L/14; not checked against the published files
# either.
CLIP_H: dict[str, Any] = {
    "projection_dim": 1024,
    "text_config": {
        **_CLIP,
        **{
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
        },
    },
    "vision_config": {
        **{
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
        },
        **{"image_size": 224, "patch_size": 14},
    },
}
CLIP_L: dict[str, Any] = {
    "projection_dim": 768,
    "text_config": SD35_MEDIUM["text_encoder"],
    "vision_config": {
        **{
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
        },
        **{"image_size": 224, "patch_size": 14},
    },
}
