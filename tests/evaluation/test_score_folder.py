"""Images from outside: a folder scored as an evaluation scores its own, and every bad image
named and refused."""

import dataclasses
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from star.cli import main
from star.config.params import load_params
from star.evaluation.score_folder import score_folder
from star.prompts.prepare import prepare
from star.prompts.records import write_records
from star.system.errors import StarError
from star.system.images import read_image

SIDE = 64


@pytest.fixture(scope="module")
def params():
    base = load_params(Path("params.yaml"))
    few = {
        task: dataclasses.replace(getattr(base.prompts, task), train=4, test=3)
        for task in base.runs
    }
    looks = dataclasses.replace(
        base.evaluate, batch=4, images_per_prompt=dict.fromkeys(base.runs, 2), bootstrap=50
    )
    return dataclasses.replace(
        base, prompts=dataclasses.replace(base.prompts, **few), evaluate=looks
    )


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def folder_of(path: Path, records, count: int = 2) -> Path:
    path.mkdir()
    for i, record in enumerate(records):
        for k in range(count):
            Image.fromarray(noise(100 * i + k)).save(path / f"{record.id}_{k}.png")
    return path


def test_a_image_is_read_as_it_was_written(tmp_path):
    Image.fromarray(noise(1)).save(tmp_path / "rgb.png")
    assert np.array_equal(read_image(tmp_path / "rgb.png", SIDE), noise(1))
    grey = noise(2)[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(read_image(tmp_path / "grey.png", SIDE), np.stack([grey] * 3, axis=-1))
    Image.fromarray(noise(3)).quantize(16).save(tmp_path / "palette.png")
    with Image.open(tmp_path / "palette.png") as image:
        assert image.mode == "P"
        assert np.array_equal(
            read_image(tmp_path / "palette.png", SIDE), np.asarray(image.convert("RGB"))
        )


def bomb(path: Path) -> None:
    """A PNG of a few bytes whose header promises 60,000 x 60,000 pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )


def large(path: Path) -> None:
    Image.fromarray(np.zeros((SIDE, 2 * SIDE, 3), np.uint8)).save(path)


def truncated(path: Path) -> None:
    Image.fromarray(noise(1)).save(path)
    path.write_bytes(path.read_bytes()[:-5000])


def flipped(path: Path) -> None:
    Image.fromarray(noise(1)).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def clear_palette(path: Path) -> None:
    Image.fromarray(noise(3)).quantize(16).save(path, transparency=0)


BAD = {
    "empty": (lambda path: path.write_bytes(b""), "not a readable PNG"),
    "text": (lambda path: path.write_text("<svg onload='alert(1)'/>"), "not a readable PNG"),
    "jpeg": (
        lambda path: Image.fromarray(noise(1)).save(path, format="JPEG"),
        "not a readable PNG",
    ),
    "truncated": (truncated, "not a readable PNG"),
    "flipped": (flipped, "not a readable PNG"),
    "bomb": (bomb, "pixels"),
    "large": (large, "128 x 64 pixels; model.resolution is 64"),
    "alpha": (
        lambda path: Image.fromarray(noise(1)).convert("RGBA").save(path),
        "mode RGBA; give 8-bit RGB",
    ),
    "palette": (clear_palette, "transparency; give 8-bit RGB"),
    "sixteen": (
        lambda path: Image.fromarray(noise(1)[..., 0].astype(np.uint16)).save(path),
        "mode I;16; give 8-bit",
    ),
    "folder": (lambda path: path.mkdir(), "is missing|are missing|not a readable PNG"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_refused_by_name_with_the_mend(tmp_path, kind):
    make, message = BAD[kind]
    make(tmp_path / "bad.png")
    with pytest.raises(StarError, match=message) as error:
        read_image(tmp_path / "bad.png", SIDE)
    assert str(tmp_path / "bad.png") in str(error.value)


@pytest.mark.parametrize("length", [0, 1, 2])
@pytest.mark.parametrize(
    "name",
    [b"iCCP", b"tRNS", b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"zTXt", b"iTXt", b"acTL", b"fcTL"],
)
def test_a_short_chunk_of_any_kind_is_no_traceback(tmp_path, name, length):
    path = tmp_path / "bad.png"
    Image.fromarray(noise(1)).save(path)
    content, chunk = path.read_bytes(), name + bytes(length)
    chunk = struct.pack(">I", length) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(content[:33] + chunk + content[33:])  # after the header
    try:
        assert np.array_equal(read_image(path, SIDE), noise(1))
    except StarError as error:
        assert str(path) in str(error)
    if name == b"iCCP" and length < 2:
        with pytest.raises(StarError, match="not a readable PNG"):
            read_image(path, SIDE)


def test_a_bad_image_costs_no_scoring(params, tmp_path, monkeypatch):
    records = prepare("ocr", params.prompts, params.seed)[1]
    folder = folder_of(tmp_path / "images", records)
    truncated(folder / f"{records[-1].id}_1.png")
    monkeypatch.setattr(
        "star.evaluation.score_folder.build_reward", lambda *_: pytest.fail("a reward was built")
    )
    with pytest.raises(StarError, match=f"{records[-1].id}_1.png: not a readable PNG"):
        score_folder(params, "ocr", records, folder, tmp_path / "out")
    (folder / f"{records[-1].id}_1.png").unlink()
    with pytest.raises(
        StarError, match=rf"1 of 6 images are missing, the first is {records[-1].id}_1.png"
    ):
        score_folder(params, "ocr", records, folder, tmp_path / "out")
    with pytest.raises(StarError, match=f"record {records[0].id}: not a prompt of geneval"):
        score_folder(params, "geneval", records, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_scores_a_folder(params, tmp_path, capsys):
    defaults = load_params(Path("params.yaml"))
    records = prepare("geneval", defaults.prompts, defaults.seed)[1][:2]
    write_records(tmp_path / "test.jsonl", records)
    count = defaults.evaluate.images_per_prompt["geneval"]
    folder = folder_of(tmp_path / "images", records, count)
    arguments = [
        "--task",
        "geneval",
        "--prompts",
        str(tmp_path / "test.jsonl"),
        "--images",
        str(folder),
    ]
    assert main(["score", *arguments, "--output", str(tmp_path / "out")]) == 0
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    lines = [
        json.loads(line) for line in (tmp_path / "out" / "images.jsonl").read_text().splitlines()
    ]
    assert list(scores["benchmarks"]) == ["geneval"] and scores["images"] == str(folder)
    assert scores["benchmarks"]["geneval"]["strict"]["mean"] == 0  # noise shows nothing
    assert [line["id"] for line in lines] == sorted(
        (r.id for r in records for _ in range(len(lines) // 2)), key=[r.id for r in records].index
    )
    assert '"geneval_strict"' in capsys.readouterr().out
