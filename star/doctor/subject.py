"""What the full doctor measures: a model with trainers over its weights, and small epochs of them.

On a GPU it is Stable Diffusion 3.5 Medium with random weights. On the CPU it is the parameters' own
small model. Text is random in both, and the reward costs nothing.
"""

import copy
import dataclasses
import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline

from star.config.params import TASKS, Params
from star.config.reading import load_params
from star.doctor.random_weights import (
    random_pipeline,
    random_trainer,
    random_transformer,
    random_vae,
    sharing,
)
from star.method.precision import resolve_precision, set_tf32
from star.plan.configs import SD35_MEDIUM
from star.policy.loading import find_pipeline, open_pipeline
from star.system.errors import StarError
from star.training.policy_gradient import PolicyGradient
from star.training.trainer import Trainer

TOKENIZERS = "models/miniature"
RECIPE, SMALL_RECIPE = Path("presets/sd35m-1gpu-geneval.yaml"), Path("params.yaml")
ALLOCATIONS: dict[str, dict[str, Any]] = {
    "uniform": {"source": "uniform", "objective": "scalar"},
    "star": {"source": "attention", "objective": "local"},
}


@dataclass(frozen=True)
class Sizes:
    """The size of what is measured.

    Attributes:
        images: of a group, in one batch, which is an epoch.
        steps: of a rollout, all but the last trained.
        draws: noise levels at which awm and nft train an image.
        rounds: timed epochs of each setting, after one that is not counted.
        matrix: side of the matrices whose product gives the device's own rate.
        read: images of the OCR reader.
        compiler: `model.compile`.
    """

    images: int
    steps: int
    draws: int
    rounds: int
    matrix: int
    read: int
    compiler: str


ON_CARD = Sizes(8, 4, 3, 5, 8192, 128, "inductor")
ON_CPU = Sizes(4, 3, 2, 1, 512, 4, "aot_eager")  # inductor would take minutes


class Subject:
    """One model in one process.

    Attributes:
        file: of the recipe: the one given, or one that fits the device.
        params: its recipe for epochs of one group.
        device: the GPU if there is one.
    """

    def __init__(self, file: Path) -> None:
        card = torch.cuda.is_available()
        self.device = torch.device("cuda" if card else "cpu")
        self.sizes = ON_CARD if card else ON_CPU
        params = load_params(file)
        if card == Path(params.model.path).is_dir():
            file = RECIPE if card else SMALL_RECIPE
            params = load_params(file)
        if card and params.model.path != SD35_MEDIUM:
            raise StarError(f"{file}: model.path must be {SD35_MEDIUM}: no other sizes are known")
        self.file, self.whole = file, params
        self.params = _sized(params, self.sizes, self.device)
        set_tf32(self.params.model.tf32)  # as star.policy.sd3.load_policy
        torch.manual_seed(0)
        self._pipe = self._open()  # float32, on the CPU
        self._held: dict[str, StableDiffusion3Pipeline] = {}

    def _open(self) -> StableDiffusion3Pipeline:
        model = self.params.model
        if self.device.type == "cpu":
            return open_pipeline(find_pipeline(model), model, torch.float32)
        if not Path(TOKENIZERS).is_dir():
            raise StarError(f"no {TOKENIZERS}, whose tokenizers are used: start in the checkout")
        return random_pipeline(TOKENIZERS, random_transformer(), random_vae())

    @property
    def name(self) -> str:
        random = " with random weights" if self.device.type == "cuda" else ""
        return f"{self.params.model.path}{random}, by {self.file}"

    def pipe(self, precision: str) -> StableDiffusion3Pipeline:
        """Return the pipeline whose weights all trainers of one precision share."""
        if precision not in self._held:
            transformer = copy.deepcopy(self._pipe.transformer)
            parts = {**self._pipe.components, "transformer": transformer}
            self._held[precision] = StableDiffusion3Pipeline(**parts)
        return self._held[precision]

    def forget(self) -> None:
        """Free what no trainer holds, and the weights of other precisions than the recipe's."""
        own = self.params.model.precision
        self._held = {name: pipe for name, pipe in self._held.items() if name == own}
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def trained_by(self, algorithm: str, allocation: str) -> Params:
        """Return the parameters of an algorithm, with one of `ALLOCATIONS`."""
        train: dict[str, Any] = {"algorithm": algorithm}
        if algorithm != "flow_grpo":  # which alone has a KL
            train |= {"kl_form": "none", "kl_beta": 0.0}
        return dataclasses.replace(
            self.params,
            train=dataclasses.replace(self.params.train, **train),
            allocation=dataclasses.replace(self.params.allocation, **ALLOCATIONS[allocation]),
        )

    def trainer(
        self, algorithm: str = "flow_grpo", allocation: str = "star", **settings: Any
    ) -> Trainer:
        """Return a trainer with an adapter of its own; ``settings`` are of `model` or `train`."""
        params = self.trained_by(algorithm, allocation)
        for section in ("model", "train"):
            known = {field.name for field in dataclasses.fields(getattr(params, section))}
            changed = {key: value for key, value in settings.items() if key in known}
            values = dataclasses.replace(getattr(params, section), **changed)
            params = dataclasses.replace(params, **{section: values})
        pipe = sharing(self.pipe(params.model.precision))
        run = random_trainer(params, params.allocation, pipe, self.device)
        if isinstance(run.algorithm, PolicyGradient):  # a figure of its own
            run.algorithm.refuse_clipped = lambda *_: None  # type: ignore[method-assign]
        return run


def _sized(params: Params, sizes: Sizes, device: torch.device) -> Params:
    """Return the recipe for epochs of one group, always of one prompt."""
    # No task's files are fetched: of the other tasks, the test prompts would be.
    drawn: dict[str, Any] = {"train": 1, "test": 1, "train_file": None, "test_file": None}
    prompts = {task: dataclasses.replace(getattr(params.prompts, task), **drawn) for task in TASKS}
    changes: dict[str, dict[str, Any]] = {
        "model": {
            "prompt_cache": None,
            "precision": resolve_precision(params.model.precision, device),
        },
        "rollout": {
            "steps": sizes.steps,
            "window": [0, sizes.steps - 1],
            "slide_every": 0,
            "batch": sizes.images,
        },
        "train": {
            "prompts_per_epoch": 1,
            "group_size": sizes.images,
            "updates_per_epoch": 1,
            "epochs": 1,
            "init_adapter": None,
        },
        "forward": {"draws": sizes.draws},
        "prompts": prompts,
    }
    sections = {
        name: dataclasses.replace(getattr(params, name), **values)
        for name, values in changes.items()
    }
    return dataclasses.replace(params, **sections)
