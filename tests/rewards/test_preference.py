"""The preference formula, the committed stand-in, and the pairs it was trained on."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, CLIPModel, CLIPProcessor

from star.config.params import PreferenceParams
from star.miniature import world
from star.pretraining import preference
from star.pretraining.preference_card import pair_accuracy
from star.pretraining.preference_pairs import (
    ATTRIBUTE_SIZES,
    CORRUPTIONS,
    WRONG_KINDS,
    caption,
    corrupt,
    sample,
    sample_pairs,
    scene_attributes,
    wrong_caption,
)
from star.prompts.records import PromptRecord
from star.rewards.base import RewardError
from star.rewards.clip import Clip
from star.rewards.preference import PreferenceReward, clip_scores
from star.system.errors import StarError
from tests.helpers.random_clip import save_random_clip

STAND_IN = Path(__file__).parents[2] / "models" / "miniature-preference"
TINY = preference.PreferenceConfig(
    steps=4,
    batch=8,
    wrong=2,
    width=32,
    vision_layers=1,
    text_layers=1,
    save_every=1,
    warmup=1,
    decay_share=0,
    held_out=3,
)
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


def test_stand_in_ranks_fresh_pairs() -> None:
    accuracy = pair_accuracy(STAND_IN, 24, seed=77)
    assert np.mean(list(accuracy.captions.values())) > 0.9
    assert np.mean(list(accuracy.images.values())) > 0.9
    assert np.mean(list(accuracy.degrees.values())) > 0.85
    assert min(accuracy.captions.values()) > 0.7


def test_reward_of_clean_images_is_near_one(stand_in: PreferenceReward) -> None:
    rng = np.random.default_rng(5)
    items = [sample(tag, rng) for tag in WRONG_KINDS for _ in range(4)]
    prompts = [item.metadata["prompt"] for item in items]
    images = np.stack([item.image for item in items])
    scores = stand_in.submit(images, records(prompts)).result().scores
    assert 0.5 < scores.mean() < 1.2
    assert scores.min() > 0


def test_stand_in_is_small_half_precision_and_says_what_it_is() -> None:
    tensors = load_file(STAND_IN / "model.safetensors")
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    assert kinds == {torch.float16}
    assert sum(path.stat().st_size for path in STAND_IN.iterdir()) < 3e6
    assert "synthetic stand-in" in (STAND_IN / "README.md").read_text().splitlines()[0]
    published = json.loads((STAND_IN / "accuracy.json").read_text())
    assert set(published["images"]) == set(CORRUPTIONS)
    assert published["pairs_per_kind"] >= 500


# ---------------------------------------------------------------- pairs


@pytest.mark.parametrize("tag", WRONG_KINDS)
def test_caption_writes_the_prompt_and_a_wrong_one_differs(tag: str) -> None:
    rng = np.random.default_rng(6)
    for _ in range(30):
        item = sample(tag, rng)
        assert caption(item.metadata) == item.metadata["prompt"]
        for kind in WRONG_KINDS[tag]:
            before = json.dumps(item.metadata)
            assert wrong_caption(item, kind, rng) != item.metadata["prompt"]
            assert json.dumps(item.metadata) == before


def test_unknown_kind_of_wrong_caption_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="smell"):
        wrong_caption(sample("colors", rng), "smell", rng)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruption_grows_with_severity_and_leaves_its_input(kind: str) -> None:
    rng = np.random.default_rng(7)
    distances = {0.0: 0.0, 1.0: 0.0}
    for index in range(20):
        item, other = sample("color_attr", rng), sample("counting", rng)
        before = item.image.copy()
        for severity in distances:
            worse = corrupt(item.image, kind, severity, np.random.default_rng(index), other.image)
            assert worse.shape == item.image.shape and worse.dtype == np.uint8
            distances[severity] += float(np.abs(worse.astype(int) - item.image).mean())
        np.testing.assert_array_equal(item.image, before)
    assert 0 < distances[0.0] < distances[1.0]


def test_attributes_name_the_places_in_reading_order() -> None:
    left, right = (
        world.SceneObject(name, color, x, 32, 25)
        for name, color, x in (("cat", "red", 17), ("car", "blue", 47))
    )
    attributes = scene_attributes(world.Scene(objects=(right, left)))
    assert attributes[:3] == [2, world.CLASSES.index("cat"), world.CLASSES.index("car")]
    assert attributes[5:7] == [0, 4]  # red, blue
    assert scene_attributes(world.Scene(text="AC"))[9:] == [0, 2, 26, 26, 26]
    for attributes in (
        scene_attributes(sample(tag, np.random.default_rng(1)).scene) for tag in WRONG_KINDS
    ):
        assert len(attributes) == len(ATTRIBUTE_SIZES)
        assert all(value < size for value, size in zip(attributes, ATTRIBUTE_SIZES, strict=True))


def test_batches_are_reproducible() -> None:
    first, again = (sample_pairs(6, 2, 0.5, np.random.default_rng([0, 1])) for _ in range(2))
    np.testing.assert_array_equal(first.better, again.better)
    np.testing.assert_array_equal(first.worse, again.worse)
    assert first.captions == again.captions and first.wrong == again.wrong
    assert len(first.worse) == 3 and all(len(texts) == 2 for texts in first.wrong)


# ---------------------------------------------------------------- training


def test_resumed_training_equals_uninterrupted_training(tmp_path: Path) -> None:
    preference.pretrain_preference(tmp_path / "whole", tmp_path / "work", TINY)
    shutil.copytree(tmp_path / "work" / "tokenizer", tmp_path / "resumed" / "tokenizer")
    preference.pretrain_preference(
        tmp_path / "part", tmp_path / "resumed", dataclasses.replace(TINY, steps=2)
    )
    preference.pretrain_preference(tmp_path / "part", tmp_path / "resumed", TINY)
    whole, part = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "part"))
    assert all(torch.equal(whole[name], part[name]) for name in whole)
    start = (
        preference._new_model(preference._new_processor(tmp_path / "work").tokenizer, TINY)
        .half()
        .state_dict()
    )
    still = [name for name, tensor in whole.items() if torch.equal(tensor, start[name])]
    assert still == ["logit_scale"]


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    preference.pretrain_preference(
        tmp_path / "out", tmp_path / "work", dataclasses.replace(TINY, steps=40, log_every=10)
    )
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    totals = [
        sum(line[key] for key in ("contrast", "captions", "corrupted", "attributes"))
        for line in lines
    ]
    assert totals[-1] < totals[0]
