"""Edits of parameters, code, prompts and models, and the stages that have to run after each."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.helpers.versioned import OWN_PROMPTS, Project

Stages = frozenset[str]

TASKS = ("geneval", "ocr", "preference")
PROMPTS = frozenset(f"prompts@{task}" for task in TASKS)
CORE = frozenset(f"core@{task}-{split}" for task in TASKS for split in ("train", "test"))
TRAIN = frozenset({"train_geneval@geneval-star"})
BASE = frozenset({"evaluate_base"})
TRAINED = frozenset({"evaluate_geneval@geneval-star"})
REPORT = frozenset({"report"})
EVALUATIONS = BASE | TRAINED | REPORT
MODEL = TRAIN | BASE | TRAINED  # the stages that open a model
EVERYTHING = PROMPTS | CORE | TRAIN | EVALUATIONS
OWN = frozenset({"prompts@preference", "core@preference-train", "core@preference-test"})
OTHER = frozenset({"train_geneval@geneval-flow_grpo", "evaluate_geneval@geneval-flow_grpo"})


@dataclass(frozen=True)
class Edit:
    """A key of params.yaml with a new value, or a file to which the value is added."""

    target: str
    value: object
    direct: Stages = frozenset()  # the stages that read it
    stages: Stages = frozenset()  # these, and all that follow from what they write

    def apply(self, project: Project) -> None:
        if "/" not in self.target:
            project.set(self.target, self.value)
        else:
            with open(project.root / self.target, "a", encoding="utf-8") as file:
                file.write(str(self.value))

    def is_among(self, names: set[str]) -> bool:
        """Whether DVC names the file or the key, or what holds it."""
        return any(
            f"{self.target}/".startswith(f"{name}/") or self.target.startswith(f"{name}.")
            for name in names
        )


RECORD = "record_versions"  # no stage: after `dvc repro` it would tell DVC what DVC knows
COMMENT = "\n# A comment.\n"

# Where DVC runs more than Snakemake: its stages depend on the folders of all prompt files and of
# all models.
COARSE = (Edit(OWN_PROMPTS, "a dog\n"), Edit("models/miniature-preference/model.safetensors", "x"))
COARSE_BY_DVC = PROMPTS | OWN | TRAIN | EVALUATIONS
COARSE_BY_SNAKEMAKE = OWN | EVALUATIONS


def _stages(words: str) -> Stages:
    sets = (globals().get(word, {word}) for word in words.split())
    return frozenset().union(*sets)


def _groups() -> dict[str, list[Edit]]:
    text = Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
    return {
        name: [
            Edit(
                edit["target"],
                edit.get("value", COMMENT),
                _stages(edit.get("direct", "")),
                _stages(edit.get("stages", "")),
            )
            for edit in edits
        ]
        for name, edits in yaml.safe_load(text).items()
    }


GROUPS = _groups()
