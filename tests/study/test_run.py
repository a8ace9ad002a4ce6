"""What a run of the study watches besides its reward."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from star.config.params import load_params
from star.evaluation.evaluate import Sample
from star.evaluation.held_out_reader import read_again
from star.method.precision import resolve_precision
from star.miniature.world import Scene, render
from star.policy.sd3 import load_policy
from star.prompts.core_content import with_core
from star.prompts.prepare import prepare
from star.prompts.records import PromptRecord
from star.study.run import run_study, watch
from star.training.trainer import Trainer


@pytest.fixture(scope="module")
def trainer() -> SimpleNamespace:
    params = load_params(Path("params.yaml"))
    return SimpleNamespace(policy=load_policy(params.model, torch.device("cpu")))


@pytest.mark.parametrize("reader", ["template", "ppocrv6"])
def test_watch_figures_of_signs_are_means_and_the_second_reader_is_the_parameters(
    trainer, reader, monkeypatch
) -> None:
    params = load_params(Path("params.yaml"))
    params = dataclasses.replace(
        params, study=dataclasses.replace(params.study, second_reader=reader)
    )
    asked = []

    def watched(name, images, records, *options):
        asked.append((name, *options))
        return read_again(name, images, records, *options)

    monkeypatch.setattr("star.study.run.read_again", watched)
    signs = [("STAR", "STAR"), ("STAR", "STIR"), ("CAT", "DOG")]
    records = [
        PromptRecord(f"ocr-test-{k:05d}", "ocr", f'a sign that says "{wanted}"', {"text": wanted})
        for k, (_, wanted) in enumerate(signs)
    ]
    images = [render(Scene(text=shown)) for shown, _ in signs]
    samples = [Sample(k, records[k], 0, k, images[k], 0.0, {}) for k in range(len(signs))]
    found = watch(trainer, params, "ocr", samples)
    assert asked == [(reader, 1, params.rewards.timeout, params.evaluate.batch)]
    assert found["second_reader"] == pytest.approx((1 + 0.75 + 0) / 3)
    assert set(found) == {"second_reader", "preference", "edges", "dark", "diversity"}
    assert np.isfinite(list(found.values())).all()
    assert "second_reader" not in watch(trainer, params, "geneval", samples)


def test_a_run_that_is_done_and_started_again_writes_the_same_results_at_once(
    tmp_path, monkeypatch
) -> None:
    base = load_params(Path("params.yaml"))
    params = dataclasses.replace(
        base,
        rollout=dataclasses.replace(base.rollout, steps=2, window=[0, 1], batch=8),
        train=dataclasses.replace(
            base.train, prompts_per_epoch=2, group_size=4, updates_per_epoch=1
        ),
        study=dataclasses.replace(base.study, epochs=1, evaluate_every=1),
        evaluate=dataclasses.replace(base.evaluate, steps=2, images_per_prompt={"geneval": 1}),
    )
    records = with_core(prepare("geneval", params.prompts, params.seed)[0][:2])
    work, output = tmp_path / "geneval-star-0", tmp_path / "run.json"
    monkeypatch.setattr("star.study.run.watch", lambda *_: {})

    def run() -> None:
        run_study(params, "geneval", "star", 0, 1e-3, records, records, work, output)

    run()
    made = output.read_bytes()
    said = json.loads(made)
    assert (
        said["precision"] == resolve_precision("auto", torch.device("cpu"))
        and said["kernel"] == "plain"
    )
    assert [file.name for file in work.glob("state-*")] == ["state-000001.safetensors"]
    output.unlink()
    monkeypatch.setattr(Trainer, "train_epoch", lambda self: pytest.fail("an epoch again"))
    run()
    assert output.read_bytes() == made
