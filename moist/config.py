"""The configuration of a run: every field has a default, a bound and a description.

`KEY=VALUE` overrides use dotted names (`distill.alpha=0.5`); `flat` gives the same names back,
and they are the column names of run records, studies and dashboards. What only says *where*
(`data.root`, `teacher.weights`) is marked `keyed=False`: content is keyed, never a path.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    model_validator,
)

WHERE: dict[str, Any] = {"keyed": False}


def _numbers(value: object) -> object:
    """Read `32,64` or `[32, 64]`; sequences pass through."""
    if isinstance(value, str):
        return [part for part in value.strip("[]() ").replace(" ", "").split(",") if part]
    return value


def _nothing(value: object) -> object:
    """Read the ways YAML, Python and a shell write 'no value'."""
    return None if isinstance(value, str) and value.lower() in {"", "none", "null"} else value


Widths = Annotated[
    tuple[Annotated[int, Field(ge=1, le=65536)], ...],
    BeforeValidator(_numbers),
    PlainSerializer(lambda widths: ",".join(map(str, widths)), return_type=str),
]
Epochs = Annotated[int, Field(ge=1, le=10_000)]
Fraction = Annotated[float, Field(ge=0, le=1)]
OptionalInt = Annotated[Annotated[int, Field(ge=1, le=1024)] | None, BeforeValidator(_nothing)]
OptionalEpochs = Annotated[Epochs | None, BeforeValidator(_nothing)]
OptionalPath = Annotated[Path | None, BeforeValidator(_nothing)]


class Section(BaseModel):
    """Frozen, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Data(Section):
    """Which images, and how they are split."""

    name: Literal["digits", "cifar10", "cifar100", "fashion_mnist", "svhn", "folder"] = Field(
        "digits", description="data set; `folder` reads ROOT/{train,test}/<class>/*"
    )
    root: OptionalPath = Field(
        None,
        description="where the files are (folder), or are downloaded to (torchvision's sets)",
        json_schema_extra=WHERE,
    )
    image_size: OptionalInt = Field(
        None, description="pixels a side to resize to; none keeps the images' own size"
    )
    val_fraction: float = Field(
        0.1, ge=0, le=0.5, description="share of the training images held out to select with"
    )


class Augment(Section):
    """How training images vary."""

    flip: bool = Field(False, description="mirror half of the training images")
    shift: int = Field(1, ge=0, le=16, description="largest shift in pixels, reflect-padded")
    cutout: int = Field(0, ge=0, le=64, description="side in pixels of an erased square; 0: none")


class Training(Section):
    """How one network is trained."""

    epochs: Epochs = Field(20, description="passes over the training images")
    batch_size: int = Field(64, ge=2, le=65536, description="images a step")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="update rule")
    lr: float = Field(1e-3, gt=0, le=10, description="peak learning rate")
    weight_decay: float = Field(0.01, ge=0, le=1, description="decay of the weights")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd")
    nesterov: bool = Field(False, description="look-ahead momentum of sgd")
    schedule: Literal["constant", "cosine", "one_cycle"] = Field(
        "cosine", description="learning rate over the steps"
    )
    horizon: OptionalEpochs = Field(
        None,
        description="epochs the schedule is laid out for; more than `epochs` truncates it",
    )

    @model_validator(mode="after")
    def _schedule_and_momentum_fit(self) -> Training:
        if self.horizon is not None and self.horizon < self.epochs:
            raise ValueError(f"`.horizon={self.horizon}` is shorter than `.epochs={self.epochs}`")
        if self.nesterov and not self.momentum:
            raise ValueError("`.nesterov=true` needs a `.momentum` above 0")
        return self


class Teacher(Training):
    """The large network that is distilled."""

    arch: Literal["resnet18", "resnet8"] = Field("resnet18", description="teacher network")
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


class Student(Section):
    """The small network that copies of become experts; its width is `hidden_width`."""

    arch: Literal["cnn"] = Field("cnn", description="student network")
    channels: Widths = Field((32, 64), description="filters of the two convolutions")
    batch_norm: bool = Field(False, description="batch norm after each convolution")

    @model_validator(mode="after")
    def _two_convolutions(self) -> Student:
        if len(self.channels) != 2:
            raise ValueError(f"`.channels` needs two widths, found {len(self.channels)}")
        return self


class Distill(Training):
    """How the student learns from the teacher."""

    epochs: Epochs = Field(30, description="passes over the training images")
    alpha: Fraction = Field(0.7, description="weight of the soft loss; 0 trains on labels alone")
    views: int = Field(
        4,
        ge=1,
        le=10_000,
        description="augmented copies of the training set the teacher labels, used in turn",
    )


class Cluster(Section):
    """How classes are grouped into `k` clusters."""

    method: Literal["kmeans", "spectral", "random"] = Field(
        "kmeans",
        description="kmeans: class-mean logits; spectral: teacher's confusion; random: control",
    )


class Routing(Training):
    """How the router is built and pretrained."""

    epochs: Epochs = Field(30, description="passes over the training images")
    widths: Widths = Field((128, 64), description="hidden widths of the linear router")
    hidden_width: int = Field(128, ge=1, le=65536, description="hidden width of the cnn router")
    dropout: float = Field(0.2, ge=0, lt=1, description="dropout of the cnn and linear routers")


class Joint(Training):
    """How router and students are trained together."""

    objective: Literal["hierarchical", "students_only", "em", "switch"] = Field(
        "hierarchical", description="what router and students minimize together"
    )
    mask_students: bool = Field(
        True, description="restrict each student's softmax to the classes of its cluster"
    )
    teacher_prior: Fraction = Field(
        0.0, description="em: exponent of the teacher's cluster prior in the responsibilities"
    )
    prior_weight: float = Field(
        1.0, ge=0, le=100, description="em: weight of KL(teacher's cluster prior, router)"
    )
    balance: float = Field(
        0.01, ge=0, le=10, description="switch: weight of the prior-weighted balance loss"
    )

    @model_validator(mode="after")
    def _masked_students_need_their_own_classes(self) -> Joint:
        if self.mask_students and self.objective in {"students_only", "switch"}:
            raise ValueError(
                f"`.objective={self.objective}` shows a student images of any class, which a"
                " masked softmax gives no probability; set `.mask_students=false`"
            )
        return self


class Latency(Section):
    """How long is measured how long a call takes."""

    repeats: int = Field(100, ge=10, le=100_000, description="timed calls of each model")
    seconds: float = Field(
        4.0, gt=0, le=3600, description="time after which a batch size stops early (10 at least)"
    )


class Config(Section):
    """Everything that decides a run's result."""

    k: Annotated[int, Field(ge=1, le=1000)] | Literal["auto"] = Field(
        3, description="clusters and students; auto picks k by silhouette"
    )
    hidden_width: int = Field(
        256, ge=1, le=65536, description="width of the student's hidden linear layer"
    )
    router: Literal["cnn", "linear", "transformer", "oracle"] = Field(
        "cnn", description="router network; oracle routes by the label: an upper bound"
    )
    temperature: float = Field(4.0, gt=0, le=100, description="softening of the teacher's logits")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of everything drawn at random")
    precision: Literal["bf16", "float32"] = Field(
        "bf16", description="arithmetic of training and inference (bf16: mixed)"
    )
    data: Data = Data()
    augment: Augment = Augment()
    teacher: Teacher = Teacher()
    student: Student = Student()
    distill: Distill = Distill()
    cluster: Cluster = Cluster()
    routing: Routing = Routing()
    joint: Joint = Joint()
    latency: Latency = Latency()

    @model_validator(mode="after")
    def _oracle_has_nothing_to_train(self) -> Config:
        if self.router == "oracle" and self.joint.objective in {"em", "switch"}:
            raise ValueError(
                f"`router=oracle` has no weights for `joint.objective={self.joint.objective}`;"
                " use hierarchical or students_only"
            )
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
    """The JSON values of a section that belong in a key: all but what says only where."""
    values: dict[str, Any] = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("keyed") is False:
            del values[name]
        elif isinstance(inner := getattr(section, name), Section):
            values[name] = keyed(inner)
    return values
