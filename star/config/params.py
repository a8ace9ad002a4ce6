"""`params.yaml` as frozen dataclasses, checked against `star/config/params.schema.yaml` before
anything expensive.

The schema is the one place that knows types and ranges; what one key cannot say alone is in
`star.config.consistency`."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from star.config.consistency import check_consistency
from star.config.schema import check_schema
from star.config.values import read_values
from star.system.errors import StarError

TASKS = ("geneval", "ocr", "preference")


@dataclass(frozen=True)
class ModelParams:
    path: str
    revision: str | None
    resolution: int
    t5_tokens: int
    precision: str
    guidance_scale: float
    lora_rank: int
    lora_alpha: int
    gradient_checkpointing: bool
    compile: str
    tf32: bool
    vae_slicing: bool
    prompt_cache: str | None


@dataclass(frozen=True)
class PromptSource:
    """A prompt file by URL; `star.prompts.published` says what becomes of it."""

    url: str
    sha256: str | None


@dataclass(frozen=True)
class PromptSetParams:
    train: int
    test: int
    train_file: str | PromptSource | None
    test_file: str | PromptSource | None


@dataclass(frozen=True)
class PromptsParams:
    world: str
    geneval: PromptSetParams
    ocr: PromptSetParams
    preference: PromptSetParams


@dataclass(frozen=True)
class CoreParams:
    weights: dict[str, float]


@dataclass(frozen=True)
class RolloutParams:
    steps: int
    sampler: str
    noise_level: float
    window: list[int]
    slide_every: int
    same_latent: bool
    batch: int


@dataclass(frozen=True)
class AllocationParams:
    source: str
    objective: str
    clause_wise: bool
    clause_maps: str
    lam: float
    blocks: str | list[int]
    encoders: dict[str, float]
    normalise_tokens: bool
    smoothing: float
    temporal: str

    @property
    def uses_maps(self) -> bool:
        """Whether attention decides anything; strength 0 is Flow-GRPO, bit for bit."""
        return self.source != "uniform" and self.lam > 0


@dataclass(frozen=True)
class TrainParams:
    epochs: int
    prompts_per_epoch: int
    group_size: int
    updates_per_epoch: int
    learning_rate: float
    weight_decay: float
    max_grad_norm: float
    clip_range: float
    normalise_ratio: bool
    advantage_clip: float
    kl_beta: float
    kl_form: str
    ema_decay: float
    ema_every: int
    save_every: int
    keep_states: int
    skip_updates: int
    sample_every: int
    tracker: str


@dataclass(frozen=True)
class GenevalParams:
    detector: str
    path: str | None
    revision: str | None
    color_path: str | None
    color_revision: str | None
    batch: int
    soft: str
    score_threshold: float
    counting_threshold: float
    max_per_class: int


@dataclass(frozen=True)
class OcrParams:
    workers: int
    substring: bool
    read_side: int


@dataclass(frozen=True)
class PreferenceParams:
    path: str
    revision: str | None
    scale: float
    precision: str


@dataclass(frozen=True)
class RewardsParams:
    timeout: float
    geneval: GenevalParams
    ocr: OcrParams
    preference: PreferenceParams


@dataclass(frozen=True)
class EvaluateParams:
    steps: int
    images_per_prompt: dict[str, int]
    batch: int
    bootstrap: int
    second_reader: str


@dataclass(frozen=True)
class ReportParams:
    title: str
    images: int


@dataclass(frozen=True)
class StudyRun:
    """One run of the study."""

    task: str
    method: str
    seed: int
    rate: float

    @property
    def name(self) -> str:
        """Stem of its file; the rate as Python writes it, which reads back as the same number."""
        return f"{self.task}-{self.method}-{self.seed}-{self.rate!r}"


@dataclass(frozen=True)
class StudyParams:
    tasks: list[str]
    aim: str
    seeds: int
    epochs: int
    evaluate_every: int
    learning_rate: float
    other_rates: list[float]
    rate_seeds: int
    second_reader: str
    methods: dict[str, dict[str, Any]]

    @property
    def rates(self) -> list[float]:
        """The shared rate, then the others."""
        return [float(rate) for rate in (self.learning_rate, *self.other_rates)]

    def runs(self) -> list[StudyRun]:
        """Every run: `seeds` of each method at the shared rate, `rate_seeds` at each other one."""
        return [
            StudyRun(task, method, seed, rate)
            for task in self.tasks
            for method in self.methods
            for rate in self.rates
            for seed in range(self.seeds if rate == self.learning_rate else self.rate_seeds)
        ]


@dataclass(frozen=True)
class Params:
    seed: int
    runs: dict[str, list[str]]
    model: ModelParams
    prompts: PromptsParams
    core: CoreParams
    rollout: RolloutParams
    allocation: AllocationParams
    methods: dict[str, dict[str, Any]]
    train: TrainParams
    rewards: RewardsParams
    evaluate: EvaluateParams
    report: ReportParams
    study: StudyParams

    def method(self, name: str) -> AllocationParams:
        """The section `allocation` with what the method ``name`` puts in its place.

        Raises:
            StarError: no such method.
        """
        if name not in self.methods:
            raise StarError(
                f"no method {name!r} under `methods` in the parameters; known: {', '.join(self.methods)}"
            )
        return dataclasses.replace(self.allocation, **self.methods[name])

    def paths(self) -> Iterator[tuple[str, str]]:
        """The keys that may name a file or folder, and their values."""
        geneval = self.rewards.geneval
        named: dict[str, str | PromptSource | None] = {
            "model.path": self.model.path,
            "model.prompt_cache": self.model.prompt_cache,
            "rewards.geneval.path": geneval.path,
            "rewards.geneval.color_path": geneval.color_path,
            "rewards.preference.path": self.rewards.preference.path,
        }
        for task in TASKS:
            sets: PromptSetParams = getattr(self.prompts, task)
            named |= {
                f"prompts.{task}.train_file": sets.train_file,
                f"prompts.{task}.test_file": sets.test_file,
            }
        return ((key, value) for key, value in named.items() if isinstance(value, str))

    @property
    def images_per_epoch(self) -> int:
        return self.train.prompts_per_epoch * self.train.group_size


def load_params(path: Path) -> Params:
    """Read, check and type a parameter file.

    Raises:
        StarError: unreadable file, YAML error, unknown or missing key, wrong type, value out of
            range, or sums that do not divide; the message names the key, its value and what is
            allowed.
    """
    values = read_values(path)
    check_schema(values, str(path))
    params = _build(Params, values)
    check_consistency(params, str(path))
    return params


def fingerprint(*sections: Any) -> str:
    """Sixteen hex digits that change when any of the given parameter sections changes."""
    plain = [
        dataclasses.asdict(s) if dataclasses.is_dataclass(s) and not isinstance(s, type) else s
        for s in sections
    ]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def _build(kind: Any, values: Any) -> Any:
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(
            **{f.name: _build(hints[f.name], values[f.name]) for f in dataclasses.fields(kind)}
        )
    if isinstance(values, dict) and PromptSource in get_args(kind):
        return _build(PromptSource, values)
    if kind in (int, float):  # the schema counts 8.0 as an integer and 1 as a number
        return kind(values)
    if kind == dict[str, dict[str, Any]]:  # sections that stand in for keys of `allocation`
        hints = get_type_hints(AllocationParams)
        return {
            name: {key: _build(hints[key], v) for key, v in section.items()}
            for name, section in values.items()
        }
    return values
