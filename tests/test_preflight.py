"""What is refused before a model is opened: folders, adapters, models and prompts; and that it is,
in every stage."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest
import torch

from star.config.params import Params, PreferenceParams, load_params
from star.evaluation.evaluate import evaluate
from star.policy.sd3 import load_policy
from star.preflight import check_blocks, check_core, check_writable
from star.prompts.core_content import with_core
from star.prompts.prepare import prepare
from star.prompts.records import CoreSpan, PromptRecord, write_records
from star.study.run import run_study
from star.system.errors import StarError
from star.training.loop import train

ROOT = Path(__file__).resolve().parents[1]
BASE = load_params(ROOT / "params.yaml")


def small() -> Params:
    """The default parameters with few prompts; no epoch of them is run."""
    few = {
        task: dataclasses.replace(getattr(BASE.prompts, task), train=8, test=6)
        for task in BASE.runs
    }
    model = dataclasses.replace(BASE.model, path=str(ROOT / "models/miniature"))
    return dataclasses.replace(BASE, prompts=dataclasses.replace(BASE.prompts, **few), model=model)


def with_model(params: Params, **changes: object) -> Params:
    return dataclasses.replace(params, model=dataclasses.replace(params.model, **changes))


# ---------------------------------------------------------------- folders


def test_a_folder_that_can_be_made_is_not_made(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "deep", "it")
    check_writable(tmp_path, "it")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/deep/er", "/proc/none/deep", "loop/deep"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(
        StarError, match=f"^it {tmp_path / place}: cannot be written \\(.+\\); give another folder$"
    ):
        check_writable(tmp_path / place, "it")


def test_a_prompt_cache_that_fails_later_is_named(tmp_path: Path) -> None:
    """A disk that fills up, say: here the folder has turned into a file."""
    policy = load_policy(
        with_model(small(), prompt_cache=str(tmp_path / "cache")).model, torch.device("cpu")
    )
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(
        StarError, match=f"^model.prompt_cache: {tmp_path / 'cache'}/.* cannot be written"
    ):
        policy.prepare_prompts(["a cat"])


# ---------------------------------------------------------------- every stage checks before it open


def no_such_judge(params: Params, folder: Path) -> Params:
    judge = PreferenceParams(str(folder / "nowhere"), None, 26.0, "float32")
    return dataclasses.replace(
        params, rewards=dataclasses.replace(params.rewards, preference=judge)
    )


def no_detector(params: Params, folder: Path) -> Params:
    """The preference stand-in is no Mask2Former."""
    judge = params.rewards.preference.path
    geneval = dataclasses.replace(
        params.rewards.geneval, detector="mask2former", path=judge, color_path=judge
    )
    return dataclasses.replace(params, rewards=dataclasses.replace(params.rewards, geneval=geneval))


def half_a_model(params: Params, folder: Path) -> Params:
    copy = Path(copytree(ROOT / "models/miniature", folder / "model"))
    (copy / "text_encoder_3/model.safetensors").unlink()
    return with_model(params, path=str(copy))


def file_as_cache(params: Params, folder: Path) -> Params:
    (folder / "file").write_text("in the way")
    return with_model(params, prompt_cache=str(folder / "file"))


# name -> the parameters that are wrong, the task whose training needs them, the message
WRONG: dict[str, tuple[Callable[[Params, Path], Params], str, str]] = {
    "cache": (file_as_cache, "geneval", "^model.prompt_cache .*file: cannot be written"),
    "model": (
        half_a_model,
        "geneval",
        "^model.path .* text_encoder_3/ has no .safetensors weights",
    ),
    "judge": (
        no_such_judge,
        "preference",
        "^rewards.preference.path .*nowhere': no such directory",
    ),
    "detector": (no_detector, "geneval", r"^rewards.geneval.path .*it is a clip"),
}


@pytest.fixture
def nothing_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model and no reward may be opened."""
    for name in ("star.training.loop", "star.evaluation.evaluate", "star.study.run"):
        monkeypatch.setattr(f"{name}.load_policy", lambda *_: pytest.fail("a policy was opened"))
        monkeypatch.setattr(f"{name}.build_reward", lambda *_: pytest.fail("a reward was opened"))
    for name in ("star.evaluation.evaluate", "star.study.run"):
        monkeypatch.setattr(
            f"{name}.PreferenceReward", lambda *_: pytest.fail("a judge was opened")
        )


def cored(params: Params, task: str) -> list[PromptRecord]:
    return with_core(prepare(task, params.prompts, params.seed)[0])


def stages(params: Params, task: str, folder: Path) -> dict[str, Callable[[], None]]:
    """Training, study run and evaluation, each with its folders below ``folder``."""
    records = cored(small(), task)
    for name in params.runs:
        write_records(
            folder / "core" / name / "test.jsonl", prepare(name, small().prompts, small().seed)[1]
        )
    work, output = folder / "work", folder / "out"
    return {
        "train": lambda: train(params, task, "star", records, work, output),
        "study": lambda: run_study(
            params, task, "star", 0, 1e-3, records, records, work, output / "run.json"
        ),
        "evaluate": lambda: evaluate(params, "base", None, folder / "core", work, output),
    }


@pytest.mark.usefixtures("nothing_opens")
@pytest.mark.parametrize("name", WRONG)
def test_every_stage_refuses_before_it_opens_a_model(tmp_path: Path, name: str) -> None:
    change, task, message = WRONG[name]
    for stage in stages(change(small(), tmp_path), task, tmp_path).values():
        with pytest.raises(StarError, match=message):
            stage()
    assert not (tmp_path / "work").exists() and not (tmp_path / "out").exists()


@pytest.mark.usefixtures("nothing_opens")
@pytest.mark.parametrize("blocked", ["work", "out"])
def test_every_stage_refuses_folders_that_cannot_be_written(tmp_path: Path, blocked: str) -> None:
    (tmp_path / blocked).write_text("in the way")
    name = {"work": "the folder of states", "out": "the output folder"}[blocked]
    for stage in stages(small(), "geneval", tmp_path).values():
        with pytest.raises(StarError, match=f"^{name} {tmp_path / blocked}.*: cannot be written"):
            stage()


@pytest.mark.usefixtures("nothing_opens")
def test_an_adapter_folder_without_an_adapter_is_refused_before_the_model_opens(
    tmp_path: Path,
) -> None:
    stages(small(), "geneval", tmp_path)
    with pytest.raises(StarError, match="no pytorch_lora_weights.safetensors in it"):
        evaluate(
            small(),
            "ocr-star",
            tmp_path / "none",
            tmp_path / "core",
            tmp_path / "work",
            tmp_path / "out",
        )


@pytest.mark.usefixtures("nothing_opens")
def test_trainings_refuse_blocks_that_the_model_lacks_before_it_opens(tmp_path: Path) -> None:
    params = dataclasses.replace(
        small(), allocation=dataclasses.replace(small().allocation, blocks=[0, 8, 999])
    )
    for stage in ("train", "study"):
        with pytest.raises(
            StarError, match="^allocation.blocks: no block 8; the model has 0 to 7$"
        ):
            stages(params, "geneval", tmp_path)[stage]()


def test_a_model_that_does_not_count_its_blocks_and_all_of_them_are_let_through(
    tmp_path: Path,
) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text("{}")
    check_blocks(tmp_path, [999])
    check_blocks(Path(small().model.path), "all")
    check_blocks(Path(small().model.path), [0, 7])


# ---------------------------------------------------------------- prompts longer than the encoders


LONG = (
    "a cat, " + "red, " * 40 + "a horse, " + "red, " * 60 + "a wine glass"
)  # a word and its comma are two tokens


def spanned(prompt: str, *words: str, name: str = "long") -> PromptRecord:
    """A record whose core are these words, where they come last."""
    spans = [
        CoreSpan(prompt.rindex(word), prompt.rindex(word) + len(word), "subject") for word in words
    ]
    return PromptRecord(name, "geneval", prompt, {"include": [{}] * len(words)}, tuple(spans))


@pytest.fixture
def real_lengths(tmp_path: Path) -> Params:
    """The miniature with SD3.5-M's text lengths: 77 CLIP and 128 T5 tokens."""
    copy = Path(copytree(ROOT / "models/miniature", tmp_path / "model"))
    for part in ("tokenizer", "tokenizer_2"):
        file = copy / part / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": 77}))
    return with_model(small(), path=str(copy), t5_tokens=128)


def said(params: Params, *records: PromptRecord, **allocation: object) -> list[str]:
    lines: list[str] = []
    chosen = dataclasses.replace(params.allocation, **allocation)
    check_core(params, Path(params.model.path), chosen, records, lines.append)
    return lines


def test_core_words_beyond_the_encoders_are_named_with_their_record(real_lengths: Params) -> None:
    short, long = spanned("a cat", "cat", name="short"), spanned(LONG, "cat", "horse", "wine glass")
    unseen = (
        "'horse', 'wine', 'glass' not among 77 CLIP tokens; 'wine', 'glass' not among 128 T5 tokens"
    )
    assert said(real_lengths, short, long) == [
        f"warning: long: core content that is not seen: {unseen}"
    ]
    only_t5 = {"clip": 0.0, "t5": 1.0}
    (line,) = said(real_lengths, long, encoders=only_t5)
    assert line.endswith("not seen: 'wine', 'glass' not among 128 T5 tokens")
    assert said(real_lengths, long, source="uniform") == [] == said(real_lengths, long, lam=0.0)


def test_of_a_word_that_is_cut_the_letters_that_fall_off_are_named(real_lengths: Params) -> None:
    """T5's tokens of an unknown word are letters."""
    cut = with_model(real_lengths, t5_tokens=8)
    (line,) = said(cut, spanned('a sign that says "HOUSE"', "HOUSE"))
    assert line == "warning: long: core content that is not seen: 'USE' not among 8 T5 tokens"


def test_a_long_report_is_cut_short(real_lengths: Params) -> None:
    lines = said(
        real_lengths, *(spanned(LONG, "cat", "horse", name=f"prompt-{i}") for i in range(25))
    )
    assert len(lines) == 11 and lines[-1] == "warning: and 15 prompts more"


def test_prompts_without_any_core_token_are_refused_together(real_lengths: Params) -> None:
    records = [
        spanned(LONG, "wine glass", name="first"),
        spanned("a cat", "cat"),
        spanned(LONG, "glass", name="other"),
    ]
    with pytest.raises(
        StarError, match=r"^prompt first: no core content \('wine glass'\) within 77 CLIP and 128"
    ):
        said(real_lengths, *records)
    with pytest.raises(
        StarError, match=r"\(so do other\); shorten or remove the prompt, or raise model.t5_tokens$"
    ):
        said(real_lengths, *records)
    assert said(with_model(real_lengths, t5_tokens=256), *records), "T5 sees it now, CLIP does not"


def test_a_clause_without_any_core_token_is_refused_where_clauses_have_maps(
    real_lengths: Params,
) -> None:
    record = spanned(LONG, "cat", "wine glass")
    spans = tuple(dataclasses.replace(span, clause=i) for i, span in enumerate(record.core or ()))
    record = dataclasses.replace(record, core=spans)
    assert len(said(real_lengths, record)) == 1
    with pytest.raises(StarError, match=r"^prompt long: no core content \('wine glass'\)"):
        said(real_lengths, record, clause_wise=True)


def test_a_training_reports_and_refuses_its_prompts_before_it_opens_a_model(
    real_lengths: Params,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Opened(Exception):
        pass

    def opened(*_: object) -> None:
        raise Opened

    monkeypatch.setattr("star.training.loop.build_reward", opened)
    arguments = (tmp_path / "work", tmp_path / "out")
    with pytest.raises(Opened):
        train(real_lengths, "geneval", "star", [spanned(LONG, "cat", "horse")], *arguments)
    assert capsys.readouterr().out.startswith(
        "warning: long: core content that is not seen: 'horse' not among 77 CLIP"
    )
    with pytest.raises(StarError, match="^prompt long: no core content"):
        train(real_lengths, "geneval", "star", [spanned(LONG, "wine glass")], *arguments)
    monkeypatch.setattr("star.study.run.build_reward", opened)
    run = (
        "star",
        0,
        1e-3,
        [spanned(LONG, "wine glass")],
        [],
        tmp_path / "work",
        tmp_path / "run.json",
    )
    with pytest.raises(StarError, match="^prompt long: no core content"):
        run_study(real_lengths, "geneval", *run)
    with pytest.raises(Opened):  # no maps, no core content needed
        train(real_lengths, "geneval", "flow_grpo", [spanned(LONG, "wine glass")], *arguments)
