"""Every parameter of `params.yaml`, once: its type, range, unit and meaning, as frozen dataclasses.

pydantic checks what is read from a file; a section that code makes is taken as it is. The text
below a field is its description in refusals and in `docs/parameters.md`. What one key cannot say
alone is in `star.config.consistency`."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, Strict

from star.config.kinds import (
    Batch,
    Count,
    Divisor,
    EachOnce,
    Factor,
    Flag,
    Index,
    Keys,
    Name,
    Number,
    PathOrId,
    Rate,
    Revision,
    Section,
    Share,
    Side,
    Steps,
    Text,
    Whole,
    fields_of,
)
from star.system.errors import StarError

TASKS = ("geneval", "ocr", "preference")
SPANS = ("object", "count", "color", "relation", "text", "carrier", "subject", "content")


@dataclass(frozen=True)
class ModelParams(Section):
    """The base model, its precision and the adapter trained on it."""

    path: PathOrId
    """Directory or hub id of an SD3-family diffusers pipeline."""
    revision: Revision | None
    """Commit of a hub id; null for a directory."""
    resolution: Annotated[Whole, Field(ge=16, le=4096, multiple_of=16)]
    """Side of an image, in pixels."""
    t5_tokens: Annotated[Whole, Field(ge=1, le=512)]
    """Length of the T5 part of the text sequence, in tokens."""
    precision: Literal["auto", "no", "bf16", "fp16"]
    """Type of the transformer's products and of its frozen weights in them; "no" is float32, auto
    is bf16 if the device has it, else no. LoRA and norms are float32."""
    guidance_scale: Annotated[Number, Field(ge=1, le=50)]
    """Classifier-free guidance of rollout, update and evaluation; a factor, 1 is none."""
    lora_rank: Annotated[Whole, Field(ge=1, le=1024)]
    """Rank of the LoRA adapter."""
    lora_alpha: Batch
    """LoRA scale times rank; without unit."""
    gradient_checkpointing: Flag
    """Whether the update recomputes activations instead of keeping them."""
    compile: Literal["no", "inductor", "aot_eager"]
    """Backend of torch.compile for the transformer's blocks; "no" runs them as they are. Twenty to
    thirty graphs are compiled in the first epoch, which takes minutes."""
    tf32: Flag
    """Whether float32 products may use TF32 on a GPU; those of mask2former never do."""
    vae_slicing: Flag
    """Whether images are decoded one by one."""
    prompt_cache: PathOrId | None
    """Folder for prompt embeddings, with which the text encoders leave the device once all are
    encoded; null keeps both in memory."""


@dataclass(frozen=True)
class PromptSource(Section):
    """A prompt file by URL; `star.prompts.published` says what becomes of it."""

    url: Annotated[
        Text,
        Field(
            pattern=r"^(https://[A-Za-z0-9.-]+|http://(localhost|127\.0\.0\.1))(:[0-9]{1,5})?/[!-~]*$",
            max_length=1024,
            title="an https URL with a path, or http on the loopback",
        ),
    ]
    """Where the file can be fetched, pinned to a Git commit."""
    sha256: (
        Annotated[
            Text,
            Field(pattern="^[0-9a-f]{64}$", title="a text of 64 lower-case hexadecimal digits"),
        ]
        | None
    )
    """SHA-256 of the file; null is refused with the digits to put here."""


@dataclass(frozen=True)
class PromptSetParams(Section):
    """Prompt sets of one task."""

    train: Count
    """Training prompts; the most that is taken from a file."""
    test: Annotated[Whole, Field(ge=1, le=100_000)]
    """Held-out prompts; the most that is taken from a file."""
    train_file: PathOrId | PromptSource | None
    """Training prompts in the published format: a file below data/prompts, or its url and sha256;
    null uses the built-in grammar."""
    test_file: PathOrId | PromptSource | None
    """Held-out prompts in the published format: a file below data/prompts, or its url and sha256;
    null uses the built-in grammar."""


@dataclass(frozen=True)
class PromptsParams(Section):
    """Training and test prompts of the three tasks."""

    world: Literal["miniature", "coco"]
    """Object classes of the built-in grammars: miniature (16 classes) or coco (GenEval's 80)."""
    geneval: PromptSetParams
    """Prompt sets of the GenEval task."""
    ocr: PromptSetParams
    """Prompt sets of the visual text task."""
    preference: PromptSetParams
    """Prompt sets of the preference task."""


@dataclass(frozen=True)
class CoreParams(Section):
    """The core content of a prompt."""

    weights: Annotated[dict[str, float], Keys(dict.fromkeys(SPANS, Factor))]
    """Weight of each kind of span; a factor, 0 leaves it out. A carrier has quoted text on it, as
    a sign; subject and content (its other content words) are of a free prompt."""


@dataclass(frozen=True)
class RolloutParams(Section):
    """How training images are sampled."""

    steps: Annotated[Whole, Field(ge=2, le=1000)]
    """Denoising steps of a rollout."""
    sampler: Literal["flow_sde", "dance", "cps"]
    """The stochastic step: of Flow-GRPO, of DanceGRPO (constant noise), or of Flow-CPS."""
    noise_level: Annotated[Number, Field(gt=0, le=10)]
    """The sampler's factor a of the noise; without unit, at most 1 for cps."""
    window: Annotated[list[Index], Strict(), Field(min_length=2, max_length=2, title="two indices")]
    """Steps [first, end), from 0, that are stochastic and trained; the others are ODE steps."""
    slide_every: Annotated[Whole, Field(ge=0, le=1_000_000)]
    """Epochs between moves of the window by one step (back to step 0 at the end); 0: fixed."""
    last_step: Literal["ode", "sde"]
    """The last step, which no window trains: of the ODE, or stochastic as in Flow-GRPO's code
    (flow_grpo's alone; by cps it has no noise)."""
    same_latent: Flag
    """Whether the rollouts of a group start from one initial noise (flow_grpo's alone)."""
    batch: Batch
    """Images per forward pass; a divisor of train.prompts_per_epoch x train.group_size."""

    @property
    def window_limit(self) -> int:
        """Return the step before which the window must end.

        The last step is never trained. Into the last noise level `cps` steps with almost no noise.
        """
        return self.steps - (2 if self.sampler == "cps" else 1)


@dataclass(frozen=True)
class AllocationParams(Section):
    """How an advantage is spread over steps and positions."""

    source: Literal[
        "attention",
        "uniform",
        "shuffled",
        "other_rollout",
        "random_tokens",
        "time_averaged",
        "guidance",
    ]
    """Source of the maps: attention, uniform (no map), or a control (docs/method.md, Controls)."""
    objective: Literal["scalar", "weighted", "local"]
    """Clipped ratio of a whole step (scalar), of a step averaged with the map (weighted), or of
    each position (local)."""
    clause_wise: Flag
    """Whether each clause of the prompt has its own advantage and map."""
    clause_maps: Literal["own", "share"]
    """Map of a clause if clause_wise: its own relevance (own), or its share of the relevance of all
    clauses of the prompt at a position (share)."""
    lam: Factor
    """Strength of the allocation; a factor, 0 is uniform."""
    blocks: Literal["all"] | Annotated[list[Index], Strict(), Field(min_length=1), EachOnce]
    """Transformer blocks whose attention is read: all, or a list of indices from 0."""
    encoders: Annotated[dict[str, float], Keys({"clip": Factor, "t5": Factor})]
    """Weight of the core tokens in each part of the text sequence: those of the two CLIP encoders,
    and of T5; a factor, 0 leaves them out."""
    normalise_tokens: Flag
    """Whether each core token's map is divided by its mean before the maps are averaged."""
    smoothing: Annotated[Number, Field(ge=0, le=256)]
    """Sigma of a Gaussian over the map, in image tokens; 0 is none."""
    temporal: Literal["per_step", "joint"]
    """Where the mean of a map is one: at each step (per_step) or over all trained steps (joint)."""

    @property
    def uses_maps(self) -> bool:
        """Return whether maps are used: not for source uniform or strength 0."""
        return self.source != "uniform" and self.lam > 0


@dataclass(frozen=True)
class TrainParams(Section):
    """The training: its algorithm, size, optimizer and what it leaves behind."""

    algorithm: Literal["flow_grpo", "awm", "nft"]
    """flow_grpo: ratios of a stochastic sampler's steps. awm (Advantage Weighted Matching) and nft
    (DiffusionNFT): regression of the velocity on the noised images; rollouts are ODE steps, each
    from noise of its own, and the section `forward` is read in place of the keys about noise, ratio
    and KL."""
    epochs: Count
    """Rounds of rollout and update."""
    prompts_per_epoch: Annotated[Whole, Field(ge=1, le=65_536)]
    """Prompts (groups) of an epoch."""
    group_size: Annotated[Whole, Field(ge=2, le=4096)]
    """Rollouts per prompt."""
    updates_per_epoch: Annotated[Whole, Field(ge=1, le=65_536)]
    """Optimizer steps per epoch; a divisor of the rollout batches of an epoch."""
    reuse_rollout: Flag
    """Whether the update takes the rollout's forward passes in place of its own (flow_grpo's alone,
    with one update an epoch): faster, and all graphs of an epoch are in memory at once."""
    learning_rate: Rate
    """AdamW's learning rate; a step size without unit."""
    weight_decay: Share
    """AdamW's weight decay; a share per step."""
    max_grad_norm: Annotated[Number, Field(gt=0, le=1_000_000)]
    """Gradients are scaled down to this L2 norm."""
    clip_range: Rate
    """Epsilon of clip(r, 1-eps, 1+eps) for the scalar ratio; scaled for the others (D4)."""
    trust: Literal["clip", "kl_mask"]
    """What bounds the update: clip (by clip_range), or kl_mask as in Flow-DPPO: a ratio is dropped
    that moved with its advantage while the step's exact KL is 1e-5 or more; no clip_range."""
    normalise_ratio: Flag
    """Whether ratios are normalised as in GRPO-Guard; the clip range is then in its units."""
    step_weight: Literal["none", "noise"]
    """Weight of a step's loss: none, or its noise as in TempFlow-GRPO, of mean 1 over the trained
    steps."""
    advantage_clip: Divisor
    """Advantages are cut at plus and minus this many standard deviations. In nft a location is all
    good, or all bad, from there on."""
    zero_advantage: Literal["keep", "drop"]
    """Whether rollouts of advantage 0 count in an update's means of the loss and of the KL (keep),
    or not (drop, as in Flow-GRPO's code; the KL weighs less beside the others' advantages)."""
    kl_beta: Factor
    """Weight of the KL term to the base model; 0 is none."""
    kl_form: Literal["published", "exact", "none"]
    """KL as published (without the step length), exact, or none: never computed, for kl_beta 0."""
    init_adapter: PathOrId | None
    """Folder of a LoRA adapter (diffusers' or PEFT's form) from which the training starts; null: a
    fresh one. The KL's reference is the base model all the same."""
    ema_decay: Annotated[Number, Field(ge=0, lt=1)]
    """Share of the average kept at each of its updates."""
    ema_every: Count
    """Optimizer steps between updates of the average."""
    save_every: Count
    """Epochs between resume states."""
    keep_states: Steps
    """Resume states that are kept, the newest ones."""
    skip_updates: Annotated[Whole, Field(ge=0, le=1_000_000)]
    """Updates that may be skipped because the loss or a gradient is not finite."""
    sample_every: Count
    """Epochs between sample grids and saved maps."""
    evaluate_every: Annotated[Whole, Field(ge=0, le=1_000_000)]
    """Epochs between scores on held-out prompts (EMA adapter, rollout.steps without noise), also
    made before the first epoch and after the last; 0: none."""
    evaluate_prompts: Count
    """Held-out prompts that are scored then, evenly of all tags; all if there are fewer."""
    tracker: Literal["none", "wandb", "tensorboard"]
    """Experiment tracker: wandb (offline unless WANDB_MODE says otherwise), tensorboard (below
    logs/tensorboard; an extra of its own), or none."""


@dataclass(frozen=True)
class ForwardParams(Section):
    """The training of `train.algorithm` awm and nft."""

    solver: Literal["euler", "dpm2m"]
    """ODE steps of a rollout: Euler's, or DPM-Solver++(2M)'s. Evaluations take Euler's."""
    draws: Steps
    """Noise levels at which an image is trained."""
    levels: Literal["stratified", "steps"]
    """What they are: one at random from each equal part of the rollout's schedule (stratified), or
    different steps of it, at random (steps; at most rollout.steps draws)."""
    shared_noise: Flag
    """Whether the images of a group are trained at the same levels, with the same noise."""
    advantage: Literal["clip", "tanh"]
    """What becomes of an advantage A cut by train.advantage_clip: nothing (clip), or 3 tanh(A/3)
    as in V-GRPO (tanh)."""
    anchor: Factor
    """Weight of the squared distance from the anchor's velocity; 0 is none."""
    anchor_to: Literal["old", "base", "ema"]
    """The anchor: the policy that drew the images (old; with one update an epoch of awm it has no
    gradient), the base model (base; awm is then RAM), or an average of awm's policy over epochs
    (ema; as published). A base or average costs a forward pass a draw."""
    anchor_decay: Annotated[Number, Field(ge=0, lt=1)]
    """Share of itself that the anchor ema keeps after an epoch; less at first, as
    train.ema_decay."""
    level_scale: Flag
    """Whether awm's error is divided by its root mean square, so that levels count alike; false as
    published."""
    nft_beta: Annotated[Number, Field(gt=0, le=1)]
    """How far nft's good and bad policy lie from the old one; a share of what was learnt."""
    old_rate: Share
    """Growth with each update of the share of itself that nft's old policy, which draws, keeps
    after an epoch: min(old_rate x (updates - old_wait), old_most)."""
    old_wait: Annotated[Whole, Field(ge=0, le=1_000_000)]
    """Updates before which nft's old policy keeps nothing."""
    old_most: Annotated[Number, Field(ge=0, lt=1)]
    """Largest share that nft's old policy keeps."""


Changes = Annotated[
    dict[str, Any],
    Keys(
        fields_of(AllocationParams) | fields_of(TrainParams) | fields_of(ForwardParams),
        required=False,
    ),
]
Methods = Annotated[dict[Name, Changes], Field(min_length=1)]


@dataclass(frozen=True)
class GenevalParams(Section):
    """Object detection and GenEval's clauses."""

    detector: Literal["exact", "mask2former"]
    """Detector of objects: exact (the miniature's) or mask2former (COCO's 80 classes)."""
    path: PathOrId | None
    """Directory or hub id of mask2former's COCO instance segmentation model; null for exact."""
    revision: Revision | None
    """Commit of that hub id; null for a directory."""
    color_path: PathOrId | None
    """Directory or hub id of the CLIP model that names mask2former's colours; null for exact."""
    color_revision: Revision | None
    """Commit of that hub id; null for a directory."""
    batch: Batch
    """Images per forward pass of mask2former."""
    soft: Literal["clamped", "published"]
    """Soft reward: clamped to 0 to 1, one entry per requirement; or as published by Flow-GRPO."""
    score_threshold: Share
    """Least score of a detection that counts; a share."""
    counting_threshold: Share
    """Least score of a detection for counting prompts; a share."""
    max_per_class: Steps
    """Most detections of a class that are kept."""


@dataclass(frozen=True)
class OcrParams(Section):
    """Text recognition."""

    workers: Annotated[Whole, Field(ge=1, le=256)]
    """Processes that read text."""
    substring: Flag
    """Whether a text that contains the target scores 1, as published."""
    read_side: Side
    """Side to which smaller images are enlarged before reading, in pixels."""


@dataclass(frozen=True)
class PreferenceParams(Section):
    """Image preference of a CLIP model."""

    path: PathOrId
    """Directory or hub id of a CLIP preference model."""
    revision: Revision | None
    """Commit of a hub id; null for a directory."""
    scale: Divisor
    """The reward is the score divided by this; without unit."""
    precision: Literal["float32", "bf16"]
    """Arithmetic of the model, here and where it judges in evaluation: float32, or bf16 (autocast
    over float32 weights; features are compared in float32)."""


@dataclass(frozen=True)
class RewardsParams(Section):
    """The three rewards, in training and in evaluation."""

    timeout: Annotated[Number, Field(gt=0, le=86_400)]
    """How long the scores of a batch may take, in seconds."""
    geneval: GenevalParams
    ocr: OcrParams
    preference: PreferenceParams


@dataclass(frozen=True)
class EvaluateParams(Section):
    """Evaluation of the base model and of each trained adapter on every benchmark."""

    steps: Steps
    """Denoising steps of an evaluation image."""
    images_per_prompt: Annotated[
        dict[str, int], Keys(dict.fromkeys(TASKS, Annotated[Whole, Field(ge=1, le=256)]))
    ]
    """Images per test prompt of each benchmark."""
    batch: Batch
    """Images per forward pass."""
    bootstrap: Annotated[Whole, Field(ge=100, le=1_000_000)]
    """Resamples of the 95 % intervals."""
    second_reader: Literal["ppocrv6", "template", "none"]
    """Reader of OCR images that no training sees: ppocrv6 (any size), template (the miniature's
    letters in 64 pixels), or none."""


@dataclass(frozen=True)
class ReportParams(Section):
    """The HTML page."""

    title: Annotated[Text, Field(min_length=1, max_length=200)]
    """Heading of the page."""
    images: Annotated[Whole, Field(ge=0, le=64)]
    """Before/after pairs per task."""


@dataclass(frozen=True)
class StudyRun:
    """One run of the study."""

    task: str
    method: str
    seed: int
    rate: float

    @property
    def name(self) -> str:
        """Return the stem of its file; the rate is written so that it reads back unchanged."""
        return f"{self.task}-{self.method}-{self.seed}-{self.rate!r}"


@dataclass(frozen=True)
class StudyParams(Section):
    """The comparison of variants over seeds, `snakemake study`."""

    tasks: Annotated[list[Literal["geneval", "ocr"]], Strict(), Field(min_length=1), EachOnce]
    """Tasks of the study."""
    aim: Name
    """The variant of which the study tests whether it needs fewer images; named beforehand."""
    seeds: Annotated[Whole, Field(ge=2, le=1000)]
    """Seeds of every method, from seed 0."""
    epochs: Count
    """Rounds of rollout and update of a run."""
    evaluate_every: Count
    """Epochs between tests on held-out prompts."""
    learning_rate: Rate
    """AdamW's learning rate of a method that gives none of its own; a step size without unit."""
    second_reader: Literal["ppocrv6", "template"]
    """Second reader of the study's OCR images: ppocrv6 or template, as of evaluate."""
    methods: Methods
    """Methods to compare: by name, the keys of `allocation`, `train` and `forward` that each
    overrides."""

    def rate(self, method: str) -> float:
        """Return a method's own learning rate, or else the study's."""
        return float(self.methods[method].get("learning_rate", self.learning_rate))

    def runs(self) -> list[StudyRun]:
        """Return all runs: `seeds` of every method at its rate."""
        return [
            StudyRun(task, method, seed, self.rate(method))
            for task in self.tasks
            for method in self.methods
            for seed in range(self.seeds)
        ]


@dataclass(frozen=True)
class Params(Section):
    """Every parameter of a run, one section per stage."""

    seed: Annotated[Whole, Field(ge=0, le=2**31 - 1)]
    """Seed of prompts, noise, initial adapter and bootstrap; without unit."""
    runs: Annotated[
        dict[str, list[str]],
        Keys(dict.fromkeys(TASKS, Annotated[list[Name], Strict(), EachOnce])),
    ]
    """What is trained: for each task the names of methods (sections of `methods`), or none."""
    model: ModelParams
    prompts: PromptsParams
    core: CoreParams
    rollout: RolloutParams
    allocation: AllocationParams
    methods: Methods
    """Variants of the method: by name, the keys of `allocation`, `train` and `forward` that each
    overrides."""
    train: TrainParams
    forward: ForwardParams
    rewards: RewardsParams
    evaluate: EvaluateParams
    report: ReportParams
    study: StudyParams

    def with_method(self, name: str) -> "Params":
        """Return the parameters with the keys that the method ``name`` overrides.

        Raises:
            StarError: no such method.
        """
        if name not in self.methods:
            known = ", ".join(self.methods)
            raise StarError(f"no method {name!r} under `methods` in the parameters; known: {known}")
        return self.with_changes(self.methods[name])

    def with_changes(self, changes: dict[str, Any]) -> "Params":
        """Return the parameters with other values of keys of `allocation`, `train`, `forward`."""
        sections = {}
        for name in ("allocation", "train", "forward"):
            section = getattr(self, name)
            own = {field.name for field in dataclasses.fields(section)}
            kept = {key: value for key, value in changes.items() if key in own}
            sections[name] = dataclasses.replace(section, **kept)
        return dataclasses.replace(self, **sections)

    def of_study(self, name: str) -> "Params":
        """Return the parameters with the keys of a method of the study, and its rate."""
        return self.with_changes(
            {**self.study.methods[name], "learning_rate": self.study.rate(name)}
        )

    def paths(self) -> Iterator[tuple[str, str]]:
        """Yield the keys that may name a model's or adapter's folder, and their values."""
        rewards = self.rewards
        yield "model.path", self.model.path
        for key, path in (
            ("train.init_adapter", self.train.init_adapter),
            ("rewards.geneval.path", rewards.geneval.path),
            ("rewards.geneval.color_path", rewards.geneval.color_path),
            ("rewards.preference.path", rewards.preference.path),
        ):
            if path is not None:
                yield key, path

    @property
    def images_per_epoch(self) -> int:
        return self.train.prompts_per_epoch * self.train.group_size


def fingerprint(*sections: Any) -> str:
    """Return sixteen hex digits that change when any of the given parameter sections changes."""
    plain = [
        dataclasses.asdict(s) if dataclasses.is_dataclass(s) and not isinstance(s, type) else s
        for s in sections
    ]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
