"""GenEval's neural detector and its colours, against naive float64 and one-by-one references."""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
)

from star.cli import main
from star.config.params import TASKS, GenevalParams
from star.prompts.geneval import COCO_CLASSES, COLORS
from star.prompts.records import PromptRecord, read_records
from star.rewards import mask2former
from star.rewards.base import RewardError
from star.rewards.clip import Clip
from star.rewards.colors import ColorClassifier, object_crop
from star.rewards.detection import Detection
from star.rewards.factory import build_detector
from star.rewards.geneval import GenevalReward
from star.rewards.mask2former import Mask2FormerDetector, Sizes, find_objects, network_input
from star.system.errors import StarError
from star.system.images import read_image
from tests.helpers.random_clip import save_random_clip
from tests.helpers.rewards import geneval_params

STAND_IN = Path(__file__).parents[2] / "models" / "miniature-preference"
CLIP_SIDE = 32
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 48, 88, 3), dtype=np.uint8)
SQUARE = Sizes((32, 32), (32, 32), (32, 32))


def random_detector(labels: int) -> Mask2FormerForUniversalSegmentation:
    """A Mask2Former of few weights that is sure of its classes."""
    stages = [f"stage{number}" for number in range(1, 5)]
    swin = SwinConfig(
        embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=4, out_features=stages
    )
    widths = "feature_size mask_feature_size hidden_dim encoder_feedforward_dim dim_feedforward"
    small = {"encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2, "num_queries": 7}
    config = Mask2FormerConfig(
        backbone_config=swin, num_labels=labels, **dict.fromkeys(widths.split(), 32), **small
    )
    model = Mask2FormerForUniversalSegmentation(config).eval()
    with torch.no_grad():
        model.class_predictor.weight *= 40
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random detector and a random CLIP."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    random_detector(80).save_pretrained(folder / "detector")
    tokenizer = AutoTokenizer.from_pretrained(STAND_IN)
    square = {"height": CLIP_SIDE, "width": CLIP_SIDE}
    images = CLIPImageProcessorPil(size={"shortest_edge": CLIP_SIDE}, crop_size=square)
    save_random_clip(folder / "clip", CLIPProcessor(images, tokenizer), 24)
    return folder


@pytest.fixture(autouse=True)
def small_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of IMAGES' size are scaled to (70, 128), not to (727, 1333)."""
    monkeypatch.setattr(mask2former, "LONG_SIDE", 128)
    monkeypatch.setattr(mask2former, "SHORT_SIDE", 100)


def params_for(folder: Path, **changes: object) -> GenevalParams:
    values = {"detector": "mask2former", "batch": 2}
    values |= {"path": str(folder / "detector"), "color_path": str(folder / "clip")}
    values |= {"score_threshold": 0.05, "counting_threshold": 0.1}
    return geneval_params(**values | changes)


def record(index: int, *include: dict) -> PromptRecord:
    metadata = {"tag": "colors", "include": list(include)}
    return PromptRecord(f"test-{index}", "geneval", "a photo", metadata)


# ---------------------------------------------------------------- references


def weights(source: int, target: int) -> np.ndarray:
    """Bilinear interpolation between pixel centres as a matrix (target, source)."""
    matrix = np.zeros((target, source))
    for row in range(target):
        at = min(max((row + 0.5) * source / target - 0.5, 0), source - 1)
        low = int(at)
        matrix[row, low] += 1 - (at - low)
        matrix[row, min(low + 1, source - 1)] += at - low
    return matrix


def enlarge(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return weights(plane.shape[0], size[0]) @ plane @ weights(plane.shape[1], size[1]).T


def expected_objects(
    class_logits, mask_logits, sizes: Sizes, threshold: float
) -> list[tuple[int, float, np.ndarray]]:
    """(label, score, mask logits) of each object, best first, all in float64."""
    odds = np.exp(class_logits - class_logits.max(1, keepdims=True))
    shares = odds / odds.sum(1, keepdims=True)
    pairs = [(shares[q, c], q, c) for q in range(len(shares)) for c in range(shares.shape[1] - 1)]
    objects = []
    for share, query, label in sorted(pairs, reverse=True)[:100]:
        logits = enlarge(mask_logits[query], sizes.padded)[: sizes.scaled[0], : sizes.scaled[1]]
        logits = enlarge(logits, sizes.original)
        inside = logits[logits > 0]
        if inside.size and (score := share * np.mean(1 / (1 + np.exp(-inside)))) > threshold:
            objects.append((label, score, logits))
    return sorted(objects, key=lambda item: -item[1])


def check_objects(found: list[Detection], expected: list[tuple[int, float, np.ndarray]]) -> None:
    order = sorted(found, key=lambda detection: -detection.score)
    for detection, (label, score, logits) in zip(order, expected, strict=True):
        assert detection.name == COCO_CLASSES[label]
        assert detection.score == pytest.approx(score, rel=1e-4)
        clear = np.abs(logits) > 1e-4
        np.testing.assert_array_equal(detection.mask[clear], (logits > 0)[clear])
        y, x = np.nonzero(detection.mask)
        assert detection.box == (x.min(), y.min(), x.max() + 1, y.max() + 1)


def expected_similarities(folder: Path, crop: np.ndarray, name: str) -> list[float]:
    """CLIP by hand: one crop, one text at a time."""
    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    scale = CLIP_SIDE / min(crop.shape[:2])
    size = (int(scale * crop.shape[1]), int(scale * crop.shape[0]))
    resized = np.asarray(Image.fromarray(crop).resize(size, Image.Resampling.BICUBIC))
    top, left = (size[1] - CLIP_SIDE) // 2, (size[0] - CLIP_SIDE) // 2
    levels = resized[top : top + CLIP_SIDE, left : left + CLIP_SIDE] / 255
    pixels = torch.tensor((levels - CLIP_MEAN) / CLIP_STD).float().permute(2, 0, 1)[None]

    def unit_text(text: str) -> torch.Tensor:
        tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=24)
        feature = model.text_projection(model.text_model(**tokens).pooler_output)[0].double()
        return feature / feature.norm()

    cosines = []
    with torch.no_grad():
        image = model.visual_projection(model.vision_model(pixels).pooler_output)[0].double()
        for color in COLORS:
            texts = (f"{color} {name}", f"{color}-colored {name}", f"{color} object")
            mean = sum(unit_text(f"a photo of a {text}") for text in texts) / 3
            cosines.append(float(image @ mean / image.norm() / mean.norm()))
    return cosines


# ---------------------------------------------------------------- before the network


@pytest.mark.parametrize(
    ("size", "scaled", "padded"),
    [
        ((512, 512), (800, 800), (800, 800)),
        ((1024, 1024), (800, 800), (800, 800)),
        ((360, 640), (750, 1333), (768, 1344)),
        ((2000, 500), (1333, 333), (1344, 352)),
        ((64, 48), (1067, 800), (1088, 800)),
    ],
)
def test_image_is_scaled_to_fit_and_padded(
    size, scaled, padded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    pixels, sizes = network_input(torch.zeros((1, *size, 3), dtype=torch.uint8))
    assert sizes == Sizes(size, scaled, padded)
    assert pixels.shape == (1, 3, *padded)


def test_input_is_the_scaled_image_then_grey_normalised() -> None:
    pixels, sizes = network_input(torch.from_numpy(IMAGES))
    assert (sizes.scaled, sizes.padded) == ((70, 128), (96, 128))
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    levels = pixels.double().permute(0, 2, 3, 1).numpy() * std + mean
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)
    for image, level in zip(IMAGES, levels, strict=True):
        for channel in range(3):
            exact = enlarge(image[..., channel].astype(float), sizes.scaled)
            assert np.abs(level[:70, :, channel] - exact).max() <= 0.5 + 1e-4
    np.testing.assert_allclose(levels[:, 70:], 128, atol=1e-4)


# ---------------------------------------------------------------- after the network


@pytest.mark.parametrize("threshold", [0.0, 0.02, 0.3])
@pytest.mark.parametrize(
    "sizes",
    [
        Sizes((48, 88), (70, 128), (96, 128)),
        Sizes((40, 40), (32, 32), (32, 32)),
        Sizes((90, 30), (60, 20), (64, 32)),
    ],
)
def test_objects_are_those_of_the_reference(sizes: Sizes, threshold: float) -> None:
    rng = np.random.default_rng(5)
    class_logits = rng.normal(0, 3, (9, 81))
    class_logits[2, 80] = 30  # sure of nothing
    mask_logits = rng.normal(0, 4, (9, sizes.padded[0] // 4, sizes.padded[1] // 4))
    mask_logits[int(class_logits[:, :80].max(1).argmax())] = -1.0  # the surest object has no pixels
    given = (torch.tensor(logits).float() for logits in (class_logits, mask_logits))
    expected = expected_objects(class_logits, mask_logits, sizes, threshold)
    assert 0 < len(expected) < 100  # of the hundred, the pairs of the query without pixels are gone
    check_objects(find_objects(*given, sizes, threshold), expected)


def test_padding_is_cut_off_before_the_mask_is_measured() -> None:
    """An object in the padding alone is none; one that reaches into it ends at the image's edge."""
    class_logits, mask_logits = torch.zeros(2, 81), torch.full((2, 32, 32), -5.0)
    class_logits[[0, 1], [15, 16]] = 20.0
    mask_logits[0, 22:, :] = 5.0
    mask_logits[1, 10:, 4:9] = 5.0
    sizes = Sizes((20, 32), (20, 32), (32, 32))
    (dog,) = find_objects(class_logits, mask_logits, sizes, 0.3)
    assert (dog.name, dog.box, dog.mask.shape) == ("dog", (4, 10, 9, 20), (20, 32))
    assert dog.score == pytest.approx(1 / (1 + np.exp(-5)), rel=1e-5)


def test_a_hundred_pairs_are_looked_at_and_nothing_likely_is_an_empty_list() -> None:
    assert len(find_objects(torch.randn(2, 81), torch.ones(2, 8, 8), SQUARE, 0.0)) == 100
    assert find_objects(torch.zeros(3, 81), torch.ones(3, 8, 8), SQUARE, 0.3) == []


def test_labels_are_named_by_their_index() -> None:
    """COCO's own names of 64 to 66 are mouse, remote and keyboard."""
    class_logits = torch.zeros(5, 81)
    class_logits[range(5), [0, 64, 65, 66, 79]] = 20.0
    names = {d.name for d in find_objects(class_logits, torch.ones(5, 8, 8), SQUARE, 0.3)}
    assert names == {"person", "computer mouse", "tv remote", "computer keyboard", "toothbrush"}


# ---------------------------------------------------------------- colours


def test_crop_is_the_box_with_grey_outside_the_mask() -> None:
    rng = np.random.default_rng(1)
    image, mask = rng.integers(0, 256, (6, 9, 3), dtype=np.uint8), rng.random((6, 9)) > 0.5
    grey = image.copy()
    crop = object_crop(image, Detection("cat", 1.0, (2.0, 1.0, 7.0, 5.0), mask, None))
    np.testing.assert_array_equal(image, grey)
    grey[~mask] = 0x99
    assert crop.dtype == np.uint8
    np.testing.assert_array_equal(crop, grey[1:5, 2:7])


def test_similarities_are_those_of_clip_by_hand(models: Path) -> None:
    rng = np.random.default_rng(3)
    sizes = ((40, 17), (3, 50), (1, 1), (32, 32))  # three rows or one could be taken for channels
    crops = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    names = ["cat", "wine glass", "cat", "orange"]
    classifier = ColorClassifier(Clip(str(models / "clip")))
    found = classifier.similarities(crops, names)
    assert found.shape == (4, 10) and found.dtype == np.float32
    pairs = zip(crops, names, strict=True)
    expected = [expected_similarities(models / "clip", crop, name) for crop, name in pairs]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert classifier.similarities([], []).shape == (0, 10)
    # The other backend imports torchvision.
    assert classifier.clip.processor.image_processor.backend == "pil"


# ---------------------------------------------------------------- the detector


def test_products_are_exact_inside_and_as_before_afterwards(models: Path) -> None:
    detector, seen = Mask2FormerDetector(params_for(models), "cpu"), []
    detector._model.register_forward_hook(
        lambda *_: seen.append(torch.get_float32_matmul_precision())
    )
    torch.set_float32_matmul_precision("high")
    try:
        detector.detect(IMAGES[:1])
        assert seen == ["highest"] and torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_detections_and_scores_of_images_with_models_from_disk(models: Path) -> None:
    """Images in, GenEval scores out; the batch of two does not divide the three images."""
    params = params_for(models)
    detector = build_detector(params)
    found = detector.detect(IMAGES)
    model = Mask2FormerForUniversalSegmentation.from_pretrained(models / "detector").eval()
    records, scores = [], []
    for index, (image, objects) in enumerate(zip(IMAGES, found, strict=True)):
        pixels, sizes = network_input(torch.from_numpy(image[None]))
        with torch.no_grad():
            output = model(pixel_values=pixels)
        logits = (output.class_queries_logits[0], output.masks_queries_logits[0])
        expected = expected_objects(*(part.double().numpy() for part in logits), sizes, 0.05)
        assert expected
        check_objects(objects, expected)
        assert [d.score for d in objects] == sorted((d.score for d in objects), reverse=True)
        first = objects[0]
        crop = object_crop(image, first)
        best = int(np.argmax(expected_similarities(models / "clip", crop, first.name)))
        assert first.color == COLORS[best]
        same = [d.color for d in objects if d.name == first.name]
        scores.append((1 + same.count(first.color) / len(same)) / 2)
        wanted = {"class": first.name, "count": len(same), "color": first.color}
        records.append(record(index, wanted))
    result = GenevalReward(detector, params).submit(IMAGES, records).result()
    np.testing.assert_allclose(result.scores, scores, rtol=1e-6)
    assert [detail["strict"] for detail in result.details] == [score == 1 for score in scores]
    assert json.loads(json.dumps(result.details)) == result.details


def test_only_classes_whose_colour_is_asked_for_go_through_clip(models: Path, monkeypatch) -> None:
    detector = build_detector(params_for(models))
    everything = detector.detect(IMAGES)
    name = everything[0][0].name
    compared: list[str] = []
    similarities = detector._colors.similarities

    def counted(crops, names):
        compared.extend(names)
        return similarities(crops, names)

    monkeypatch.setattr(detector._colors, "similarities", counted)
    found = detector.detect(IMAGES, [{name}, set(), {"no such class"}])
    assert compared == [name] * sum(d.name == name for d in everything[0])
    for image, (objects, full) in enumerate(zip(found, everything, strict=True)):
        for detection, other in zip(objects, full, strict=True):
            wanted = other.color if image == 0 and other.name == name else None
            assert (detection.name, detection.score) == (other.name, other.score)
            assert detection.color == wanted


def network_that_says(class_logits: torch.Tensor, mask_logits: torch.Tensor) -> object:
    """A stand-in for Mask2Former whose images have the given logits, in turn."""
    images = iter(zip(class_logits, mask_logits, strict=True))

    class Network:
        device = torch.device("cpu")

        def __call__(self, pixel_values: torch.Tensor) -> SimpleNamespace:
            logits = zip(*(next(images) for _ in pixel_values), strict=True)
            classes, masks = map(torch.stack, map(list, logits))
            return SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)

    return Network()


def test_what_cannot_count_is_left_out(models: Path) -> None:
    """Of seventeen cats and a dog above the lower threshold and a cow below it."""
    params = params_for(models, score_threshold=0.3, counting_threshold=0.9)
    detector = Mask2FormerDetector(params, "cpu")
    shares = torch.tensor([0.9 - 0.02 * i for i in range(17)] + [0.35, 0.29])
    class_logits = torch.full((1, 19, 81), -30.0)
    class_logits[0, range(19), [15] * 17 + [16, 19]] = shares.log()
    class_logits[0, :, 80] = (1 - shares).log()
    detector._model = network_that_says(class_logits, torch.full((1, 19, 24, 32), 20.0))
    (found,) = detector.detect(IMAGES[:1])
    assert [d.name for d in found] == ["cat"] * 16 + ["dog"]
    assert [d.score for d in found] == pytest.approx([*shares[:16].tolist(), 0.35], abs=1e-5)
    assert all(d.color in COLORS for d in found)


def test_output_that_is_not_finite_raises_with_the_record(models: Path) -> None:
    params = params_for(models)
    detector = Mask2FormerDetector(params, "cpu")
    reward = GenevalReward(detector, params)
    records = [record(i, {"class": "cat", "count": 1, "color": "red"}) for i in range(3)]
    class_logits, mask_logits = torch.zeros(3, 2, 81), torch.ones(3, 2, 24, 32)
    class_logits[:, :, 15] = 20.0
    broken = mask_logits.clone()
    broken[2, 1, 3, 3] = float("nan")
    detector._model = network_that_says(class_logits, broken)
    with pytest.raises(RewardError, match="^test-2: .*detector"):
        reward.submit(IMAGES, records)
    detector._model = network_that_says(class_logits, mask_logits)
    with torch.no_grad():
        detector._colors.clip.model.visual_projection.weight.fill_(float("nan"))
    with pytest.raises(RewardError, match="^test-0: .*colour model"):
        reward.submit(IMAGES, records)


@pytest.mark.slow
def test_an_evaluation_in_the_world_of_coco(
    models: Path, tmp_path: Path, default_values: dict, write_params
) -> None:
    """The commands from parameters to scores, which are those of the images that they leave."""
    params = params_for(models)
    few = dict.fromkeys(TASKS, {"train": 6, "test": 6, "train_file": None, "test_file": None})
    default_values["prompts"] = {"world": "coco", **few}
    default_values["rewards"]["geneval"] = dataclasses.asdict(params)
    short = {"steps": 4, "batch": 6, "bootstrap": 100, "second_reader": "none"}
    default_values["evaluate"] |= short
    file, out = str(write_params(default_values)), tmp_path / "out"
    for task in TASKS:
        train, test = (str(tmp_path / task / f"{split}.jsonl") for split in ("train", "test"))
        sets = ["--train", train, "--test", test]
        assert main(["prompts", "--params", file, "--task", task, *sets]) == 0
    places = ["--prompts-dir", str(tmp_path), "--output", str(out)]
    places += ["--state", str(tmp_path / "state")]
    assert main(["evaluate", "--params", file, "--checkpoint", "base", *places]) == 0

    records = read_records(tmp_path / "geneval" / "test.jsonl")
    images = np.stack([read_image(out / "images" / f"{record.id}_0.png", 64) for record in records])
    reward = GenevalReward(build_detector(params), params)
    results = [reward.submit(images[part], records[part]) for part in (slice(4), slice(4, 6))]
    details = [detail for result in results for detail in result.result().details]
    assert all(detail["found"] for detail in details)
    lines = [json.loads(line) for line in (out / "images.jsonl").read_text().splitlines()]
    assert [line["detail"] for line in lines if line["task"] == "geneval"] == details


# ---------------------------------------------------------------- models that do not open


def without_a_bias(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["class_predictor.bias"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("labels", "spoil", "named"),
    [
        (133, lambda folder: None, "133 classes"),
        (80, without_a_bias, "class_predictor.bias"),
        (80, pickled, "safetensors"),
    ],
)
def test_a_detector_that_is_not_whole_is_refused(models, tmp_path, labels, spoil, named) -> None:
    random_detector(labels).save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(StarError, match=rf"^rewards.geneval.path[^\n]*{named}[^\n]*$"):
        build_detector(params_for(models, path=str(tmp_path)))


@pytest.mark.parametrize(
    ("key", "path", "named"),
    [
        ("path", "empty", "config.json"),
        ("path", "clip", "clip"),
        ("color_path", "detector", "mask2former"),
        ("path", None, "nobody/no-such-detector"),
    ],
)
def test_a_model_of_another_kind_or_of_nobody_is_refused(
    models: Path, monkeypatch: pytest.MonkeyPatch, key: str, path: str | None, named: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (models / "empty").mkdir(exist_ok=True)
    given = str(models / path) if path else "nobody/no-such-detector"
    wanted = rf"^rewards.geneval.{key} {re.escape(repr(given))}[^\n]*$"
    with pytest.raises(StarError, match=wanted) as caught:
        build_detector(params_for(models, **{key: given}))
    assert named in str(caught.value)
