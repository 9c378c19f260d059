"""A single student, distilled from the teacher: every system starts from one."""

from __future__ import annotations

from typing import Any

from moist.config import Config, StudentConfig
from moist.nets.build import LatentForm
from moist.nets.cnn import STUDENTS, TEACHERS
from moist.systems.bound import Bound
from moist.systems.outputs import Models


def sizes(config: Config) -> dict[str, Any]:
    """Return a student's keyed choices: defaults for a network that has no sizes to choose."""
    options = STUDENTS[config.student.arch].options(config.student, config.hidden_width)
    return {
        "student": config.student if options else StudentConfig(arch=config.student.arch),
        "hidden_width": options.get("hidden_width", 1),
    }


def latent_form(config: Config) -> LatentForm | None:
    """Return form and levels of the head that replaces the student's last layer, if any."""
    if config.distill.loss != "moe_kd" or config.distill.gate == "teacher":
        return None
    return config.distill.experts, len(TEACHERS[config.teacher.arch].levels)


def architecture(config: Config) -> dict[str, Any]:
    """Add nothing to what every system has."""
    return {}


def build(call: Bound, config: Config, models: Models) -> Models:
    """Return the distilled student as the model."""
    return models
