"""The parameter file: schema and dataclasses agree, and every kind of mistake is refused by name
before torch."""

import copy
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from star.config.params import TASKS, Params, PromptSource, fingerprint, load_params
from star.config.schema import schema
from star.config.yaml_file import read_values
from star.system.errors import StarError

ROOT = Path(__file__).resolve().parents[2]


def resolved(node: dict) -> dict:
    """A schema node with its reference filled in."""
    name = node.get("$ref", "").removeprefix("#/$defs/")
    return {**schema()["$defs"][name], **node} if name else node


def schema_keys(node: dict, where: str = "") -> Iterator[tuple[str, dict]]:
    """Dotted key and node of everything that the schema names; `*` stands for a free name."""
    for key, child in node.get("properties", {}).items():
        child = resolved(child)
        yield f"{where}{key}", child
        yield from schema_keys(child, f"{where}{key}.")
    if isinstance(node.get("additionalProperties"), dict):
        child = resolved(node["additionalProperties"])
        yield f"{where}*", child
        yield from schema_keys(child, f"{where}*.")


def dataclass_keys(kind: Any, where: str = "") -> Iterator[str]:
    """Dotted keys of the dataclasses, in the same notation; dictionaries of plain values end
    there."""
    for name, hint in get_type_hints(kind).items() if dataclasses.is_dataclass(kind) else ():
        yield f"{where}{name}"
        for kind_of_value in get_args(hint) if isinstance(hint, UnionType) else (hint,):
            yield from dataclass_keys(kind_of_value, f"{where}{name}.")
        if hint is not str and get_args(hint) and dataclasses.is_dataclass(get_args(hint)[-1]):
            yield f"{where}{name}.*"
            yield from dataclass_keys(get_args(hint)[-1], f"{where}{name}.*.")


def is_open(key: str) -> bool:
    """Whether a key belongs to a dictionary, whose keys the dataclasses do not spell out."""
    open_keys = (
        "runs",
        "core.weights",
        "allocation.encoders",
        "evaluate.images_per_prompt",
        "methods",
        "study.methods",
    )
    return key.startswith(tuple(f"{name}." for name in open_keys))


def changed(values: dict, key: str, value: Any) -> dict:
    """A copy with one dotted key set."""
    values = copy.deepcopy(values)
    node = values
    *parents, last = key.split(".")
    for part in parents:
        node = node[part]
    node[last] = value
    return values


def without(values: dict, key: str) -> dict:
    """A copy with one dotted key left out."""
    values = copy.deepcopy(values)
    node = values
    *parents, last = key.split(".")
    for part in parents:
        node = node[part]
    del node[last]
    return values


def leaves(values: dict, where: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield f"{where}{key}"
        if isinstance(value, dict):
            yield from leaves(value, f"{where}{key}.")


DEFAULT = read_values(ROOT / "params.yaml")
KEYS = list(leaves(DEFAULT))

URL, SHA = (
    "https://raw.githubusercontent.com/name/repository/commit/dataset/test.txt",
    "0123456789abcdef" * 4,
)
SOURCE = {"url": URL, "sha256": SHA}

WRONG = {  # a value that each key refuses
    "seed": [-1, 1.5, "0", True, 2**31, None],
    "runs": [[], {"geneval": []}],
    "runs.geneval": ["star", [1], ["star", "star"], ["Star"], ["../star"], ["star\n"], ["nobody"]],
    "model.path": ["", 7, None],
    "model.revision": ["a b", "x\n", 5],
    "model.resolution": [8, 65, 1e9],
    "model.t5_tokens": [0, 513],
    "model.precision": [False, "bf32", 16],
    "model.guidance_scale": [0.5, "high", 1e6, float("nan")],
    "model.lora_rank": [0, 4.5],
    "prompts.world": ["mars", None],
    "prompts.geneval.train": [0, -5, 2.5],
    "prompts.ocr.test_file": [
        "",
        3,
        ["a.txt"],
        {},
        {"url": URL},
        {"sha256": SHA},
        SOURCE | {"path": "a.txt"},
    ],
    "prompts.ocr.train_file": [
        *(
            SOURCE | {"url": url}
            for url in (None, "", "a.txt", "ftp://a.org/b", "file:///b", "https://a.org")
        ),
        *(
            SOURCE | {"url": url}
            for url in ("http://a.org/b", "http://127.0.0.1.a.org/b", "HTTPS://a.org/b")
        ),
        *(
            SOURCE | {"url": url}
            for url in ("https://me:secret@a.org/b", "https://a.org/b c", "https://a.org/b\n")
        ),
        *(
            SOURCE | {"sha256": digits}
            for digits in ("", 0, SHA[1:], SHA + "0", SHA.upper(), SHA + "\n", "g" * 64)
        ),
    ],
    "core.weights.object": [-0.1, "1", float("nan"), float("inf")],
    "model.gradient_checkpointing": ["yes", 1],
    "model.compile": [False, "eager"],
    "model.tf32": [None],
    "model.vae_slicing": [0],
    "model.prompt_cache": ["", 3],
    "rollout.steps": [1, 8.5, float("nan")],
    "rollout.sampler": ["ddim", None],
    "rollout.noise_level": [0, -1, 11],
    "rollout.slide_every": [-1, 0.5],
    "rollout.window": [[0], [0, 1, 2], [2, 2], [3, 1], [0, 8], "all", [-1, 2]],
    "rollout.same_latent": [1, "yes"],
    "rollout.batch": [0, 7, 48],
    "allocation.source": ["ones", None],
    "allocation.objective": ["global"],
    "allocation.clause_wise": ["yes", 1],
    "allocation.clause_maps": ["shared", True],
    "allocation.normalise_tokens": [None],
    "allocation.lam": [-1, float("inf"), float("nan"), None],
    "allocation.blocks": ["some", [], [0, 0], [-1], 3],
    "allocation.encoders.t5": [-1, "all"],
    "allocation.temporal": ["sometimes"],
    "methods": [{}, {"Bad Name": {"source": "uniform"}}, []],
    "methods.star.source": ["attentive", None],
    "methods.star.objective": ["global", "scalar"],
    "train.epochs": [0, 1e30],
    "train.group_size": [1, 48],
    "train.updates_per_epoch": [0, 3],
    "train.learning_rate": [0, -1e-3, 2, "fast", float("nan")],
    "train.clip_range": [0, 1.5],
    "train.ema_decay": [1, -0.1],
    "train.kl_form": ["nothing"],
    "train.normalise_ratio": ["no"],
    "train.keep_states": [0, 1.5],
    "train.skip_updates": [-1, None],
    "train.tracker": ["tensorbored", "comet"],
    "rewards.timeout": [0, -1, "long", float("nan")],
    "rewards.geneval.detector": ["perfect"],
    "rewards.geneval.path": ["", 7, " x", "models/detector"],
    "rewards.geneval.revision": ["a b", "x\n", 5, "abc"],
    "rewards.geneval.color_path": ["", 7, "models/colors"],
    "rewards.geneval.color_revision": ["a b", "abc"],
    "rewards.geneval.batch": [0, 1.5, None],
    "rewards.geneval.soft": ["unbounded", True, None],
    "rewards.geneval.score_threshold": [1.1],
    "rewards.ocr.workers": [0],
    "rewards.ocr.substring": ["no", 0],
    "rewards.preference.scale": [0],
    "rewards.preference.precision": ["no", "fp16", "fp32", 32, None],
    "evaluate.bootstrap": [10],
    "evaluate.second_reader": ["ppocrv4", True, None],
    "evaluate.images_per_prompt": [1, {"geneval": 4}],
    "evaluate.images_per_prompt.ocr": [0, 1.5],
    "report.title": ["", "x" * 201, 3],
    "report.images": [-1, 65],
    "study.tasks": [[], ["preference"], ["ocr", "ocr"], "ocr", None],
    "study.aim": ["", "nobody", "flow_grpo", "shuffled", "../star", 3],
    "study.seeds": [1, 2.5, "5", 1001],
    "study.epochs": [0, 0.5],
    "study.evaluate_every": [0, None],
    "study.learning_rate": [0, 2, float("nan"), "fast", 1.0e-3],
    "study.other_rates": [[0], [1.0e-3, 1.0e-3], [1.5e-3], 1.0e-3, ["fast"]],
    "study.rate_seeds": [0, 6, 1.5],
    "study.second_reader": ["none", "ppocrv4", None],
    "study.methods": [{}, {"star": {}}, [], {"Bad Name": {}}],
    "study.methods.star": [{"lamb": 1}, {"objective": "scalar"}, None],
    "study.methods.shuffled.source": ["random", None],
}


def test_schema_is_a_valid_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


def test_schema_and_dataclasses_name_the_same_keys() -> None:
    in_schema = {key for key, _ in schema_keys(schema()) if not is_open(key)}
    assert in_schema == set(dataclass_keys(Params))


def test_every_key_has_a_description_and_every_object_is_closed() -> None:
    for key, node in schema_keys(schema()):
        assert len(node.get("description", "")) > 10, key
        if "object" in node.get("type", ()):
            assert "additionalProperties" in node, key
            assert node.get("additionalProperties") is not True, key
            if not key.startswith(("methods", "study.methods")):
                assert sorted(node["required"]) == sorted(node["properties"]), key


def test_default_file_is_accepted_and_typed() -> None:
    params = load_params(ROOT / "params.yaml")
    assert params.images_per_epoch == params.train.prompts_per_epoch * params.train.group_size
    assert isinstance(params.train.max_grad_norm, float)
    assert dataclasses.asdict(params) == DEFAULT


@pytest.mark.parametrize(
    "url", [URL, "http://127.0.0.1:8000/test.txt", "http://localhost/a", "https://a.org:443/?b=c"]
)
@pytest.mark.parametrize("sha256", [SHA, None])
def test_a_prompt_file_may_be_a_source(
    url: str, sha256: str | None, write_params: Callable[[dict], Path]
) -> None:
    values = changed(DEFAULT, "prompts.ocr.test_file", {"url": url, "sha256": sha256})
    params = load_params(
        write_params(changed(values, "prompts.ocr.train_file", "data/prompts/train.txt"))
    )
    assert params.prompts.ocr.test_file == PromptSource(url, sha256)
    assert params.prompts.ocr.train_file == "data/prompts/train.txt"
    assert dataclasses.asdict(params)["prompts"]["ocr"]["test_file"] == {
        "url": url,
        "sha256": sha256,
    }


def test_whole_floats_become_integers(write_params: Callable[[dict], Path]) -> None:
    params = load_params(write_params(changed(DEFAULT, "train.epochs", 8.0)))
    assert (params.train.epochs, type(params.train.epochs)) == (8, int)


def test_scientific_notation_without_a_point_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    text = yaml.safe_dump(changed(DEFAULT, "train.learning_rate", "RATE"))
    path.write_text(text.replace("RATE", "1e-3"), encoding="utf-8")
    assert load_params(path).train.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in WRONG.items() for value in values]
)
def test_wrong_value_is_refused_by_name(
    key: str, value: Any, write_params: Callable[[dict], Path]
) -> None:
    with pytest.raises(StarError) as caught:
        load_params(write_params(changed(DEFAULT, key, value)))
    message = str(caught.value)
    named = {key, key.split(".")[-1]} | ({"rollout.batch"} if key == "train.group_size" else set())
    assert any(name in message for name in named), message
    assert "\n" not in message


REQUIRED = [
    key
    for key in KEYS
    if not key.startswith("study.methods.") and not re.match(r"methods\.\w+\.", key)
]


@pytest.mark.parametrize("key", [*REQUIRED, "study.methods.flow_grpo", "study.methods.shuffled"])
def test_missing_key_is_refused_by_name(key: str, write_params: Callable[[dict], Path]) -> None:
    if key.startswith("methods."):
        expected = f"no method '{key.removeprefix('methods.')}'"
    elif key.startswith("study.methods."):
        expected = f"study.methods has no '{key.removeprefix('study.methods.')}'"
    else:
        expected = f"'{key.split('.')[-1]}' is a required property"
    with pytest.raises(StarError, match=expected):
        load_params(write_params(without(DEFAULT, key)))


def test_a_method_puts_its_keys_in_place_of_the_allocation(
    write_params: Callable[[dict], Path],
) -> None:
    wide = {"lam": 9, "temporal": "joint", "clause_wise": True, "clause_maps": "own"}
    params = load_params(write_params(changed(DEFAULT, "methods.wide", wide)))
    assert params.method("wide") == dataclasses.replace(params.allocation, **wide)
    assert isinstance(params.method("wide").lam, float)
    with pytest.raises(StarError, match="no method 'ppo'.*known: star, flow_grpo, wide"):
        params.method("ppo")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rollout.sampler": "cps", "rollout.noise_level": 1.2},
            "rollout.noise_level 1.2.*at most 1",
        ),
        ({"allocation.encoders": {"clip": 0, "t5": 0}}, "allocation: encoders are all 0"),
        (
            {"train.kl_form": "none", "train.kl_beta": 0.1},
            "train.kl_beta 0.1 wants a train.kl_form",
        ),
        (
            {"methods.odd": {"source": "guidance", "clause_wise": True}},
            "methods.odd: with source guidance every clause has one map",
        ),
        (
            {"methods.odd": {"temporal": "joint", "clause_wise": True}},
            "methods.odd: a clause's share .* so temporal joint has nothing to compare over steps",
        ),
        (
            {"methods.odd": {"objective": "scalar"}},
            "methods.odd: the scalar objective.*source attention",
        ),
        (
            {"rewards.geneval.detector": "mask2former"},
            r"geneval\.path: mask2former wants .*facebook/mask2former",
        ),
        (
            {"rewards.geneval.detector": "mask2former", "rewards.geneval.path": "models/detector"},
            r"geneval\.color_path: mask2former wants .*openai/clip",
        ),
        (
            {"rewards.geneval.revision": "abc"},
            r"geneval\.revision 'abc': the detector exact opens no model",
        ),
        (
            {"model.resolution": 128, "evaluate.second_reader": "template"},
            r"evaluate\.second_reader template .* 64 pixels, model\.resolution is 128; use ppocrv6",
        ),
        ({"model.resolution": 128}, r"study\.second_reader template .* use ppocrv6"),
        (
            {"prompts.world": "coco"},
            r"geneval\.detector exact knows only .* not of coco; use mask2former",
        ),
    ],
)
def test_values_that_contradict_each_other(
    changes: dict, message: str, write_params: Callable[[dict], Path]
) -> None:
    values = DEFAULT
    for key, value in changes.items():
        values = changed(values, key, value)
    with pytest.raises(StarError, match=message):
        load_params(write_params(values))


@pytest.mark.parametrize("world", ["miniature", "coco"])
def test_mask2former_may_judge_every_world(
    world: str, write_params: Callable[[dict], Path]
) -> None:
    models = {
        "detector": "mask2former",
        "path": "models/detector",
        "color_path": "openai/clip",
        "revision": "abc",
    }
    values = changed(
        DEFAULT, "rewards.geneval", {**DEFAULT["rewards"]["geneval"], **models, "batch": 4.0}
    )
    params = load_params(write_params(changed(values, "prompts.world", world)))
    assert params.rewards.geneval.path == "models/detector"
    assert isinstance(params.rewards.geneval.batch, int)


def test_the_study_lists_its_runs_by_task_method_rate_and_seed(
    write_params: Callable[[dict], Path],
) -> None:
    values = changed(
        DEFAULT, "study", {**DEFAULT["study"], "tasks": ["ocr"], "seeds": 2, "rate_seeds": 1}
    )
    values = changed(values, "study.methods", {"flow_grpo": {}, "shuffled": {}, "star": {}})
    study = load_params(
        write_params(changed(changed(values, "study.aim", "star"), "study.other_rates", [1e-5, 1]))
    ).study
    expected = ["0-0.0015", "1-0.0015", "0-1e-05", "0-1.0"]
    assert [run.name for run in study.runs()][:4] == [f"ocr-flow_grpo-{name}" for name in expected]
    assert len({run.name for run in study.runs()}) == 12
    assert all(float(run.name.split("-", 3)[3]) == run.rate for run in study.runs())


SECTIONS = [
    "",
    *(
        key
        for key, node in schema_keys(schema())
        if node.get("type") == "object" and "*" not in key
    ),
]


@pytest.mark.parametrize(
    "section",
    [*(s for s in SECTIONS if not s.endswith("methods")), "methods.star", "study.methods.star"],
)
def test_unknown_key_is_refused_by_name(section: str, write_params: Callable[[dict], Path]) -> None:
    key = f"{section}.surprise" if section else "surprise"
    with pytest.raises(StarError, match="surprise"):
        load_params(write_params(changed(DEFAULT, key, 1)))


def test_an_alias_stands_for_its_value(write_params: Callable[[dict], Path]) -> None:
    """`yaml.safe_dump` writes them for a list that is used twice."""
    names = ["star", "flow_grpo"]
    path = write_params({**DEFAULT, "runs": {"geneval": names, "ocr": names, "preference": names}})
    assert "*id001" in path.read_text(encoding="utf-8")
    assert load_params(path).runs == {"geneval": names, "ocr": names, "preference": names}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "top level"),
        ("- a\n- b\n", "top level"),
        ("seed: 0\nseed: 1\n", "'seed' appears twice"),
        ("train: {epochs: 1, epochs: 2}\n", "'epochs' appears twice"),
        ("train: [1,\n", "line"),
        ("\tseed: 0\n", "line"),
        ("seed: !!python/object/apply:os.getcwd []\n", "constructor"),
        ("? [a]\n: 1\n", "line 1: key ['a'] is not a text"),
        ("methods: {1: {}}\n", "line 1: key 1 is not a text"),
        ("seed: \x00\n", "special characters"),
        ("[" * 2000, ""),
        ("a: &x [*x]\n", "line 1: an alias for what it is in"),
        (
            "".join(
                f"v{i}: &v{i} [{', '.join([f'*v{i - 1}' if i else '0'] * 9)}]\n" for i in range(30)
            ),
            "more than 100000 values once its aliases are written out",
        ),
        ("seed: !!bool abc\n", "not a YAML file of parameters"),
        ('seed: !!int ""\n', "not a YAML file of parameters"),
        ('seed: !!float ""\n', "not a YAML file of parameters"),
        ('seed: !!timestamp "foo"\n', "not a YAML file of parameters"),
        ("seed: 0x" + "F" * 5000, "line 1: '0xFFF"),
        ("seed: 0b1" + "0" * 20_000, "has more than 100 digits"),
        ("seed: " + "9" * 5000, "has more than 100 digits"),
        ("#" * 1_000_001, "larger than 1000000 bytes"),
    ],
)
def test_broken_yaml_is_one_line(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(StarError) as caught:
        load_params(path)
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "no",
            "yes",
            "on",
            "true",
            "False",
            "010",
            "-010",
            "0o17",
            "08",
            "0x1F",
            "0b11",
            "+5",
            "00",
            "1_000",
            "6_",
        ),
        *(
            "1:30",
            "1:30:00",
            "1:30.5",
            "1e3",
            "1e-3",
            "1.",
            ".5",
            "1_0.5",
            "-.inf",
            "1e3_0",
            "null",
            "~",
            "0X10",
        ),
    ],
)
def test_plain_values_are_what_dvc_reads(text: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(f"seed: {text}\n", encoding="utf-8")
    ours, theirs = read_values(path)["seed"], YAML(typ="safe", pure=True).load(path)["seed"]
    assert (type(ours), ours) == (type(theirs), theirs)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("report.title", "a\0b", r"report\.title: 'a\\x00b' has NUL in it; remove that character"),
        (
            "report.title",
            "a \ud83d",
            r"report\.title: 'a \\ud83d' has half a surrogate pair in it; remove",
        ),
        ("prompts.ocr.train_file", "a\udc00.txt", r"ocr\.train_file: .*half a surrogate pair"),
        ("methods", {"a\0": {"lam": 1}}, r"methods\.'a\\x00'\.lam: 'a\\x00' has NUL in it"),
        (
            "model.path",
            "a/" + "x" * 256,
            r"model\.path: 'x+\.\.\.x+' is longer than 255 bytes",
        ),
        (
            "prompts.ocr.test_file",
            "é" * 128,
            r"prompts\.ocr\.test_file: .* is longer than 255 bytes",
        ),
        ("model.prompt_cache", "x" * 256 + "/a", r"model\.prompt_cache: .* is longer than"),
    ],
)
def test_texts_that_no_file_can_hold(
    key: str, value: Any, message: str, write_params: Callable[[dict], Path], tmp_path: Path
) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(
        json.dumps(changed(DEFAULT, key, value))
    )  # PyYAML would refuse some, or drop them
    with pytest.raises(StarError, match=message):
        load_params(path)


@pytest.mark.parametrize(
    "value", ["x" * 900_000, ["x" * 1000] * 500, {"x" * 1000: 1}, 10**99, {"a\nb": {"lam": "x"}}]
)
@pytest.mark.parametrize(
    "key", ["report.title", "methods", "model.revision", "allocation.blocks", "seed"]
)
def test_messages_are_short(key: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(json.dumps(changed(DEFAULT, key, value)))
    with pytest.raises(StarError) as caught:
        load_params(path)
    assert len(str(caught.value)) < len(str(path)) + 500
    assert "\n" not in str(caught.value)


def test_many_unknown_keys_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(json.dumps(DEFAULT | {f"key{index}": 0 for index in range(20_000)}))
    with pytest.raises(
        StarError, match="top level: unknown key 'key0'; known: seed, runs, model"
    ) as caught:
        load_params(path)
    assert len(str(caught.value)) < len(str(path)) + 300


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("allocation.blocks", "some", "all, or a list of indices from 0"),
        ("allocation.blocks", [], "all, or a list of indices from 0"),
        ("model.prompt_cache", 3, "null keeps both in memory"),
        ("model.revision", "a b", "'a b' is not allowed; Commit of a hub id; null for a directory"),
        ("model.path", " x", "' x' is not allowed; Directory or hub id of an SD3-family"),
        (
            "methods",
            {"Bad Name": {}},
            "the name 'Bad Name' is not allowed; .*lower-case letters, digits and _",
        ),
        (
            "prompts.ocr.test_file",
            {"url": "ftp://a.org/b", "sha256": None},
            "file.url: 'ftp.* is not allowed; Where",
        ),
        (
            "report.title",
            "x" * 201,
            "is too long; Heading of the page; text of at most 200 characters",
        ),
        (
            "train.epochs",
            -1,
            "train.epochs: -1 is less than the minimum of 1; Rounds of rollout and update; a count",
        ),
        (
            "train.learning_rat",
            1,
            "train: unknown key 'learning_rat'; did you mean 'learning_rate'. known: epochs, ",
        ),
    ],
)
def test_messages_say_what_is_allowed(
    key: str, value: Any, message: str, write_params: Callable[[dict], Path]
) -> None:
    with pytest.raises(StarError, match=message) as caught:
        load_params(write_params(changed(DEFAULT, key, value)))
    assert "(?" not in str(caught.value) and "given schemas" not in str(caught.value)


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StarError, match="absent.yaml"):
        load_params(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"report: \xff\n")
    with pytest.raises(StarError, match="latin.yaml"):
        load_params(tmp_path / "latin.yaml")


@settings(max_examples=60, deadline=None)
@given(
    key=st.sampled_from(KEYS),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
        ),
        max_leaves=5,
    ),
)
def test_any_value_is_either_accepted_or_refused_in_one_line(
    key: str, value: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "params.yaml"
    path.write_text(
        yaml.safe_dump(changed(DEFAULT, key, value), allow_unicode=True), encoding="utf-8"
    )
    try:
        params = load_params(path)
    except StarError as error:
        assert "\n" not in str(error)
    else:
        assert params.rollout.batch > 0


def test_fingerprint_follows_the_sections_it_is_given(write_params: Callable[[dict], Path]) -> None:
    params = load_params(ROOT / "params.yaml")
    other = load_params(write_params(changed(DEFAULT, "report.title", "Another")))
    assert fingerprint(params.report) != fingerprint(other.report)
    assert fingerprint(params.train, params.model) == fingerprint(other.train, other.model)
    assert fingerprint(params.train, params.model) != fingerprint(params.model, params.train)


def test_refusal_comes_before_torch_and_in_three_seconds(
    write_params: Callable[[dict], Path],
) -> None:
    path = write_params(changed(DEFAULT, "train.epochs", -1))
    program = (
        "import sys, time; from pathlib import Path\n"
        "from star.system.errors import StarError; from star.config.params import load_params\n"
        f"try: load_params(Path({str(path)!r}))\n"
        "except StarError as error: print(error)\n"
        "print(sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))\n"
        "print(time.process_time())"  # of the processor: the tests may share it
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    message, heavy, seconds = run.stdout.strip().splitlines()
    assert "train.epochs" in message
    assert "-1" in message
    assert heavy == "[]"
    assert float(seconds) < 3


def mutations() -> Iterator[tuple[str, str, str, str]]:
    """Text of a wrong file, the key that its message names, the value it shows, and what it says is
    allowed."""

    def text(key: str, value: Any) -> str:
        return json.dumps(changed(DEFAULT, key, value))

    for section in (
        "",
        "model.",
        "prompts.",
        "prompts.ocr.",
        "rollout.",
        "train.",
        "rewards.ocr.",
        "methods.star.",
    ):
        yield (
            text(f"{section}surprise", 1),
            section.rstrip(".").split(".")[-1],
            "'surprise'",
            "known: ",
        )
    for key in (
        "seed",
        "model.path",
        "train",
        "rollout.window",
        "rewards.geneval.soft",
        "study.aim",
        "core.weights",
    ):
        yield json.dumps(without(DEFAULT, key)), key.split(".")[-1], "", "is a required property"
    for key in (
        "seed",
        "model.resolution",
        "rollout.steps",
        "train.epochs",
        "evaluate.batch",
        "study.seeds",
    ):
        yield text(key, "8"), key, "'8'", "'integer'"
        yield text(key, None), key, "None", "'integer'"
        yield text(key, [8]), key, "[8]", "'integer'"
        yield text(key, -1), key, "-1", "minimum of"
        yield text(key, 10**90), key, "10000", "maximum of"
    for key in (
        "model.precision",
        "rollout.sampler",
        "allocation.source",
        "train.kl_form",
        "prompts.world",
    ):
        yield text(key, "surprise"), key, "'surprise'", "is not one of ["
    for key in (
        "model.guidance_scale",
        "train.learning_rate",
        "rewards.timeout",
        "allocation.lam",
        "core.weights.text",
    ):
        yield text(key, float("nan")).replace("NaN", ".nan"), key, "nan", "finite number"
        yield text(key, float("inf")).replace("Infinity", ".inf"), key, "inf", "maximum of"
        yield text(key, True), key, "True", "'number'"
    for key, value, shown, allowed in (
        ("rollout.batch", 7, "7", "use one of 1, 2, 4"),
        ("train.updates_per_epoch", 3, "3", "use one of 1, 2"),
        ("rollout.window", [3, 1], "[3, 1]", "must be 0 <= first < end"),
        ("rollout.window", [0, 8], "[0, 8]", "rollout.steps - 1 = 7"),
        ("rewards.geneval.detector", "mask2former", "mask2former", "a directory or hub id"),
        ("rewards.geneval.revision", "abc", "'abc'", "set null"),
        ("prompts.world", "coco", "coco", "use mask2former"),
        ("study.rate_seeds", 6, "6", "more than study.seeds 5"),
        ("study.aim", "nobody", "'nobody'", "one of study.methods"),
        ("runs.ocr", ["nobody"], "'nobody'", "known: star, flow_grpo"),
        ("methods.star.objective", "scalar", "scalar", "use weighted or local"),
        ("allocation.encoders", {"clip": 0, "t5": 0}, "0", "raise one"),
        ("allocation.blocks", "some", "'some'", "all, or a list of indices from 0"),
    ):
        named = {
            "methods.star.objective": "methods.star",
            "rewards.geneval.detector": "rewards.geneval.path",
        }
        named["allocation.encoders"] = "allocation: encoders"
        yield text(key, value), named.get(key, key), shown, allowed
    for broken, shown in (
        ("seed: 0\nseed: 1\n", "'seed' appears twice"),
        ("train: {epochs: 1, epochs: 2}\n", "'epochs' appears twice"),
        ("train: [1,\n", "line"),
        ("\tseed: 0\n", "line"),
        ("seed: !!bool abc\n", "abc"),
        ("a: &x [*x]\n", "an alias for what it is in"),
        ("seed: 0x" + "F" * 5000, "more than 100 digits"),
    ):
        yield broken, "", shown, ""


def test_each_of_many_mistakes_is_refused_before_torch_and_in_three_seconds(tmp_path: Path) -> None:
    cases = list(mutations())
    assert len(cases) >= 60
    for index, (text, *_) in enumerate(cases):
        (tmp_path / f"{index}.yaml").write_text(text)
    program = (
        "import json, sys, time; from pathlib import Path\n"
        "from star.system.errors import StarError; from star.config.params import load_params\n"
        f"for index in range({len(cases)}):\n"
        "    before = time.process_time()\n"  # of the processor: the tests may share it
        "    try: load_params(Path(sys.argv[1], f'{index}.yaml'))\n"
        "    except StarError as error: print(json.dumps([str(error), time.process_time() - before]))\n"
        "    else: print(json.dumps(['accepted', 0]))\n"
        "assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    for (_, key, shown, allowed), line in zip(cases, run.stdout.splitlines(), strict=True):
        message, seconds = json.loads(line)
        assert key in message and shown in message and allowed in message, (
            key,
            shown,
            allowed,
            message,
        )
        assert seconds < 3 and "\n" not in message


LINES = (ROOT / "params.yaml").read_text(encoding="utf-8").splitlines(keepends=True)
PIECES = st.sampled_from(
    [
        *"{}[]:,#&*!|>?-'\"%@`~ \n\t\0\r",
        "!!int ",
        "!!bool ",
        "!!float ",
        "!!binary ",
        "!!set ",
        "!!timestamp ",
        "!!omap ",
    ]
    + [
        "&a ",
        "*a",
        "<<: ",
        "---\n",
        "? ",
        "0x",
        "010",
        "1:30",
        ".nan",
        "\\ud83d",
        "\ufeff",
        "null",
        '"',
        "- ",
    ]
) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)


@settings(max_examples=150, deadline=None)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, len("".join(LINES))), st.integers(0, 12), PIECES), max_size=4
    ),
    moves=st.lists(
        st.tuples(st.integers(0, len(LINES) - 1), st.sampled_from(["drop", "twice"])), max_size=2
    ),
)
def test_any_edit_of_the_text_is_read_or_refused(
    edits: list[tuple[int, int, str]],
    moves: list[tuple[int, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    lines = list(LINES)
    for index, move in moves:
        lines[index] = "" if move == "drop" else lines[index] * 2
    text = "".join(lines)
    for place, length, piece in edits:
        text = text[:place] + piece + text[place + length :]
    path = tmp_path_factory.mktemp("edit") / "params.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        assert isinstance(load_params(path), Params)
    except StarError as error:
        assert "\n" not in str(error) and len(str(error)) < len(str(path)) + 600


def test_module_has_no_second_list_of_tasks() -> None:
    assert set(TASKS) == set(schema()["properties"]["runs"]["properties"])
