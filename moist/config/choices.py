"""The keys of a config: top-level choices and sections.

`Config` adds the check for conflicts, which `conflicts` and `systems` describe for `Choices`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

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
)


class Choices(Section):
    """All choices that determine a run's result, not yet checked for conflicts."""

    system: Literal["moist", "ones", "ensemble", "student"] = Field(
        "moist",
        description="moist: router and k students; ones: these merged into one student;"
        " ensemble: k students averaged; student: one student",
    )
    k: Annotated[int, Field(ge=1, le=1000)] | Literal["auto"] = Field(
        3, description="number of clusters and students; auto: selected by silhouette"
    )
    hidden_width: int = Field(
        256, ge=1, le=65536, description="width of a student's hidden linear layer"
    )
    router: Literal["cnn", "linear", "transformer", "shared", "oracle"] = Field(
        "cnn",
        description="router network; shared: on the students' convolutions;"
        " oracle: the true class, an upper bound",
    )
    temperature: float = Field(4.0, gt=0, le=100, description="temperature of the distillation")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of all random numbers")
    precision: Literal["bf16", "float32"] = Field(
        "bf16", description="precision of training and inference (bf16: mixed precision)"
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
