"""Images from outside are read as they are, or refused by name with the mend."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from star.system.errors import StarError
from star.system.images import read_image

SIDE = 64


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def test_an_image_is_read_as_it_was_written(tmp_path):
    Image.fromarray(noise(1)).save(tmp_path / "rgb.png")
    assert np.array_equal(read_image(tmp_path / "rgb.png", SIDE), noise(1))
    grey = noise(2)[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(read_image(tmp_path / "grey.png", SIDE), np.stack([grey] * 3, axis=-1))
    Image.fromarray(noise(3)).quantize(16).save(tmp_path / "palette.png")
    with Image.open(tmp_path / "palette.png") as image:
        assert image.mode == "P"
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(read_image(tmp_path / "palette.png", SIDE), expected)


def chunk(name: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + check


def bomb(path: Path) -> None:
    """Write a PNG of a few bytes whose header promises 60,000 x 60,000 pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(10**6)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b""))


def truncated(path: Path) -> None:
    Image.fromarray(noise(1)).save(path)
    path.write_bytes(path.read_bytes()[:-5000])


def flipped(path: Path) -> None:
    Image.fromarray(noise(1)).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def grey16(path: Path) -> None:
    Image.fromarray(noise(1)[..., 0].astype(np.uint16)).save(path)


BAD = {
    "empty": (lambda path: path.write_bytes(b""), "PNG"),
    "text": (lambda path: path.write_text("<svg onload='alert(1)'/>"), "PNG"),
    "jpeg": (lambda path: Image.fromarray(noise(1)).save(path, format="JPEG"), "PNG"),
    "truncated": (truncated, "PNG"),
    "flipped": (flipped, "PNG"),
    "bomb": (bomb, "pixels"),
    "large": (
        lambda path: Image.fromarray(np.zeros((64, 128, 3), np.uint8)).save(path),
        "128 x 64",
    ),
    "alpha": (lambda path: Image.fromarray(noise(1)).convert("RGBA").save(path), "RGBA"),
    "palette": (
        lambda path: Image.fromarray(noise(3)).quantize(16).save(path, transparency=0),
        "transparency",
    ),
    "sixteen": (grey16, "I;16"),
    "folder": (lambda path: path.mkdir(), "PNG"),
    "missing": (lambda path: None, "no such"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_refused_by_name(tmp_path, kind):
    make, said = BAD[kind]
    make(tmp_path / "bad.png")
    with pytest.raises(StarError, match=said) as error:
        read_image(tmp_path / "bad.png", SIDE)
    assert str(tmp_path / "bad.png") in str(error.value)


@pytest.mark.parametrize("length", [0, 1, 2])
@pytest.mark.parametrize(
    "name", ["iCCP", "tRNS", "pHYs", "gAMA", "cHRM", "sRGB", "zTXt", "iTXt", "acTL", "fcTL"]
)
def test_a_short_chunk_of_any_kind_is_no_traceback(tmp_path, name, length):
    path = tmp_path / "bad.png"
    Image.fromarray(noise(1)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[:33] + chunk(name.encode(), bytes(length)) + content[33:])
    try:
        assert np.array_equal(read_image(path, SIDE), noise(1))
    except StarError as error:
        assert str(path) in str(error)
