"""`star plan`'s reward models against the modules: parameters, and the fullest moment of
detection."""

import dataclasses
import json
import weakref
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import (
    CLIPConfig,
    CLIPModel,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
)

from star.config.params import load_params
from star.plan import make_plan, scorers, shapes
from star.prompts.geneval import COCO_CLASSES
from star.rewards import clip, mask2former
from star.system.errors import StarError

STAGES = [f"stage{number}" for number in range(1, 5)]
PRESET = load_params(Path("presets/sd35m-1gpu-geneval.yaml"))
DETECTOR, COLORS = 68_741_083, 427_616_513  # parameters of the published models


def config(values: dict) -> Mask2FormerConfig:
    """With all of a Swin's stages given out, as every Mask2Former's."""
    swin = SwinConfig(**values["backbone_config"], out_features=STAGES)
    return Mask2FormerConfig(**{**values, "backbone_config": swin}, num_labels=len(COCO_CLASSES))


def of(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_published_models_parameters():
    with torch.device("meta"):
        detector = Mask2FormerForUniversalSegmentation(config(scorers.MASK2FORMER_SWIN_S))
        colors = CLIPModel(CLIPConfig(**shapes.CLIP_L))
    assert scorers.read_detector(scorers.MASK2FORMER_ID).parameters() == of(detector) == DETECTOR
    halves = scorers.read_clip(scorers.CLIP_L_ID)
    assert sum(half.parameters for half in halves) == of(colors) == COLORS


@pytest.mark.parametrize("stride", [4, 8])
def test_a_directorys_parameters(tmp_path, stride):
    """No two sizes are alike; with a stride of 8 no map lies between the sampled ones and the
    masks."""
    swin = {
        "embed_dim": 24,
        "depths": [1, 2, 3, 1],
        "num_heads": [1, 2, 3, 4],
        "window_size": 5,
        "mlp_ratio": 3.0,
    }
    sizes = {
        "feature_size": 64,
        "mask_feature_size": 32,
        "hidden_dim": 96,
        "encoder_feedforward_dim": 40,
    }
    depths = {"encoder_layers": 2, "decoder_layers": 3, "num_attention_heads": 4, "num_queries": 7}
    values = {
        "backbone_config": {**swin, "patch_size": 2},
        "dim_feedforward": 56,
        **sizes,
        **depths,
    }
    built = config({**values, "common_stride": stride})
    built.save_pretrained(tmp_path)
    with torch.device("meta"):
        detector = Mask2FormerForUniversalSegmentation(built)
    assert scorers.read_detector(str(tmp_path)).parameters() == of(detector)


class Live(TorchDispatchMode):
    """Counts the bytes of storages that live at one time; those of ``own`` do not count."""

    def __init__(self, own: torch.nn.Module) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen = {
            tensor.untyped_storage()._cdata: 0 for tensor in (*own.parameters(), *own.buffers())
        }

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        output = function(*arguments, **(options or {}))
        for tensor in tree_iter(output):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        self.most = max(self.most, self.now)
        return output

    def add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen[key] = size
            self.now += size
            weakref.finalize(storage, self.remove, key)

    def remove(self, key: int) -> None:
        self.now -= self.seen.pop(key)


def test_the_fullest_moment_of_detection():
    """The published model's own size on an image's own size, with tensors that have no values."""
    _, sizes = mask2former.network_input(torch.zeros(1, 512, 512, 3, dtype=torch.uint8))
    most = []
    with FakeTensorMode(), torch.no_grad():
        detector = Mask2FormerForUniversalSegmentation(config(scorers.MASK2FORMER_SWIN_S)).eval()
        for images in (2, 3):
            with Live(detector) as live:
                detector(pixel_values=torch.zeros(images, 3, *sizes.padded))
            most.append(live.most)
    counted = scorers.read_detector(scorers.MASK2FORMER_ID).fullest()
    assert counted == pytest.approx(most[1] - most[0], rel=0.05)
    assert 2 * counted == pytest.approx(most[0], rel=0.05), "little is there whatever the batch"


def test_constants_of_modules_that_need_torch():
    assert clip.BATCH == scorers.SCORED and len(COCO_CLASSES) == scorers.LABELS
    _, sizes = mask2former.network_input(torch.zeros(1, 1024, 1024, 3, dtype=torch.uint8))
    assert sizes.padded == (scorers.SIDE, scorers.SIDE)


def with_geneval(**keys):
    """The preset with other values of `rewards.geneval`."""
    rewards = dataclasses.replace(
        PRESET.rewards, geneval=dataclasses.replace(PRESET.rewards.geneval, **keys)
    )
    return dataclasses.replace(PRESET, rewards=rewards)


def memory(params):
    return make_plan(params, ["geneval"]).tasks["geneval"].memory


def test_the_plan_counts_the_detector_and_its_colours():
    counted, detection = memory(PRESET), scorers.read_detector(scorers.MASK2FORMER_ID).fullest()
    assert counted.resident["reward model"] == 4 * (DETECTOR + COLORS)
    assert counted.phases["scoring"] - counted.trajectories == 8 * detection, (
        "by rewards.geneval.batch"
    )
    fewer = memory(with_geneval(batch=2))
    assert 2 * detection <= fewer.phases["scoring"] - fewer.trajectories < 8 * detection
    exact = memory(with_geneval(detector="exact", path=None, color_path=None))
    assert exact.resident["reward model"] == 0 and "scoring" not in exact.phases


@pytest.mark.parametrize(("key", "left"), [("path", COLORS), ("color_path", DETECTOR)])
def test_a_model_of_unknown_size_is_named_and_the_other_counted(key, left):
    plan = make_plan(with_geneval(**{key: "someone/model"}), ["geneval"])
    assert plan.notes == ["the memory of someone/model is unknown and not counted"]
    assert plan.tasks["geneval"].memory.resident["reward model"] == 4 * left


def test_a_directory_of_another_model_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "detr"}))
    with pytest.raises(StarError, match="no 'backbone_config'; is it a Mask2Former"):
        memory(with_geneval(path=str(tmp_path)))
