"""What a run of the study watches besides its reward."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from star.evaluation import Sample
from star.miniature.world import Scene, render
from star.params import load_params
from star.policy import load_policy
from star.records import PromptRecord
from star.second_reader import read_again
from star.study import watch


@pytest.fixture(scope="module")
def trainer() -> SimpleNamespace:
    params = load_params(Path("params.yaml"))
    return SimpleNamespace(policy=load_policy(params.model, torch.device("cpu")))


@pytest.mark.parametrize("reader", ["template", "ppocrv6"])
def test_watch_figures_of_signs_are_means_and_the_second_reader_is_the_parameters(trainer, reader, monkeypatch) -> None:
    params = load_params(Path("params.yaml"))
    params = dataclasses.replace(params, study=dataclasses.replace(params.study, second_reader=reader))
    asked = []

    def watched(name, *rest, **options):
        asked.append(name)
        return read_again(name, *rest, **options)

    monkeypatch.setattr("star.study.read_again", watched)
    signs = [("STAR", "STAR"), ("STAR", "STIR"), ("CAT", "DOG")]
    records = [
        PromptRecord(f"ocr-test-{k:05d}", "ocr", f'a sign that says "{wanted}"', {"text": wanted})
        for k, (_, wanted) in enumerate(signs)
    ]
    pictures = [render(Scene(text=shown)) for shown, _ in signs]
    samples = [Sample(k, records[k], 0, k, pictures[k], 0.0, {}) for k in range(len(signs))]
    found = watch(trainer, params, "ocr", samples)
    assert asked == [reader]
    assert found["second_reader"] == pytest.approx((1 + 0.75 + 0) / 3)
    assert set(found) == {"second_reader", "preference", "edges", "dark", "diversity"}
    assert np.isfinite(list(found.values())).all()
    assert "second_reader" not in watch(trainer, params, "geneval", samples)
