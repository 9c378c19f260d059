"""The configuration of a run: every key has a default, a type with bounds and a description.

Dotted names (`distill.alpha`) are the keys of `KEY=VALUE` overrides, of `flat`, and the column
names of run records, studies and dashboards. A field with a path (`data.root`, `teacher.weights`)
is marked `keyed=False`: the content of files enters a stage's key, their location does not.
"""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from moist.config.choices import (
    AugmentConfig,
    CascadeConfig,
    Choices,
    ClusterConfig,
    DataConfig,
    DistillConfig,
    EnsembleConfig,
    JointConfig,
    LatencyConfig,
    MergeConfig,
    MixtureConfig,
    RoutingConfig,
    SpecialistsConfig,
    StudentConfig,
    TeacherConfig,
    TrainingConfig,
)  # fmt: skip
from moist.config.conflicts import find_conflicts
from moist.config.fields import Section

__all__ = [
    "AugmentConfig", "CascadeConfig", "ClusterConfig", "Config", "DataConfig", "DistillConfig",
    "EnsembleConfig", "JointConfig", "LatencyConfig", "MergeConfig", "MixtureConfig",
    "RoutingConfig", "Section", "SpecialistsConfig", "StudentConfig", "TeacherConfig",
    "TrainingConfig", "flat", "keyed", "sections",
]  # fmt: skip


class Config(Choices):
    """All choices that determine a run's result, without conflicts."""

    @model_validator(mode="after")
    def _no_conflicts(self) -> Config:
        for conflict in find_conflicts(self):
            raise ValueError(conflict)
        return self


def sections() -> dict[str, type[Section]]:
    """Return name and class of each section of `Config`."""
    return {
        name: field.annotation
        for name, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }


def flat(config: Config) -> dict[str, Any]:
    """Return every value under its dotted name, as JSON; the names are the override keys."""
    leaves: dict[str, Any] = {}
    for name, value in config.model_dump(mode="json").items():
        if isinstance(value, dict):
            leaves |= {f"{name}.{leaf}": inner for leaf, inner in value.items()}
        else:
            leaves[name] = value
    return leaves


def keyed(section: Section) -> dict[str, Any]:
    """Return the JSON values of a section that enter a stage's key.

    Paths are left out. A value that is not used under the section's other values is replaced by
    its default. A field marked `added` is left out while it has its default.
    """
    values: dict[str, Any] = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        extra: dict[str, Any] = dict(field.json_schema_extra or {})  # type: ignore[arg-type]
        value, default = getattr(section, name), field.get_default()
        used = all(getattr(section, by) in at for by, at in extra.get("only", {}).items())
        used &= all(getattr(section, by) != at for by, at in extra.get("unless", {}).items())
        unchanged = value == default or not used
        if extra.get("keyed") is False or (extra.get("added") and unchanged):
            del values[name]
        elif isinstance(value, Section):
            values[name] = keyed(value)
        elif not used:
            values[name] = default
        elif isinstance(value, str):
            values[name] = value  # with package and version, if it names an entry of another's
    return values
