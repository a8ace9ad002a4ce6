"""The reward models of a training: their parameters, and what scoring adds at its fullest."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from star.config.params import RewardsParams
from star.plan.activations import FLOAT
from star.plan.models import parameters_of
from star.rewards.clip import BATCH
from star.rewards.mask2former import SHORT_SIDE

LEVELS, POINTS = 3, 4  # of the deformable attention: feature maps, positions sampled in each


@dataclass(frozen=True)
class Scorer:
    """Bytes of a task's float32 reward models, and those that scoring a batch adds."""

    resident: int
    scoring: int


def read_scorer(
    rewards: RewardsParams, models: Mapping[str, torch.nn.Module], images: int
) -> Scorer:
    """Return what a task's ``models``, by path, take for batches of ``images``."""

    def scoring(path: str, config: Any) -> int:
        if path == rewards.geneval.path:
            return min(rewards.geneval.batch, images) * detection_bytes(config)
        crops = path == rewards.geneval.color_path  # of which there may be many
        return (BATCH if crops else min(BATCH, images)) * clip_bytes(config)

    added = [scoring(path, model.config) for path, model in models.items()]
    return Scorer(FLOAT * parameters_of(*models.values()), max(added, default=0))


def clip_bytes(config: Any) -> int:
    """Return the bytes of one text or image at the fullest moment of a CLIP model."""
    text, vision = config.text_config, config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2 + 1  # the class token
    words = text.max_position_embeddings
    return max(layer_bytes(text, words, FLOAT), layer_bytes(vision, patches, FLOAT))


def layer_bytes(config: Any, tokens: int, value: int) -> int:
    """Return the bytes of one sequence at the fullest moment of a CLIP or T5 layer.

    Roughly, as it is never the most. ``value``: bytes of one.
    """
    gated = config.model_type == "t5" and config.is_gated_act
    hidden = config.d_ff if config.model_type == "t5" else config.intermediate_size
    mlp = 2 * (2 if gated else 1) * hidden
    return tokens * (6 * config.hidden_size + mlp + 2 * config.num_attention_heads * tokens) * value


def detection_bytes(config: Any) -> int:
    """Return the bytes of one square image at the fullest moment of a Mask2Former's detection.

    That is in the pixel decoder's deformable attention, where all that a feature samples is there
    as a list, stacked, and weighed. Also in memory: the image with its mask, the backbone's
    features, ten tensors as large as the layer's input, and the places and weights of the samples.
    """
    areas = [(SHORT_SIDE // stride) ** 2 for stride in config.feature_strides]
    width = config.backbone_config.embed_dim
    features = sum(area * width * 2**stage for stage, area in enumerate(areas))
    sampled = LEVELS * POINTS * (3 * config.feature_size + 9 * config.num_attention_heads)
    layer = sum(areas[-LEVELS:]) * (sampled + 10 * config.feature_size)
    return FLOAT * (4 * SHORT_SIDE**2 + features + layer)
