"""The preference formula, the committed stand-in, and the pairs it was trained on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, CLIPModel, CLIPProcessor

from star.config.params import PreferenceParams
from star.pretraining.data import TAG_WEIGHTS, sample
from star.prompts.records import PromptRecord
from star.rewards.base import RewardError
from star.rewards.clip import Clip
from star.rewards.preference import PreferenceReward, clip_scores
from star.system.errors import StarError
from tests.helpers.random_clip import save_random_clip

STAND_IN = Path(__file__).parents[2] / "models" / "miniature-preference"
BF16_TOLERANCE = 2**-8  # of a cosine: half a step of bfloat16 at 1
PROMPTS = ["a cat", 'a sign that says "HI"', "two red dogs"]


def records(prompts: list[str]) -> list[PromptRecord]:
    return [
        PromptRecord(f"preference-test-{i:05d}", "preference", prompt, {})
        for i, prompt in enumerate(prompts)
    ]


def images_of(count: int, height: int = 48, width: int = 80) -> np.ndarray:
    shape = (count, height, width, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def reward_of(folder: Path, scale: float = 26.0, precision: str = "float32") -> PreferenceReward:
    return PreferenceReward(PreferenceParams(str(folder), None, scale, precision), "cpu")


def random_clip(folder: Path, positions: int) -> Path:
    """A CLIP with its processor: images are scaled to a short side of 64 and cropped."""
    torch.manual_seed(0)
    processor = AutoProcessor.from_pretrained(STAND_IN, backend="pil")
    save_random_clip(folder, processor, positions)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP of another image size than the images."""
    return random_clip(tmp_path_factory.mktemp("tiny"), 12)


@pytest.fixture(scope="module")
def stand_in() -> PreferenceReward:
    return reward_of(STAND_IN)


# ---------------------------------------------------------------- formula


def naive_scores(folder: Path, images: np.ndarray, prompts: list[str]) -> np.ndarray:
    """transformers' own logits in float32, one pair at a time."""
    model = CLIPModel.from_pretrained(folder).float()
    processor = CLIPProcessor.from_pretrained(folder)
    pairs = (
        processor(text=[prompt], images=[image], return_tensors="pt")
        for image, prompt in zip(images, prompts, strict=True)
    )
    return np.array([model(**pair).logits_per_image.item() for pair in pairs], np.float32)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-6), ("bf16", BF16_TOLERANCE)])
def test_score_is_the_models_own_logit_divided_by_the_scale(
    tiny: Path, precision: str, tolerance: float
) -> None:
    """In more than one part, with images that are not of the model's size; and so is one alone."""
    images, prompts = images_of(70), [PROMPTS[i % 3] for i in range(70)]
    reward = reward_of(tiny, 13.0, precision)
    atol = tolerance * reward.clip.model.logit_scale.exp().item()
    result = reward.submit(images, records(prompts)).result()
    scores = np.array([detail["score"] for detail in result.details], np.float32)
    np.testing.assert_allclose(scores, naive_scores(tiny, images, prompts), rtol=0, atol=atol)
    np.testing.assert_allclose(result.scores, scores / 13.0, rtol=1e-6)
    assert result.scores.dtype == np.float32 and json.dumps(result.details)
    for i in (0, 1, 65, 69):
        alone = clip_scores(reward.clip, images[i : i + 1], prompts[i : i + 1])
        np.testing.assert_allclose(alone, scores[i], rtol=0, atol=atol)
    features = reward.image_features(images)  # what the judge of evaluation compares
    assert features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)


def test_score_is_that_of_pickscores_own_code(tmp_path: Path) -> None:
    """The code of PickScore_v1's model card; one text has more than 77 tokens, and a wide image
    loses its sides."""
    folder = random_clip(tmp_path, 77)
    model, processor = (kind.from_pretrained(folder) for kind in (CLIPModel, CLIPProcessor))
    images, prompts = images_of(2), ["a red cat left of a blue car " * 20, "a red cat"]
    assert len(processor.tokenizer(prompts[0])["input_ids"]) > 77
    pixels = processor(images=list(images), return_tensors="pt")
    cut = {"padding": True, "truncation": True, "max_length": 77, "return_tensors": "pt"}
    with torch.no_grad():
        features = model.get_image_features(**pixels).pooler_output
        texts = model.get_text_features(**processor(text=prompts, **cut)).pooler_output
        features, texts = (x / torch.norm(x, dim=-1, keepdim=True) for x in (features, texts))
        expected = (model.logit_scale.exp() * (texts @ features.T)).diagonal().numpy()
    clip = Clip(str(folder))
    found = clip_scores(clip, images, prompts)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    images[:, :, :10] = images[:, :, -10:] = 0
    np.testing.assert_array_equal(clip_scores(clip, images, prompts), found)


def test_bf16_multiplies_in_bfloat16_and_sums_in_float32(tiny: Path) -> None:
    half, single = (Clip(str(tiny), precision=precision) for precision in ("bf16", "float32"))
    seen: dict[str, torch.dtype] = {}

    def watch(clip: Clip, name: str) -> None:
        def note(module: torch.nn.Module, inputs: tuple, output: torch.Tensor | tuple) -> None:
            seen[name] = (output[0] if isinstance(output, tuple) else output).dtype

        clip.model.get_submodule(name).register_forward_hook(note)

    layer = "vision_model.encoder.layers.0"
    for clip in (half, single):
        for name in (layer, f"{layer}.mlp.fc1", "visual_projection"):
            watch(clip, name)
    image = images_of(1)
    clip_scores(half, image, ["a cat"])
    assert list(seen.values()) == [torch.bfloat16, torch.float32, torch.bfloat16]
    with torch.autocast("cpu", torch.bfloat16):  # a caller's own autocast does not reach the reward
        within = clip_scores(single, image, ["a cat"])
    assert set(seen.values()) == {torch.float32}
    assert within == clip_scores(single, image, ["a cat"])


# ---------------------------------------------------------------- bad input


def test_score_that_is_not_finite_raises_with_the_record(tiny: Path) -> None:
    reward = reward_of(tiny)
    with torch.no_grad():
        reward.clip.model.visual_projection.weight.fill_(float("nan"))
    with pytest.raises(RewardError, match="^preference-test-00000.*nan"):
        reward.submit(images_of(1), records(["a cat"]))


def test_folder_without_a_model_names_the_parameter(tmp_path: Path) -> None:
    with pytest.raises(StarError, match=r"^rewards.preference.path[^\n]*$"):
        reward_of(tmp_path)


# ---------------------------------------------------------------- the committed stand-in


def test_reward_of_clean_images_is_near_one(stand_in: PreferenceReward) -> None:
    rng = np.random.default_rng(5)
    items = [sample(tag, rng) for tag in TAG_WEIGHTS for _ in range(4)]
    prompts = [item.metadata["prompt"] for item in items]
    images = np.stack([item.image for item in items])
    scores = stand_in.submit(images, records(prompts)).result().scores
    assert 0.5 < scores.mean() < 1.2
    assert scores.min() > 0
