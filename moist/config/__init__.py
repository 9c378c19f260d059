"""The configuration of a run: every field has a default, a bound and a description.

`KEY=VALUE` overrides use dotted names (`distill.alpha=0.5`); `flat` gives the same names back,
and they are the column names of run records, studies and dashboards. What only says *where*
(`data.root`, `teacher.weights`) is marked `keyed=False`: content is keyed, never a path.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from moist.config.conflicts import find_conflicts
from moist.config.fields import Section
from moist.config.sections import (
    AugmentConfig,
    CascadeConfig,
    ClusterConfig,
    DataConfig,
    EnsembleConfig,
    LatencyConfig,
    MixtureConfig,
    StudentConfig,
)
from moist.config.training import (
    DistillConfig,
    JointConfig,
    MergeConfig,
    RoutingConfig,
    TeacherConfig,
    TrainingConfig,
)

__all__ = [
    "AugmentConfig",
    "CascadeConfig",
    "ClusterConfig",
    "Config",
    "DataConfig",
    "DistillConfig",
    "EnsembleConfig",
    "JointConfig",
    "LatencyConfig",
    "MergeConfig",
    "MixtureConfig",
    "RoutingConfig",
    "Section",
    "StudentConfig",
    "TeacherConfig",
    "TrainingConfig",
    "flat",
    "keyed",
    "sections",
]


class Config(Section):
    """Everything that decides a run's result."""

    system: Literal["moist", "ones", "ensemble", "student"] = Field(
        "moist",
        description="ones: the mixture merged into one student; ensemble: k students averaged",
    )
    k: Annotated[int, Field(ge=1, le=1000)] | Literal["auto"] = Field(
        3, description="clusters and students; auto picks k by silhouette"
    )
    hidden_width: int = Field(
        256, ge=1, le=65536, description="width of the student's hidden linear layer"
    )
    router: Literal["cnn", "linear", "transformer", "shared", "oracle"] = Field(
        "cnn",
        description="router network; shared: on the students' convolutions; oracle: upper bound",
    )
    temperature: float = Field(4.0, gt=0, le=100, description="softening of the teacher's logits")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of everything drawn at random")
    precision: Literal["bf16", "float32"] = Field(
        "bf16", description="arithmetic of training and inference (bf16: mixed)"
    )
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig = StudentConfig()
    distill: DistillConfig = DistillConfig()
    cluster: ClusterConfig = ClusterConfig()
    routing: RoutingConfig = RoutingConfig()
    joint: JointConfig = JointConfig()
    merge: MergeConfig = MergeConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    mixture: MixtureConfig = MixtureConfig()
    cascade: CascadeConfig = CascadeConfig()
    latency: LatencyConfig = LatencyConfig()

    @model_validator(mode="after")
    def _no_conflicts(self) -> Config:
        for conflict in find_conflicts(self):
            raise ValueError(conflict)
        return self


def sections() -> dict[str, type[Section]]:
    """Name and class of each section of `Config`."""
    return {
        name: field.annotation
        for name, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }


def flat(config: Config) -> dict[str, Any]:
    """Every leaf under its dotted name, as JSON values; the names are the override keys."""
    leaves: dict[str, Any] = {}
    for name, value in config.model_dump(mode="json").items():
        if isinstance(value, dict):
            leaves |= {f"{name}.{leaf}": inner for leaf, inner in value.items()}
        else:
            leaves[name] = value
    return leaves


def keyed(section: Section) -> dict[str, Any]:
    """The JSON values of a section that belong in a key: all but what says only where; of what
    nothing reads under the section's other values, the default."""
    values: dict[str, Any] = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        extra: dict[str, Any] = dict(field.json_schema_extra or {})  # type: ignore[arg-type]
        if extra.get("keyed") is False:
            del values[name]
        elif isinstance(inner := getattr(section, name), Section):
            values[name] = keyed(inner)
        elif not all(getattr(section, by) in at for by, at in extra.get("only", {}).items()):
            values[name] = field.get_default()
    return values
