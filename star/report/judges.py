"""What may be said of the judges and the model: the parameters', not always the miniature's."""

from dataclasses import dataclass

from star.config.params import RewardsParams

PICKSCORE, SD35_MEDIUM = "yuvalkirstain/PickScore_v1", "stabilityai/stable-diffusion-3.5-medium"
# Ends of paths, of the two worlds.
STAND_INS, MINIATURES = ("miniature-preference", "crowded-preference"), ("miniature", "crowded")


@dataclass(frozen=True)
class PreferenceJudge:
    """How a page names the preference model, and the paper's PickScore next to it."""

    name: str  # in the middle of a line
    label: str  # of its column
    unit: str
    published: str


def preference_judge(path: str | None) -> PreferenceJudge:
    """Name the judge at ``rewards.preference.path``; None where that is not known."""
    if path == PICKSCORE:
        return PreferenceJudge("PickScore", "PickScore", "logit of PickScore", "23.60")
    if path is not None and is_stand_in(path):
        label, published = "Synthetic preference stand-in", "PickScore 23.60 (another scale)"
        return PreferenceJudge(
            "preference stand-in", label, "logit of the stand-in model", published
        )
    label = "Preference" if path is None else f"Preference by {path}"
    published = "PickScore 23.60 (another model)"
    return PreferenceJudge("preference", label, "logit of the model", published)


def is_stand_in(path: str) -> bool:
    """Say whether the preference model at ``path`` is the miniature's."""
    return path.rstrip("/").endswith(STAND_INS)


def task_names(path: str | None) -> dict[str, str]:
    """Return a name for each task, the preference one by its judge's path."""
    return {"geneval": "GenEval", "ocr": "OCR", "preference": preference_judge(path).name}


def is_miniature(model_path: str, rewards: RewardsParams) -> bool:
    """Say whether model and judges are all the miniature's own."""
    own = model_path.rstrip("/").endswith(MINIATURES) and is_stand_in(rewards.preference.path)
    return own and rewards.geneval.detector == "exact"
