"""The sections of what is trained: one class a network, one field a key."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from moist.config.fields import (
    WHERE,
    Epochs,
    Fraction,
    OptionalEpochs,
    OptionalInt,
    OptionalPath,
    Peer,
    Section,
    Weight,
    Widths,
    only,
)


class TrainingConfig(Section):
    """How one network is trained."""

    epochs: Epochs = Field(20, description="passes over the training images")
    batch_size: int = Field(64, ge=2, le=65536, description="images a step")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="update rule")
    lr: float = Field(1e-3, gt=0, le=10, description="peak learning rate")
    weight_decay: float = Field(0.01, ge=0, le=1, description="decay of the weights")
    momentum: float = Field(
        0.9, ge=0, lt=1, description="momentum of sgd", json_schema_extra=only(optimizer="sgd")
    )
    nesterov: bool = Field(
        False, description="look-ahead momentum of sgd", json_schema_extra=only(optimizer="sgd")
    )
    schedule: Literal["constant", "cosine", "one_cycle"] = Field(
        "cosine", description="learning rate over the steps"
    )
    horizon: OptionalEpochs = Field(
        None,
        description="epochs the schedule is laid out for; more than `epochs` truncates it",
    )

    @model_validator(mode="after")
    def _schedule_and_momentum_fit(self) -> TrainingConfig:
        if self.horizon is not None and self.horizon < self.epochs:
            raise ValueError(f"`.horizon={self.horizon}` is shorter than `.epochs={self.epochs}`")
        if self.nesterov and not self.momentum:
            raise ValueError("`.nesterov=true` needs a `.momentum` above 0")
        return self


class TeacherConfig(TrainingConfig):
    """The large network that is distilled."""

    arch: Literal["resnet18", Peer] = Field("resnet18", description="teacher network")
    weights: OptionalPath = Field(
        None,
        description="trained state dict (.safetensors, .pth) to use instead of training",
        json_schema_extra=WHERE,
    )
    epochs: Epochs = Field(12, description="passes over the training images")
    batch_size: int = Field(128, ge=2, le=65536, description="images a step")
    lr: float = Field(4e-3, gt=0, le=10, description="peak learning rate")
    schedule: Literal["constant", "cosine", "one_cycle"] = Field(
        "one_cycle", description="learning rate over the steps"
    )


class DistillConfig(TrainingConfig):
    """How the student learns from the teacher."""

    epochs: Epochs = Field(30, description="passes over the training images")
    loss: Literal["kd", "dkd", "dist", "moe_kd"] = Field(
        "kd",
        description="kd: Hinton's; dkd: decoupled; dist: correlations; moe_kd: latent teacher",
    )
    alpha: Fraction = Field(
        0.7,
        description="weight of the soft loss, 1-alpha that of the labels; not for moe_kd",
        json_schema_extra=only(loss=("kd", "dkd", "dist")),
    )
    warmup: int = Field(
        0, ge=0, le=10_000, description="epochs in which the soft loss grows to its weight"
    )
    standardize: bool = Field(
        False, description="kd, dkd: logits to mean 0 and deviation 1, image by image"
    )
    target_weight: Weight = Field(
        1.0, description="dkd: weight of the target class's KL", json_schema_extra=only(loss="dkd")
    )
    others_weight: Weight = Field(
        2.0, description="dkd: weight of the other classes' KL", json_schema_extra=only(loss="dkd")
    )
    rows_weight: Weight = Field(
        1.0,
        description="dist: weight of the correlation over classes",
        json_schema_extra=only(loss="dist"),
    )
    columns_weight: Weight = Field(
        1.0,
        description="dist: weight of the correlation over images",
        json_schema_extra=only(loss="dist"),
    )
    gate: Literal["student", "teacher"] = Field(
        "student",
        description="moe_kd: teacher's classifier on student features, or on the teacher's own",
        json_schema_extra=only(loss="moe_kd"),
    )
    experts: Literal["offsets", "heads"] = Field(
        "offsets",
        description="moe_kd: one head with offsets by teacher level, or a head a level",
        json_schema_extra=only(loss="moe_kd"),
    )
    tie: Weight = Field(
        1.0,
        description="moe_kd, gate=student: weight of KL(teacher, gate)",
        json_schema_extra=only(loss="moe_kd", gate="student"),
    )
    views: int = Field(
        4,
        ge=1,
        le=10_000,
        description="augmented copies of the training set the teacher labels, used in turn",
    )

    @model_validator(mode="after")
    def _standardized_logits_have_a_loss(self) -> DistillConfig:
        if self.standardize and self.loss not in {"kd", "dkd"}:
            raise ValueError(f"`.standardize` is for `.loss=kd` and dkd, not for {self.loss}")
        return self


class RoutingConfig(TrainingConfig):
    """How the router is built and pretrained."""

    epochs: Epochs = Field(30, description="passes over the training images")
    widths: Widths = Field((128, 64), description="hidden widths of the linear router")
    hidden_width: int = Field(
        128, ge=1, le=65536, description="hidden width of the cnn and shared routers"
    )
    dropout: float = Field(
        0.2, ge=0, lt=1, description="dropout of the cnn, linear and shared routers"
    )


class JointConfig(TrainingConfig):
    """How router and students are trained together."""

    objective: Literal["hierarchical", "students_only", "em", "switch", "noisy_topk"] = Field(
        "hierarchical", description="what router and students minimize together"
    )
    mask_students: bool = Field(
        True, description="restrict each student's softmax to the classes of its cluster"
    )
    teacher_prior: Fraction = Field(
        0.0,
        description="em: exponent of the teacher's cluster prior in the responsibilities",
        json_schema_extra=only(objective="em"),
    )
    prior_weight: float = Field(
        1.0,
        ge=0,
        le=100,
        description="em: weight of KL(teacher's cluster prior, router)",
        json_schema_extra=only(objective="em"),
    )
    balance: float = Field(
        0.01,
        ge=0,
        le=10,
        description="switch, noisy_topk: weight of the balance loss",
        json_schema_extra=only(objective=("switch", "noisy_topk")),
    )
    balance_form: Literal["weighted", "plain"] = Field(
        "weighted",
        description="balance by each cluster's share of the classes, or to equal parts",
        json_schema_extra=only(objective=("switch", "noisy_topk")),
    )
    z_loss: float = Field(
        0.0, ge=0, le=10, description="weight of the squared log-partition of the router's logits"
    )
    top: int = Field(
        2,
        ge=2,
        le=1000,
        description="noisy_topk: students asked while training",
        json_schema_extra=only(objective="noisy_topk"),
    )

    @model_validator(mode="after")
    def _masked_students_need_their_own_classes(self) -> JointConfig:
        if self.mask_students and self.objective in {"students_only", "switch", "noisy_topk"}:
            raise ValueError(
                f"`.objective={self.objective}` shows a student images of any class, which a"
                " masked softmax gives no probability; set `.mask_students=false`"
            )
        if self.z_loss and self.objective == "students_only":
            raise ValueError(
                "`.z_loss` is for a router that learns: `.objective=students_only` is not"
            )
        return self


class MergeConfig(TrainingConfig):
    """How the students become one (OneS), and how that one is refined."""

    method: Literal["average", "sum", "topk", "svd", "random", "ancestor", "best_expert"] = Field(
        "average", description="how weights are gathered; the last three are controls"
    )
    base: Literal["delta", "absolute"] = Field(
        "delta",
        description="average, sum, svd: of what students learnt, or of whole weights",
        json_schema_extra=only(method=("average", "sum", "svd")),
    )
    layout: Literal["aligned", "block"] = Field(
        "aligned",
        description="topk: units keep their places, or students lie side by side",
        json_schema_extra=only(method="topk"),
    )
    score: Literal["delta", "in", "inout", "act"] = Field(
        "delta",
        description="topk: what makes a unit important",
        json_schema_extra=only(method="topk"),
    )
    rank: OptionalInt = Field(
        None,
        description="svd: singular values kept of each student; none: an equal share",
        json_schema_extra=only(method="svd"),
    )
    scale: Literal["mean", "sum"] = Field(
        "mean",
        description="svd: mean or sum of the students",
        json_schema_extra=only(method="svd"),
    )
    head: Literal["gather", "owner"] = Field(
        "gather", description="owner: each class's last row from the student of its cluster"
    )
    teacher: Literal["mixture", "hard", "teacher", "both", "none"] = Field(
        "mixture", description="who refines: all students weighted, the routed one, the teacher"
    )
    alpha: Fraction = Field(
        0.7,
        description="weight of the soft loss of the refinement",
        json_schema_extra=only(teacher=("mixture", "hard", "teacher", "both")),
    )

    @property
    def gathering(self) -> MergeConfig:
        """Itself without what only the refinement reads."""
        names = ("method", "base", "layout", "score", "rank", "scale", "head")
        return MergeConfig(**{name: getattr(self, name) for name in names})
