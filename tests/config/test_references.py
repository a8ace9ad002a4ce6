"""The methods with which the study compares a method: of its family, and of no other."""

import dataclasses
from pathlib import Path

import pytest

from star.config.reading import load_params
from star.config.references import shuffled_control, uniform_form

DEFAULT = load_params(Path(__file__).resolve().parents[2] / "params.yaml")
AWM = {"algorithm": "awm", "updates_per_epoch": 1}
METHODS = {
    "flow_grpo": {"source": "uniform", "objective": "scalar"},
    "ones": {"source": "uniform"},
    "joint_shuffled": {"source": "shuffled", "temporal": "joint"},
    "shuffled": {"source": "shuffled", "algorithm": "flow_grpo"},
    "star": {},
    "joint": {"temporal": "joint"},
    "random": {"source": "random_tokens", "learning_rate": 1.5e-3},
    "faster": {"learning_rate": 1e-2},
    "noise": {"source": "uniform", "objective": "scalar", "step_weight": "noise"},
    "awm_shuffled": AWM | {"source": "shuffled"},
    "awm": AWM | {"source": "uniform"},
    "awm_star": AWM,
    "awm_joint": AWM | {"temporal": "joint"},
    "anchored": AWM | {"anchor_to": "base"},
}
STUDY = dataclasses.replace(DEFAULT.study, methods=METHODS, learning_rate=1.5e-3)
PARAMS = dataclasses.replace(DEFAULT, study=STUDY)
EXPECTED = {  # uniform form, shuffled control
    "flow_grpo": (None, None),
    "ones": ("flow_grpo", None),
    "joint_shuffled": ("flow_grpo", None),
    "shuffled": ("flow_grpo", None),
    "star": ("flow_grpo", "shuffled"),
    "joint": ("flow_grpo", "joint_shuffled"),
    "random": ("flow_grpo", "shuffled"),
    "faster": (None, None),
    "noise": (None, None),
    "awm": (None, None),
    "awm_star": ("awm", "awm_shuffled"),
    "awm_joint": ("awm", "awm_shuffled"),
    "awm_shuffled": ("awm", None),
    "anchored": (None, None),
}


@pytest.mark.parametrize("name", METHODS)
def test_references_of_a_method(name: str) -> None:
    assert (uniform_form(PARAMS, name), shuffled_control(PARAMS, name)) == EXPECTED[name]
