"""The reward models beside a training: their parameters, and what scoring adds at its fullest."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from star.config.params import RewardsParams
from star.plan.activations import FLOAT
from star.plan.models import parameters_of
from star.rewards.clip import BATCH
from star.rewards.mask2former import SHORT_SIDE

# Of Mask2Former's deformable attention: feature maps, and positions sampled in each.
LEVELS, POINTS = 3, 4


@dataclass(frozen=True)
class Scorer:
    """A task's reward models, all float32.

    parameters: of all together; scoring: bytes that scoring a batch adds at its fullest.
    """

    parameters: int = 0
    scoring: int = 0


def read_scorer(
    rewards: RewardsParams, models: Mapping[str, torch.nn.Module], images: int
) -> Scorer:
    """Return what the reward models of a task take.

    Args:
        models: the task's, by path.
        images: in a batch.
    """
    scoring = 0
    for path, model in models.items():
        if path == rewards.geneval.path:
            added = min(rewards.geneval.batch, images) * detection_bytes(model.config)
        elif path == rewards.geneval.color_path:
            added = BATCH * clip_bytes(model.config)  # of crops, of which there may be many
        else:
            added = min(BATCH, images) * clip_bytes(model.config)
        scoring = max(scoring, added)
    return Scorer(parameters_of(*models.values()), scoring)


def clip_bytes(config: Any) -> int:
    """Return the bytes of one text or image at the fullest moment of a CLIP model."""
    text, vision = config.text_config, config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2 + 1  # the class token
    return max(
        layer_bytes(text, text.max_position_embeddings, FLOAT),
        layer_bytes(vision, patches, FLOAT),
    )


def layer_bytes(config: Any, tokens: int, value: int) -> int:
    """Return the bytes of one sequence at the fullest moment of a CLIP or T5 layer.

    Roughly, as it is never the most; ``value`` is of bytes.
    """
    gated = 2 if getattr(config, "is_gated_act", False) else 1
    hidden = gated * (config.d_ff if hasattr(config, "d_ff") else config.intermediate_size)
    each = 6 * config.hidden_size + 2 * hidden + 2 * config.num_attention_heads * tokens
    return tokens * each * value


def detection_bytes(config: Any) -> int:
    """Return the bytes of one square image at the fullest moment of a Mask2Former's detection.

    That is in the pixel decoder's deformable attention, where all that a feature samples is there
    as a list, stacked, and weighed. Beside it are the image with its mask, the backbone's features,
    ten tensors as large as the layer's input (features, positions, values), and what says where and
    how much is sampled. Post-processing, one image at a time, and the masks of all layers have
    less.
    """
    swin = config.backbone_config
    areas = [(SHORT_SIDE // stride) ** 2 for stride in config.feature_strides]
    features = sum(area * swin.embed_dim * 2**stage for stage, area in enumerate(areas))
    sampled, width = LEVELS * POINTS, config.feature_size
    layer = 3 * sampled * width + 10 * width + 9 * sampled * config.num_attention_heads
    return FLOAT * (4 * SHORT_SIDE**2 + features + sum(areas[-LEVELS:]) * layer)
