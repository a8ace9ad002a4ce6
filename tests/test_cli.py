"""The command line: stages chained by files, and one-line errors that overwrite nothing."""

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from star.cli import main
from star.config.params import TASKS

STAGES = (
    "plan",
    "prompts",
    "core",
    "train",
    "evaluate",
    "launch",
    "score",
    "compare",
    "report",
    "study-run",
    "study-report",
    "pretrain",
    "pretrain-preference",
)


def test_help_lists_every_stage(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert all(stage in text for stage in STAGES)


def test_help_and_prompts_need_no_torch():
    code = (
        "import sys\nfrom star.cli import main\n"
        "main(['prompts', '--task', 'ocr', '--train', 'a', '--test', 'b', '--params', 'missing.yaml'])\n"
        "assert 'torch' not in sys.modules, 'a spawned worker that imports the command line would import torch'"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize("task", ["geneval", "ocr", "preference"])
def test_prompts_then_core(tmp_path, task):
    train, test, core = tmp_path / "train.jsonl", tmp_path / "test.jsonl", tmp_path / "core.jsonl"
    assert main(["prompts", "--task", task, "--train", str(train), "--test", str(test)]) == 0
    assert main(["core", "--prompts", str(train), "--output", str(core)]) == 0
    assert len(core.read_text().splitlines()) == len(train.read_text().splitlines())
    again = tmp_path / "again.jsonl"
    assert main(["prompts", "--task", task, "--train", str(again), "--test", str(test)]) == 0
    assert again.read_bytes() == train.read_bytes()


def error_of(arguments, capsys) -> str:
    assert main(arguments) == 1
    text = capsys.readouterr().err
    assert text.count("\n") == 1, "one line"
    return text


def test_unknown_parameter(tmp_path, capsys):
    params, out = tmp_path / "params.yaml", tmp_path / "train.jsonl"
    params.write_text(Path("params.yaml").read_text().replace("learning_rate:", "learning_rat:"))
    out.write_text("precious")
    arguments = [
        "prompts",
        "--params",
        str(params),
        "--task",
        "ocr",
        "--train",
        str(out),
        "--test",
        str(out),
    ]
    assert "learning_rat" in error_of(arguments, capsys)
    assert out.read_text() == "precious"


def test_batch_that_the_group_does_not_divide(tmp_path, capsys):
    params = tmp_path / "params.yaml"
    params.write_text(Path("params.yaml").read_text().replace("group_size: 16", "group_size: 15"))
    text = error_of(
        ["prompts", "--params", str(params), "--task", "ocr", "--train", "a", "--test", "b"], capsys
    )
    assert "rollout.batch" in text and "use one of" in text


def test_malformed_prompt_file_is_named_with_its_line(tmp_path, capsys):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "core.jsonl"
    prompts.write_text(
        '{"id": "a", "task": "preference", "prompt": "a cat", "metadata": {}}\n{"id": \n'
    )
    assert f"{prompts}:2" in error_of(
        ["core", "--prompts", str(prompts), "--output", str(out)], capsys
    )
    assert "missing.jsonl" in error_of(
        ["core", "--prompts", "missing.jsonl", "--output", str(out)], capsys
    )
    assert not out.exists()


@pytest.mark.parametrize("place", ["folder", "file/x", "file/x/y", "x" * 256, "loop/x"])
def test_places_that_cannot_be_written_are_one_line(tmp_path, place, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("precious")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    arguments = [
        "prompts",
        "--task",
        "ocr",
        "--train",
        str(tmp_path / place),
        "--test",
        str(tmp_path / "test.jsonl"),
    ]
    text = error_of(arguments, capsys)
    assert (
        str(tmp_path / place.split("/")[0]) in text and "give a place that can be written" in text
    )
    assert (tmp_path / "file").read_text() == "precious"
    assert not list(tmp_path.glob("*.tmp"))


def test_a_disk_that_fails_is_one_line(tmp_path, capsys, monkeypatch):
    def failing(*_):
        raise OSError(errno.EIO, "Input/output error", "train.jsonl")

    monkeypatch.setattr("star.prompts.records.write_text_atomic", failing)
    arguments = [
        "prompts",
        "--task",
        "ocr",
        "--train",
        str(tmp_path / "a"),
        "--test",
        str(tmp_path / "b"),
    ]
    assert "Input/output error: 'train.jsonl'" in error_of(arguments, capsys)


@pytest.mark.parametrize("rate", ["nan", "-1", "0", "inf", "fast"])
def test_a_rate_must_be_a_positive_number(rate, capsys):
    arguments = ["study-run", "--task", "ocr", "--method", "star", "--seed", "0", f"--rate={rate}"]
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--prompts", "a", "--held-out", "b", "--output", "c"])
    assert end.value.code == 2
    assert f"argument --rate: invalid positive float value: '{rate}'" in capsys.readouterr().err


def test_an_evaluation_reads_its_prompts_before_the_slow_imports(tmp_path):
    code = (
        "import sys\nfrom star.cli import main\n"
        f"sys.argv = ['star']\nstatus = main(['evaluate', '--checkpoint', 'base', '--prompts-dir', {str(tmp_path)!r}, "
        f"'--output', {str(tmp_path / 'out')!r}])\n"
        "assert status == 1 and 'torch' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0 and "geneval/test.jsonl: cannot be read" in run.stderr


@pytest.mark.parametrize(
    "name", ["../../x", "ocr-../x", "/tmp/x", "ocr-", "draw-star", "base/x", ""]
)
def test_a_checkpoint_s_name_is_no_path(tmp_path, name, capsys):
    arguments = [
        "evaluate",
        f"--checkpoint={name}",
        "--prompts-dir",
        str(tmp_path),
        "--adapter",
        str(tmp_path),
    ]
    text = error_of([*arguments, "--output", str(tmp_path / "out")], capsys)
    assert f"--checkpoint {name!r}: give base, or a task" in text


def test_training_errors_come_before_the_work(tmp_path, capsys):
    records = tmp_path / "train.jsonl"
    main(
        [
            "prompts",
            "--task",
            "ocr",
            "--train",
            str(records),
            "--test",
            str(tmp_path / "test.jsonl"),
        ]
    )
    capsys.readouterr()
    arguments = [
        "train",
        "--task",
        "ocr",
        "--prompts",
        str(records),
        "--output",
        str(tmp_path / "out"),
    ]
    arguments += ["--state", str(tmp_path / "state")]
    assert "no method 'ppo'" in error_of([*arguments, "--method", "ppo"], capsys)
    assert "star core" in error_of([*arguments, "--method", "star"], capsys)
    assert not (tmp_path / "out").exists()


def test_broken_model_directory(tmp_path, capsys):
    model, params = tmp_path / "model", tmp_path / "params.yaml"
    shutil.copytree("models/miniature", model)
    shutil.rmtree(model / "tokenizer_3")
    params.write_text(
        Path("params.yaml").read_text().replace("path: models/miniature #", f"path: {model} #")
    )
    arguments = [
        "evaluate",
        "--params",
        str(params),
        "--checkpoint",
        "base",
        "--output",
        str(tmp_path / "out"),
    ]
    for task in ("geneval", "ocr", "preference"):
        folder = tmp_path / "core" / task
        main(
            [
                "prompts",
                "--task",
                task,
                "--train",
                str(folder / "train.jsonl"),
                "--test",
                str(folder / "test.jsonl"),
            ]
        )
    capsys.readouterr()
    assert "tokenizer_3/ is missing" in error_of(
        [*arguments, "--prompts-dir", str(tmp_path / "core")], capsys
    )
    assert not (tmp_path / "out").exists()


def test_images_of_other_weights_or_another_precision_are_not_gone_on_with(tmp_path, monkeypatch):
    model, params, works = tmp_path / "model", tmp_path / "params.yaml", []
    shutil.copytree("models/miniature", model)
    params.write_text(
        Path("params.yaml").read_text().replace("path: models/miniature #", f"path: {model} #")
    )
    for task in TASKS:
        folder = tmp_path / "core" / task
        main(
            [
                "prompts",
                "--task",
                task,
                "--train",
                str(folder / "train.jsonl"),
                "--test",
                str(folder / "test.jsonl"),
            ]
        )
    monkeypatch.setattr(
        "star.evaluation.evaluate.evaluate", lambda *arguments: works.append(arguments[4])
    )
    arguments = [
        "evaluate",
        "--params",
        str(params),
        "--checkpoint",
        "base",
        "--output",
        str(tmp_path / "out"),
    ]
    arguments += ["--prompts-dir", str(tmp_path / "core"), "--state", str(tmp_path / "state")]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for capabilities in ({}, {}, {"amx_bf16": True}):
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda found=capabilities: found)
        assert main(arguments) == 0
    weights = model / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert main(arguments) == 0
    assert works[0] == works[1] and len(set(works)) == 3
