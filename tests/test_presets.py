"""Every preset is complete and consistent, its counts are those that it says, and presets differ where they should."""

import re
import shutil
from pathlib import Path

import pytest
from dvc.repo import Repo

from star.epoch import check_processes
from star.params import load_params
from star.plan import make_plan
from star.values import read_values

FILES = sorted(Path("presets").glob("*.yaml"))
SCALES = {"1gpu": 1, "8gpu": 8, "32gpu": 32}
TASKS = ("geneval", "ocr", "preference")


def test_there_is_one_for_each_scale_and_task():
    assert {file.stem for file in FILES} == {f"sd35m-{scale}-{task}" for scale in SCALES for task in TASKS}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_preset_is_complete_consistent_and_says_what_it_costs(file):
    params = load_params(file)
    _, scale, task = file.stem.split("-")
    check_processes(params, SCALES[scale])
    assert [name for name, methods in params.runs.items() if methods] == [task]
    text = re.sub(r"\n# ?", " ", file.read_text(encoding="utf-8"))
    assert f"cp presets/{file.name} params.yaml" in text
    images, updates = params.images_per_epoch * params.train.epochs, 2 * params.train.epochs
    assert f"{params.images_per_epoch:,} images in {params.train.prompts_per_epoch} groups, 2 updates" in text
    assert f"All: {images:,} images, {updates:,} updates" in text
    plan = make_plan(params, [task], SCALES[scale], tflops=300)
    hours, cache = plan.tasks[task].hours, plan.tasks[task].prompt_cache
    assert hours is not None and cache is not None and plan.host is not None
    assert f"on disk, {cache / 1e9:.0f} GB for this training" in text
    if scale != "1gpu":
        own, machine = plan.host / 2**30, 8 * plan.host / 2**30
        assert f"{own:.0f} GiB a process by `star plan`, so {machine:.0f} GiB a machine" in text
        sizes = {int(size) for size in re.findall(r"mem_mb=(\d+)", text)}
        assert sizes == {240000} and machine * 2**30 < 240000e6
    else:
        assert plan.host < 64000e6  # the profiles' own
    assert "for task in geneval ocr preference; do star prompts --task $task" in text
    assert [getattr(params.prompts, name).test_file.sha256 for name in TASKS] == [None] * 3
    assert f"A training is {(hours['rollout'] + hours['update']) * SCALES[scale]:,.0f} GPU hours" in text


def differing(a, b, key=""):
    if isinstance(a, dict) and isinstance(b, dict):
        assert list(a) == list(b), key
        return [found for name in a for found in differing(a[name], b[name], f"{key}.{name}" if key else name)]
    return [] if a == b else [key]


@pytest.mark.parametrize("scale", SCALES)
def test_tasks_of_a_scale_differ_in_what_is_trained_and_in_the_penalty(scale):
    values = {task: read_values(Path(f"presets/sd35m-{scale}-{task}.yaml")) for task in TASKS}
    runs = ["runs.geneval", "runs.ocr", "report.title"]
    assert differing(values["geneval"], values["ocr"]) == runs
    assert set(differing(values["ocr"], values["preference"])) == {
        "runs.ocr",
        "runs.preference",
        "train.kl_beta",
        runs[-1],
    }


def test_scales_of_a_task_differ_in_counts_alone():
    one, eight, many = (read_values(Path(f"presets/sd35m-{scale}-ocr.yaml")) for scale in SCALES)
    assert differing(eight, many) == []
    counts = {"rollout.batch", "train.epochs", "train.prompts_per_epoch", "train.group_size"}
    assert set(differing(one, eight)) == counts


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_copied_preset_is_a_pipeline_for_snakemake_and_dvc(file, snakemake, tmp_path):
    """Both see the same trainings, those of the preset."""
    task = file.stem.split("-")[-1]
    wanted = {f"results/train/{task}-{method}/adapter" for method in ("star", "flow_grpo")}
    shutil.copy(file, tmp_path / "params.yaml")
    run = snakemake("--dry-run", "--forceall")
    assert run.returncode == 0, run.stderr
    assert set(re.findall(r"results/train/[\w-]+/adapter", run.stdout + run.stderr)) == wanted
    shutil.copy("dvc.yaml", tmp_path)
    Repo.init(str(tmp_path), no_scm=True).close()
    with Repo(str(tmp_path)) as repo:
        outputs = {out.def_path for stage in repo.index.stages for out in stage.outs}
    assert {path for path in outputs if path.endswith("/adapter")} == wanted


@pytest.mark.slow
def test_after_a_run_of_the_miniature_a_preset_makes_everything_anew(snakemake, tmp_path):
    """What the miniature left has names that the preset wants too; Snakemake knows which parameters made it."""
    shutil.copy("params.yaml", tmp_path)
    left = {name for line in outputs_of(snakemake("--dry-run").stdout) for name in line.split(", ")}
    for name in left:
        path = tmp_path / name
        if path.name in ("adapter", "samples", "maps", "pictures"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}\n")
    run = snakemake("--touch", "--forceall")  # writes Snakemake's own records, as a run does
    assert run.returncode == 0, run.stderr
    shutil.copy("presets/sd35m-8gpu-ocr.yaml", tmp_path / "params.yaml")
    run = snakemake("--dry-run")
    again = {name for line in outputs_of(run.stdout) for name in line.split(", ")}
    assert again <= left and not any("geneval-star" in name or "preference-star" in name for name in again)
    for name in ("train/ocr-star/adapter", "evaluate/ocr-flow_grpo/scores.json", "evaluate/base/scores.json"):
        assert f"results/{name}" in again
    assert {f"results/core/{task}/{split}.jsonl" for task in TASKS for split in ("train", "test")} <= again


def outputs_of(text: str) -> list[str]:
    """The outputs of each job of a dry run."""
    return re.findall(r"^    output: (.*)$", text, re.MULTILINE)
