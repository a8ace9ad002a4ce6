"""`star maps`: what it draws of a prompt, and what it refuses before a model is opened."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from star.cli import main
from star.prompts.records import CoreSpan, PromptRecord
from star.report.maps import CELL, GAP, draw_maps
from star.system.images import MAP_SIDE
from tests.helpers.training import short_model

PROMPTS = ["a photo of a red car above a blue cat", 'a sign that says "STAR"']


@pytest.fixture
def params(default_values, write_params) -> str:
    default_values["model"] |= {"path": short_model(), "precision": "no"}
    default_values["rollout"] |= {"steps": 2, "window": [0, 1]}
    default_values["allocation"]["blocks"] = "all"
    return str(write_params(default_values))


def test_the_maps_of_prompts_are_drawn_and_repeat(tmp_path: Path, params: str) -> None:
    drawn = []
    for name, prompts, seed in (("a", PROMPTS, 1), ("b", PROMPTS, 1), ("c", PROMPTS[1:], 2)):
        output = tmp_path / f"new/{name}.png"
        options = ["--params", params, "--seed", str(seed), "--output", str(output)]
        assert main(["maps", *prompts, *options]) == 0
        drawn.append(Image.open(output))
    first, again, other = (np.asarray(image).astype(int) for image in drawn)
    assert np.array_equal(first, again)
    rows = first.shape[0] - other.shape[0]
    assert rows > MAP_SIDE, "a prompt more, a row more"
    assert np.abs(first[rows:] - other)[:, :CELL].max() > 50, "another image of the same prompt"


def test_a_map_is_bright_where_its_weight_is_great() -> None:
    weights = np.ones((1, 3, 16), np.float32)
    weights[0, 1, 5], weights[0, 2] = 3, 2
    record = PromptRecord("1", "ocr", 'say "HI"', {}, (CoreSpan(5, 7, "text"),))
    images = np.full((1, 64, 64, 3), 128, np.uint8)
    marked, plain = (
        np.asarray(draw_maps([record], {"text": weight}, images, weights, [1, 0.7, 0.3]))
        for weight in (1.0, 0.0)
    )
    grey = np.asarray(Image.fromarray(plain).convert("L")).astype(int)
    top = int(np.flatnonzero((plain[:, GAP] == 128).all(-1))[0])  # of the image
    one, spot, two = (grey[top : top + MAP_SIDE, GAP + t * CELL :][:, :MAP_SIDE] for t in (1, 2, 3))
    y, x = np.unravel_index(spot.argmax(), spot.shape)
    assert (y // 48, x // 48) == (1, 1)
    assert one.max() < two.min() < spot.max(), "all maps have one scale"
    assert (marked[:top] != plain[:top]).any(), "core words"


@pytest.mark.parametrize(
    ("prompt", "options", "said"),
    [
        ("a cat", ["--method", "ppo"], "no method 'ppo'"),
        ("a cat", ["--method", "flow_grpo"], "--method flow_grpo: all its maps are 1"),
        ("a cat", ["--adapter", "none"], "none: no pytorch_lora_weights.safetensors"),
        ("a cat", ["--output", "maps"], "--output maps: give the name of a PNG file"),
        ("?!", [], "prompt 1: '?!' has no word"),
        ("very " * 100 + 'long "END"', [], "prompt 1: no core content ('END') within 16 CLIP"),
    ],
)
def test_one_line_before_a_model_is_opened(
    prompt: str, options: list[str], said: str, monkeypatch, capsys, params: str, tmp_path: Path
) -> None:
    monkeypatch.setattr("star.report.maps.load_policy", None)
    output = tmp_path / "maps.png"
    assert main(["maps", prompt, "--params", params, "--output", str(output), *options]) == 1
    text = capsys.readouterr().err
    assert text.startswith(f"star maps: error: {said}") and text.count("\n") == 1
    assert not output.exists()
