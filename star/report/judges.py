"""What may be said of the judges and of the model, which are the parameters' and not always the
miniature's."""

from dataclasses import dataclass

from star.config.params import Params

PICKSCORE_ID, SD35_MEDIUM_ID = (
    "yuvalkirstain/PickScore_v1",
    "stabilityai/stable-diffusion-3.5-medium",
)
STAND_IN, MINIATURE = "miniature-preference", "miniature"  # ends of paths


@dataclass(frozen=True)
class PreferenceJudge:
    """name: in the middle of a line; label, unit: of its column; published: the paper's PickScore
    beside it."""

    name: str
    label: str
    unit: str
    published: str


def preference_judge(path: str | None) -> PreferenceJudge:
    """Of ``rewards.preference.path``; None where it is not known."""
    if path == PICKSCORE_ID:
        return PreferenceJudge("PickScore", "PickScore", "logit of PickScore", "23.60")
    if path is not None and is_stand_in(path):
        label, unit = "Synthetic preference stand-in", "logit of the stand-in model"
        return PreferenceJudge(
            "preference stand-in", label, unit, "PickScore 23.60 (another scale)"
        )
    label = "Preference" if path is None else f"Preference by {path}"
    return PreferenceJudge(
        "preference", label, "logit of the model", "PickScore 23.60 (another model)"
    )


def is_stand_in(path: str) -> bool:
    return path.rstrip("/").endswith(STAND_IN)


def task_names(path: str | None) -> dict[str, str]:
    """A name for each task, the preference one by its judge's path."""
    return {"geneval": "GenEval", "ocr": "OCR", "preference": preference_judge(path).name}


def is_miniature(params: Params) -> bool:
    """Whether model and judges are all the miniature's own."""
    own = params.model.path.rstrip("/").endswith(MINIATURE) and is_stand_in(
        params.rewards.preference.path
    )
    return own and params.rewards.geneval.detector == "exact"


def published_note(params: Params) -> str:
    """How the paper's row stands to the rows above it, where they are not the miniature's."""
    path, exact = params.rewards.preference.path, params.rewards.geneval.detector == "exact"
    model = (
        "this model"
        if params.model.path == SD35_MEDIUM_ID
        else f"SD3.5-M and not of {params.model.path}"
    )
    detector = "the exact detector of drawn scenes" if exact else params.rewards.geneval.path
    other = "" if path == PICKSCORE_ID else ", which is not PickScore"
    return (
        f"is of {model}, by a training, prompts and code of its own, of which only the abstract was known here. The "
        f"rows above are judged by {detector}, which is not GenEval's own code, by PP-OCR and by {path}{other}."
    )
