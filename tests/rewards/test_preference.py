"""The preference formula and the committed stand-in."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPProcessor

from star.config.params import PreferenceParams
from star.pretraining.data import TAG_WEIGHTS, sample
from star.pretraining.preference import new_processor
from star.prompts.records import PromptRecord
from star.rewards.base import RewardError
from star.rewards.preference import PreferenceReward, clip_scores, open_clip
from star.system.errors import StarError

STAND_IN = Path(__file__).parents[2] / "models" / "miniature-preference"


def records(prompts: list[str]) -> list[PromptRecord]:
    return [
        PromptRecord(f"preference-test-{i:05d}", "preference", prompt, {})
        for i, prompt in enumerate(prompts)
    ]


def random_clip(folder: Path, positions: int) -> Path:
    """A CLIP with its processor: images are scaled to a short side of 64 and cropped, texts have
    ``positions``."""
    processor = new_processor(folder)
    torch.manual_seed(0)
    tower = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    ends = {
        "bos_token_id": processor.tokenizer.bos_token_id,
        "eos_token_id": processor.tokenizer.eos_token_id,
    }
    text = (
        tower
        | ends
        | {"vocab_size": len(processor.tokenizer), "max_position_embeddings": positions}
    )
    model = CLIPModel(
        CLIPConfig(text_config=text, vision_config=tower | {"image_size": 64, "patch_size": 16})
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP of another image size than the images."""
    return random_clip(tmp_path_factory.mktemp("tiny"), 12)


@pytest.fixture(scope="module")
def stand_in() -> PreferenceReward:
    return PreferenceReward(PreferenceParams(str(STAND_IN), None, 26.0, "float32"), device="cpu")


BF16_TOLERANCE = 2**-8  # of a cosine: half a step of bfloat16 at 1


# ---------------------------------------------------------------- formula


def naive_scores(folder: Path, images: np.ndarray, prompts: list[str]) -> np.ndarray:
    """transformers' own logits in float32, one pair at a time."""
    model, processor = (
        CLIPModel.from_pretrained(folder).float(),
        CLIPProcessor.from_pretrained(folder),
    )
    pairs = [
        processor(text=[t], images=[p], return_tensors="pt")
        for p, t in zip(images, prompts, strict=True)
    ]
    return np.array([model(**pair).logits_per_image.item() for pair in pairs], np.float32)


def test_score_is_the_models_own_logit_divided_by_the_scale(tiny: Path) -> None:
    """Against transformers' own logits, one pair at a time; images are not of the model's
    size."""
    images = np.random.default_rng(0).integers(0, 256, (5, 48, 80, 3), dtype=np.uint8)
    prompts = [
        "a photo of a cat",
        "a red car",
        "a photo of a cat",
        "two dogs",
        'a sign that says "HI"',
    ]
    result = (
        PreferenceReward(PreferenceParams(str(tiny), None, 13.0, "float32"), "cpu")
        .submit(images, records(prompts))
        .result()
    )
    expected = naive_scores(tiny, images, prompts)
    assert result.scores.dtype == np.float32
    np.testing.assert_allclose(result.scores, expected / 13.0, rtol=1e-4)
    np.testing.assert_allclose([detail["score"] for detail in result.details], expected, rtol=1e-4)
    json.dumps(result.details)


def test_score_is_that_of_pickscores_own_code(tmp_path: Path) -> None:
    """The code of PickScore_v1's model card; one text has more than 77 tokens, and a wide image
    loses its sides."""
    model, processor = (
        kind.from_pretrained(random_clip(tmp_path, 77)) for kind in (CLIPModel, CLIPProcessor)
    )
    images = np.random.default_rng(4).integers(0, 256, (2, 48, 80, 3), dtype=np.uint8)
    prompts = ["a red cat left of a blue car " * 20, "a red cat"]
    assert len(processor.tokenizer(prompts[0])["input_ids"]) > 77
    cut = {"padding": True, "truncation": True, "max_length": 77, "return_tensors": "pt"}
    with torch.no_grad():
        features = model.get_image_features(
            **processor(images=list(images), return_tensors="pt")
        ).pooler_output
        texts = model.get_text_features(**processor(text=prompts, **cut)).pooler_output
        features, texts = (x / torch.norm(x, dim=-1, keepdim=True) for x in (features, texts))
        expected = (model.logit_scale.exp() * (texts @ features.T)).diagonal().numpy()
    found = clip_scores(*open_clip(str(tmp_path)), images, prompts)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    images[:, :, :10] = images[:, :, -10:] = 0
    np.testing.assert_array_equal(clip_scores(*open_clip(str(tmp_path)), images, prompts), found)


def test_score_is_bounded_by_the_scale(tiny: Path) -> None:
    model, processor = open_clip(str(tiny))
    images = np.random.default_rng(1).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    assert (
        np.abs(clip_scores(model, processor, images, ["a cat"] * 8)).max()
        <= model.logit_scale.exp().item()
    )


def test_long_prompt_is_cut_at_the_text_models_positions(tiny: Path) -> None:
    model, processor = open_clip(str(tiny))
    image = np.zeros((1, 64, 64, 3), np.uint8)
    long, longer = ["red cat " * 40], ["red cat " * 80]
    assert clip_scores(model, processor, image, long) == clip_scores(
        model, processor, image, longer
    )


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-6), ("bf16", BF16_TOLERANCE)])
def test_score_does_not_depend_on_the_batch(tiny: Path, precision: str, tolerance: float) -> None:
    model, processor = open_clip(str(tiny))
    images = np.random.default_rng(2).integers(
        0, 256, (70, 64, 64, 3), dtype=np.uint8
    )  # more than one part
    prompts = [["a cat", 'a sign that says "LONGER"', "two red dogs"][i % 3] for i in range(70)]
    together = clip_scores(model, processor, images, prompts, precision)
    some = (0, 1, 65, 69)
    alone = [
        clip_scores(model, processor, images[i : i + 1], prompts[i : i + 1], precision)[0]
        for i in some
    ]
    atol = tolerance * model.logit_scale.exp().item()
    np.testing.assert_allclose(together[list(some)], alone, rtol=0, atol=atol)


# ---------------------------------------------------------------- precision


def test_bf16_is_near_the_naive_float32_and_not_it(tiny: Path) -> None:
    images = np.random.default_rng(3).integers(
        0, 256, (70, 48, 80, 3), dtype=np.uint8
    )  # more than one part
    prompts = [["a cat", 'a sign that says "HI"', "two red dogs"][i % 3] for i in range(70)]
    expected, scale = (
        naive_scores(tiny, images, prompts),
        open_clip(str(tiny))[0].logit_scale.exp().item(),
    )
    found = {}
    for precision, tolerance in (("float32", 1e-6), ("bf16", BF16_TOLERANCE)):
        reward = PreferenceReward(PreferenceParams(str(tiny), None, 13.0, precision), "cpu")
        result = reward.submit(images, records(prompts)).result()
        scores = np.array([detail["score"] for detail in result.details], np.float32)
        assert result.scores.dtype == np.float32
        np.testing.assert_allclose(scores, expected, rtol=0, atol=tolerance * scale)
        np.testing.assert_allclose(result.scores, scores / 13.0, rtol=1e-6)
        found[precision] = scores
        features = reward.image_features(images)  # what the judge of evaluation compares
        assert features.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)
    error = np.abs(found["bf16"] - found["float32"]).max() / scale
    assert error > 1e-5  # seen: 6e-4; what float32 differs from the naive by is 2e-8


def test_bf16_multiplies_in_bfloat16_and_sums_in_float32(tiny: Path) -> None:
    model, processor = open_clip(str(tiny))
    seen: dict[str, torch.dtype] = {}
    for name in (
        "vision_model.encoder.layers.0",
        "vision_model.encoder.layers.0.mlp.fc1",
        "visual_projection",
    ):
        model.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: seen.update(
                {name: (output[0] if type(output) is tuple else output).dtype}
            )
        )
    image = np.zeros((1, 64, 64, 3), np.uint8)
    clip_scores(model, processor, image, ["a cat"], "bf16")
    assert list(seen.values()) == [torch.bfloat16, torch.float32, torch.bfloat16]
    with torch.autocast("cpu", torch.bfloat16):  # a caller's own autocast does not reach the reward
        within = clip_scores(model, processor, image, ["a cat"], "float32")
    assert set(seen.values()) == {torch.float32}
    assert within == clip_scores(model, processor, image, ["a cat"])


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 64, 64, 3), np.float32),
        np.zeros((1, 3, 64, 64), np.uint8),
        np.zeros((2, 8, 8, 3), np.uint8),
    ],
)
def test_images_of_another_kind_are_refused_with_the_record(
    stand_in: PreferenceReward, images: np.ndarray
) -> None:
    with pytest.raises(RewardError, match="preference-test-00000"):
        stand_in.submit(images, records(["a photo of a cat"]))


def test_score_that_is_not_finite_raises_with_the_record(tiny: Path) -> None:
    reward = PreferenceReward(PreferenceParams(str(tiny), None, 26.0, "float32"), "cpu")
    with torch.no_grad():
        reward._model.visual_projection.weight.fill_(float("nan"))
    with pytest.raises(RewardError, match="preference-test-00000.*nan"):
        reward.submit(np.zeros((1, 64, 64, 3), np.uint8), records(["a cat"]))


def test_folder_without_a_model_names_the_parameter(tmp_path: Path) -> None:
    with pytest.raises(StarError, match="rewards.preference.path") as caught:
        PreferenceReward(PreferenceParams(str(tmp_path), None, 26.0, "float32"))
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- the committed stand-in


def test_reward_of_clean_images_is_near_one(stand_in: PreferenceReward) -> None:
    rng = np.random.default_rng(5)
    items = [sample(tag, rng) for tag in TAG_WEIGHTS for _ in range(4)]
    images = np.stack([item.image for item in items])
    scores = (
        stand_in.submit(images, records([item.metadata["prompt"] for item in items]))
        .result()
        .scores
    )
    assert 0.5 < scores.mean() < 1.2
    assert scores.min() > 0
