"""The reward models that a GPU holds beside the training: their parameters, and what scoring adds
at its fullest.

Sizes are read from config files and counted by formula, as in `star.plan.shapes`; hub ids of the
presets are built in."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from star.config.params import GenevalParams, Params
from star.plan.shapes import CLIP_H, CLIP_L, Encoder, clip_pair, conv, linear, read_config
from star.system.errors import StarError

FLOAT = 4  # bytes: reward models are float32
SCORED = 64  # as star.rewards.clip.BATCH
LABELS = 80  # COCO's classes: the detector is refused with others
SIDE = 800  # as star.rewards.mask2former.SHORT_SIDE, to which square images are scaled
LEVELS, POINTS = (
    3,
    4,
)  # of Mask2Former's deformable attention: feature maps, and positions sampled in each
PICKSCORE_ID, CLIP_L_ID = "yuvalkirstain/PickScore_v1", "openai/clip-vit-large-patch14"
MASK2FORMER_ID = "facebook/mask2former-swin-small-coco-instance"


@dataclass(frozen=True)
class Scorer:
    """A task's reward models. parameters: of all together; scoring: bytes that the fullest moment
    of scoring a rollout batch adds; unknown: models that are not counted, as nothing says how large
    they are."""

    parameters: int
    scoring: int
    unknown: tuple[str, ...] = ()


def read_scorer(params: Params, task: str) -> Scorer:
    """Of local directories, from their files; of `PICKSCORE_ID`, `MASK2FORMER_ID` and `CLIP_L_ID`;
    no other hub ids.

    Raises:
        StarError: a config file that is missing, unreadable or lacks a value.
    """
    batch, geneval = params.rollout.batch, params.rewards.geneval
    if task == "preference":
        return _clip_scorer(params.rewards.preference.path, min(SCORED, batch))
    if task != "geneval" or geneval.detector != "mask2former":
        return Scorer(0, 0)
    assert geneval.color_path is not None  # as star.config.consistency has checked
    colors = _clip_scorer(
        geneval.color_path, SCORED
    )  # its batches are of crops, of which there may be many
    objects = _detector_scorer(geneval, min(geneval.batch, batch))
    return Scorer(
        objects.parameters + colors.parameters,
        max(objects.scoring, colors.scoring),
        objects.unknown + colors.unknown,
    )


def _clip_scorer(path: str, batch: int) -> Scorer:
    halves = read_clip(path)
    if halves is None:
        return Scorer(0, 0, (path,))
    return Scorer(
        sum(half.parameters for half in halves), batch * max(half.fullest(FLOAT) for half in halves)
    )


def _detector_scorer(geneval: GenevalParams, batch: int) -> Scorer:
    assert geneval.path is not None
    detector = read_detector(geneval.path)
    if detector is None:
        return Scorer(0, 0, (geneval.path,))
    return Scorer(detector.parameters(), batch * detector.fullest())


def read_clip(path: str) -> tuple[Encoder, Encoder] | None:
    """Text and image half of a CLIP model; None of hub ids that are not built in."""
    config = _config(path, {PICKSCORE_ID: CLIP_H, CLIP_L_ID: CLIP_L})
    try:
        return None if config is None else clip_pair(config)
    except KeyError as error:
        raise StarError(f"{path}: config.json has no {error}; is it a CLIPModel?") from error


def read_detector(path: str) -> "Mask2Former | None":
    """GenEval's neural detector; None of hub ids that are not built in."""
    config = _config(path, {MASK2FORMER_ID: MASK2FORMER_SWIN_S})
    try:
        return None if config is None else Mask2Former.read(config)
    except KeyError as error:
        raise StarError(
            f"{path}: config.json has no {error}; is it a Mask2Former on a Swin?"
        ) from error


def _config(path: str, known: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any] | None:
    if path in known:
        return known[path]
    return read_config(Path(path) / "config.json") if Path(path).is_dir() else None


@dataclass(frozen=True)
class Swin:
    """A `SwinBackbone` that gives out every stage. depths: blocks of its stages; patch, window:
    sides; hidden: of the MLPs, in widths."""

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    patch: int
    window: int
    hidden: float

    @staticmethod
    def read(config: Mapping[str, Any]) -> "Swin":
        return Swin(
            config["embed_dim"],
            tuple(config["depths"]),
            tuple(config["num_heads"]),
            config["patch_size"],
            config["window_size"],
            config["mlp_ratio"],
        )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage's features."""
        return tuple(self.width * 2**stage for stage in range(len(self.depths)))

    def parameters(self) -> int:
        total = (
            conv(3, self.width, self.patch) + 2 * self.width + 2 * self.widths[-1]
        )  # the last norm is never used
        for d, depth, heads in zip(self.widths, self.depths, self.heads, strict=True):
            hidden = int(self.hidden * d)
            block = 4 * linear(d, d) + linear(d, hidden) + linear(hidden, d) + 4 * d
            block += (2 * self.window - 1) ** 2 * heads  # relative positions
            total += depth * block + 2 * d  # the norm of what it gives out
        return total + sum(8 * d * d + 8 * d for d in self.widths[:-1])  # merging of four patches


@dataclass(frozen=True)
class Mask2Former:
    """A `Mask2FormerForUniversalSegmentation`. feature, mask, hidden: channels of the pixel
    decoder, of the masks and of the queries; layers: of the pixel decoder's encoder and of the
    query decoder; mlps: their hidden MLP values; strides: pixels along a feature, of the backbone's
    stages and of the masks."""

    backbone: Swin
    feature: int
    mask: int
    hidden: int
    heads: int
    layers: tuple[int, int]
    mlps: tuple[int, int]
    queries: int
    strides: tuple[int, ...]
    stride: int

    @staticmethod
    def read(config: Mapping[str, Any]) -> "Mask2Former":
        return Mask2Former(
            Swin.read(config["backbone_config"]),
            config["feature_size"],
            config["mask_feature_size"],
            config["hidden_dim"],
            config["num_attention_heads"],
            (config["encoder_layers"], config["decoder_layers"] - 1),
            (config["encoder_feedforward_dim"], config["dim_feedforward"]),
            config["num_queries"],
            tuple(config["feature_strides"]),
            config["common_stride"],
        )

    def parameters(self) -> int:
        heads = (
            linear(self.hidden, LABELS + 1)
            + 2 * linear(self.hidden, self.hidden)
            + linear(self.hidden, self.mask)
        )
        return self.backbone.parameters() + self._pixel_decoder() + self._query_decoder() + heads

    def _pixel_decoder(self) -> int:
        d, sampled = self.feature, self.heads * LEVELS * POINTS
        attention = linear(d, 2 * sampled) + linear(d, sampled) + 2 * linear(d, d)
        layer = attention + linear(d, self.mlps[0]) + linear(self.mlps[0], d) + 4 * d
        total = (
            sum(linear(width, d) + 2 * d for width in self.backbone.widths[-LEVELS:]) + LEVELS * d
        )
        total += self.layers[0] * layer + linear(d, self.mask)
        finer = int(
            math.log2(min(self.strides[-LEVELS:]) / self.stride)
        )  # maps between the sampled ones and the masks
        return total + sum(width * d + 9 * d * d + 4 * d for width in self.backbone.widths[:finer])

    def _query_decoder(self) -> int:
        d = self.hidden
        layer = 8 * linear(d, d) + linear(d, self.mlps[1]) + linear(self.mlps[1], d) + 6 * d
        projections = LEVELS * linear(self.feature, d) if self.feature != d else 0
        return self.layers[1] * layer + 2 * d + 2 * self.queries * d + LEVELS * d + projections

    def fullest(self) -> int:
        """Bytes of one square image at the fullest moment of detection, in the pixel decoder's
        deformable attention: what every feature samples is there as a list, stacked, and weighed.

        Beside it are the image with its mask, the backbone's features, ten tensors as large as
        the layer's input (features, positions, values), and what says where and how much is
        sampled. Post-processing, one image at a time, and the masks of all layers have less."""
        areas = [(SIDE // stride) ** 2 for stride in self.strides]
        tokens, sampled = sum(areas[-LEVELS:]), LEVELS * POINTS
        features = sum(
            area * width for area, width in zip(areas, self.backbone.widths, strict=True)
        )
        layer = 3 * sampled * self.feature + 10 * self.feature + 9 * sampled * self.heads
        return FLOAT * (4 * SIDE**2 + features + tokens * layer)


# transformers' own defaults, which are those of this model; its 68,741,083 parameters are 263 MiB
# with its buffers, the size that is published for it. No file of it was read.
MASK2FORMER_SWIN_S: dict[str, Any] = {
    "backbone_config": {
        **{"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
        **{"patch_size": 4, "window_size": 7, "mlp_ratio": 4.0},
    },
    **{"feature_size": 256, "mask_feature_size": 256, "hidden_dim": 256, "num_attention_heads": 8},
    **{
        "encoder_layers": 6,
        "decoder_layers": 10,
        "encoder_feedforward_dim": 1024,
        "dim_feedforward": 2048,
    },
    **{"num_queries": 100, "feature_strides": (4, 8, 16, 32), "common_stride": 4},
}
