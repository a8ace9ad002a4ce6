"""The digest of a model's folder: what training changes shows, what decides nothing does not."""

import shutil

import numpy as np

from star.system.digests import folder_digest


def test_of_a_large_file_pieces_are_read(tmp_path):
    file = tmp_path / "one" / "part" / "model.safetensors"
    file.parent.mkdir(parents=True)
    weights = np.random.default_rng(0).standard_normal(2**21).astype(np.float32)  # 8 MiB
    weights.tofile(file)
    known = folder_digest(tmp_path / "one")
    (tmp_path / "one" / "README.md").write_text("a card")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert folder_digest(tmp_path / "two") == known, "wherever it lies"
    file.rename(file.with_name("other.safetensors"))
    assert folder_digest(tmp_path / "one") != known
    weights[2**20 : 2**20 + 4096] += 1e-3  # 16 KiB
    weights.tofile(tmp_path / "two" / "part" / "model.safetensors")
    assert folder_digest(tmp_path / "two") != known
