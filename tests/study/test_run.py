"""What a run of the study watches besides its reward, and a run that is done."""

import dataclasses
import json

import numpy as np
import pytest

from star.config.params import StudyRun
from star.evaluation.drawing import ImageDrawer
from star.evaluation.judging import Judge
from star.evaluation.scoring import PlannedImage, Sample
from star.method.precision import resolve_precision
from star.miniature.world import UNNAMED, Scene, SceneObject, render
from star.policy.sd3 import load_policy
from star.prompts.core_content import extract_core
from star.prompts.prepare import prepare
from star.prompts.records import PromptRecord
from star.study.run import run_study, watch_figures
from star.training.trainer import Trainer
from tests.helpers.training import BASE, CPU, changed, short_model

PARAMS = changed(
    BASE,
    model={"path": short_model()},
    allocation={"blocks": "all"},
    rewards={"ocr": dataclasses.replace(BASE.rewards.ocr, workers=1)},
)
SIGNS = [("STAR", "STAR"), ("STAR", "STIR"), ("CAT", "DOG")]  # shown, wanted


@pytest.fixture(scope="module")
def drawer() -> ImageDrawer:
    policy, how = load_policy(PARAMS.model, CPU), PARAMS.evaluate
    return ImageDrawer(policy, how.steps, how.batch, PARAMS.seed)


def sample(number: int, shown: str, wanted: str) -> Sample:
    record = PromptRecord(f"ocr-{number}", "ocr", f'a sign that says "{wanted}"', {"text": wanted})
    return Sample(PlannedImage(number, record, 0, number), render(Scene(text=shown)), 0.0, {})


@pytest.mark.parametrize("reader", ["template", pytest.param("ppocrv6", marks=pytest.mark.slow)])
def test_watch_figures_of_signs_are_means_by_the_reader_that_is_asked_for(drawer, reader):
    samples = [sample(number, *texts) for number, texts in enumerate(SIGNS)]
    judge = Judge(PARAMS.rewards, reader, PARAMS.evaluate.batch)
    assert [reading.text for reading in judge.readings(samples)] == [shown for shown, _ in SIGNS]
    found = watch_figures(drawer, judge, "ocr", samples)
    assert found["second_reader"] == pytest.approx((1 + 0.75 + 0) / 3)
    wanted = {"second_reader", "preference", "edges", "dark", "diversity", "unnamed"}
    assert set(found) == wanted and found["unnamed"] == 0
    assert np.isfinite(list(found.values())).all()
    assert "second_reader" not in watch_figures(drawer, judge, "geneval", samples)


def test_unnamed_things_are_those_beyond_the_prompts_objects(drawer):
    cat = SceneObject("cat", "black", 47, 47, 24)
    thing = SceneObject(next(iter(UNNAMED)), "red", 17, 17, 24)
    metadata = {"include": [{"class": "cat", "count": 1}]}
    record = PromptRecord("geneval-0", "geneval", "a photo of a cat", metadata)
    shown = [Scene(objects=(cat,), unnamed=(thing,)), Scene(objects=(cat,)), Scene()]
    samples = [
        Sample(PlannedImage(number, record, 0, number), render(scene), 0.0, {})
        for number, scene in enumerate(shown)
    ]
    judge = Judge(PARAMS.rewards, "none", PARAMS.evaluate.batch)
    assert watch_figures(drawer, judge, "geneval", samples)["unnamed"] == (1 + 0 - 1) / 3
    assert watch_figures(drawer, judge, "geneval", samples[:2])["unnamed"] == 1 / 2
    geneval = dataclasses.replace(PARAMS.rewards.geneval, detector="mask2former")
    judge.rewards = dataclasses.replace(PARAMS.rewards, geneval=geneval)
    assert "unnamed" not in watch_figures(drawer, judge, "geneval", samples)


def test_a_run_that_is_done_and_started_again_writes_the_same_results_at_once(
    tmp_path, monkeypatch
):
    params = changed(
        PARAMS,
        rollout={"steps": 2, "window": [0, 1], "batch": 8},
        train={"prompts_per_epoch": 2, "group_size": 4, "updates_per_epoch": 1},
        study={"epochs": 1, "evaluate_every": 1},
        evaluate={"steps": 2, "images_per_prompt": {"geneval": 1}},
    )
    drawn = prepare("geneval", params.prompts, params.seed)[0][:2]
    records = [dataclasses.replace(record, core=extract_core(record)) for record in drawn]
    work, output = tmp_path / "geneval-star-0", tmp_path / "run.json"

    def run() -> None:
        study_run = StudyRun("geneval", "star", 0, 1e-3)
        run_study(params, study_run, records, records, work, output)

    run()
    made = output.read_bytes()
    said = json.loads(made)
    assert said["precision"] == resolve_precision("auto", CPU) and said["kernel"] == "plain"
    assert [file.name for file in work.glob("state-*")] == ["state-000001.safetensors"]
    output.unlink()
    monkeypatch.setattr(Trainer, "train_epoch", lambda self: pytest.fail("an epoch again"))
    run()
    assert output.read_bytes() == made
