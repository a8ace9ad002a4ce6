"""Edits of parameters, code, prompts and models, and the stages that have to run after each."""

from dataclasses import dataclass

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
WEIGHTS = "models/miniature/vae/diffusion_pytorch_model.safetensors"
OCR_PROMPTS = frozenset({"prompts@ocr", "core@ocr-train", "core@ocr-test"})
OWN = frozenset({"prompts@preference", "core@preference-train", "core@preference-test"})
OTHER = frozenset({"train_geneval@geneval-flow_grpo", "evaluate_geneval@geneval-flow_grpo"})


@dataclass(frozen=True)
class Edit:
    """A key of params.yaml with a new value, or a file that gets `added`."""

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

# Edits of a group are looked at one by one and then run together; a stage's start costs seconds.
# A code edit concerns every rule whose table names the package.
GROUPS: dict[str, tuple[Edit, ...]] = {
    "all": (
        Edit("seed", 5, PROMPTS | TRAIN | EVALUATIONS, EVERYTHING),
        Edit("prompts.ocr.test", 3, frozenset({"prompts@ocr"}), OCR_PROMPTS | EVALUATIONS),
        Edit("star/prompts/words.py", COMMENT, EVERYTHING, EVERYTHING),
        Edit("star/config/params.py", COMMENT, EVERYTHING, EVERYTHING),
        Edit("star/system/files.py", COMMENT, EVERYTHING, EVERYTHING),
    ),
    "training": (
        Edit("core.weights.count", 0.5, TRAIN, TRAIN | TRAINED | REPORT),
        Edit("rollout.noise_level", 0.8, TRAIN, TRAIN | TRAINED | REPORT),
        Edit("allocation.lam", 2.0, TRAIN, TRAIN | TRAINED | REPORT),
        Edit("methods.star.objective", "weighted", TRAIN, TRAIN | TRAINED | REPORT),
        Edit("train.learning_rate", 2e-3, TRAIN, TRAIN | TRAINED | REPORT),
        Edit("star/training/trainer.py", COMMENT, TRAIN, TRAIN | TRAINED | REPORT),
    ),
    "model": (
        Edit("model.lora_rank", 3, MODEL, TRAIN | EVALUATIONS),
        Edit("rewards.geneval.score_threshold", 0.4, MODEL, TRAIN | EVALUATIONS),
        Edit(WEIGHTS, "x", MODEL, TRAIN | EVALUATIONS),
        Edit("star/policy/sd3.py", COMMENT, MODEL, TRAIN | EVALUATIONS),
        Edit("star/rewards/mask2former.py", COMMENT, MODEL, TRAIN | EVALUATIONS),
    ),
    "evaluation": (
        Edit("evaluate.steps", 4, BASE | TRAINED, EVALUATIONS),
        Edit("rewards.ocr.substring", True, BASE | TRAINED, EVALUATIONS),
        Edit("star/evaluation/evaluate.py", COMMENT, EVALUATIONS, EVALUATIONS),
    ),
    "report": (
        Edit("report.title", "Another", REPORT, REPORT),
        Edit("star/report/page.py", COMMENT, REPORT, REPORT),
        Edit("star/report/page.css", COMMENT, REPORT, REPORT),
    ),
    "nothing": (
        Edit("study.seeds", 3),
        Edit("methods.flow_grpo.objective", "local"),
        Edit("docs/scaling.md", COMMENT),
        Edit("star/cli.py", COMMENT),
        Edit("star/plan/table.py", COMMENT),
        Edit("star/study/page.py", COMMENT),
        Edit("star/system/locks.py", COMMENT),
    ),
}

# Where DVC runs more than Snakemake: its stages depend on the folders of all prompt files and of
# all models.
COARSE = (Edit(OWN_PROMPTS, "a dog\n"), Edit("models/miniature-preference/model.safetensors", "x"))
COARSE_BY_DVC = PROMPTS | OWN | TRAIN | EVALUATIONS
COARSE_BY_SNAKEMAKE = OWN | EVALUATIONS
