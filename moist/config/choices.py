"""The keys of a config: sections, first those of the trainings, and the top-level choices.

`Config` adds the check for conflicts, which `conflicts` and `systems` describe for `Choices`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from moist.config.fields import (
    LOCATION,
    PEERS,
    DataName,
    Epochs,
    Fraction,
    LossName,
    OptionalEpochs,
    OptionalInt,
    OptionalPath,
    Peer,
    RouterName,
    Section,
    StudentName,
    TeacherName,
    Weight,
    Widths,
    added,
    needs,
    only,
    unless,
)  # fmt: skip

Schedule = Literal["constant", "cosine", "one_cycle", "triangular"]


class TrainingConfig(Section):
    """The training of one network."""

    epochs: Epochs = Field(20, description="passes over the training images")
    batch_size: int = Field(64, ge=2, le=65536, description="images in a batch")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="optimizer")
    lr: float = Field(1e-3, gt=0, le=10, description="peak learning rate")
    weight_decay: float = Field(0.01, ge=0, le=1, description="weight decay")
    momentum: float = Field(
        0.9, ge=0, lt=1, description="sgd: momentum", json_schema_extra=only(optimizer="sgd")
    )
    nesterov: bool = Field(
        False, description="sgd: Nesterov momentum", json_schema_extra=only(optimizer="sgd")
    )
    schedule: Schedule = Field("cosine", description="schedule of the learning rate")
    horizon: OptionalEpochs = Field(
        None, description="length of the schedule in epochs, at least `epochs`; none: `epochs`"
    )
    decay: Literal["all", "weights"] = Field(
        "all",
        description="what decays; weights: neither biases nor the scales of norms",
        json_schema_extra=added(),
    )
    norm_lr: float = Field(
        1.0,
        gt=0,
        le=1000,
        description="factor of the learning rate of batch norm's biases; divides their decay",
        json_schema_extra=added(),
    )
    lookahead: int = Field(
        0,
        ge=0,
        le=10_000,
        description="steps after which the weights become a moving average of theirs; 0: never",
        json_schema_extra=added(),
    )

    @model_validator(mode="after")
    def _schedule_and_momentum_fit(self) -> TrainingConfig:
        if self.horizon is not None and self.horizon < self.epochs:
            raise ValueError(f"`.horizon={self.horizon}` is shorter than `.epochs={self.epochs}`")
        if self.nesterov and not self.momentum:
            raise ValueError("`.nesterov=true` needs a `.momentum` above 0")
        return self


class TeacherConfig(TrainingConfig):
    """The training of the teacher, the large network that is distilled."""

    arch: TeacherName = Field(
        "resnet18",
        description="teacher network; torchvision:NAME, timm:NAME: of that package, with images"
        " resized to its own size",
    )
    weights: OptionalPath = Field(
        None,
        description="trained state dict (.safetensors, .pth) to use instead of training; for"
        " torchvision:NAME and timm:NAME also one of other classes, to train from",
        json_schema_extra=LOCATION,
    )
    epochs: Epochs = Field(12, description="passes over the training images")
    batch_size: int = Field(128, ge=2, le=65536, description="images in a batch")
    lr: float = Field(4e-3, gt=0, le=10, description="peak learning rate")
    schedule: Schedule = Field("one_cycle", description="schedule of the learning rate")
    label_smoothing: Fraction = Field(
        0.0,
        description="probability spread evenly over all classes in the labels",
        json_schema_extra=added(),
    )
    stem_epochs: int = Field(
        3,
        ge=0,
        le=10_000,
        description="fastnet, fastnet_wide: epochs that train the bias of the whitening stem",
        json_schema_extra=added(arch=("fastnet", "fastnet_wide")),
    )


class DistillConfig(TrainingConfig):
    """The distillation of the student from the teacher."""

    epochs: Epochs = Field(30, description="passes over the training images")
    loss: LossName = Field(
        "kd",
        description="kd: Hinton's; dkd: decoupled; dist: correlations; moe_kd: latent teacher",
    )
    alpha: Fraction = Field(
        0.7,
        description="weight of the soft loss, 1-alpha is that of the labels; not for moe_kd",
        json_schema_extra=unless(loss="moe_kd"),
    )
    warmup: int = Field(
        0,
        ge=0,
        le=10_000,
        description="epochs in which the weight of the soft loss rises linearly from 0",
    )
    standardize: bool = Field(
        False, description="kd, dkd: standardize each image's logits to mean 0 and deviation 1"
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
        description="moe_kd: gate by the teacher's classifier, on features of student or teacher",
        json_schema_extra=only(loss="moe_kd"),
    )
    experts: Literal["offsets", "heads"] = Field(
        "offsets",
        description="moe_kd: one head with an offset per teacher level, or one head per level",
        json_schema_extra=only(loss="moe_kd"),
    )
    tie: Weight = Field(
        1.0,
        description="moe_kd with gate=student: weight of KL(teacher, gate)",
        json_schema_extra=only(loss="moe_kd", gate="student"),
    )
    views: int = Field(
        4,
        ge=1,
        le=10_000,
        description="augmented copies of the training set with teacher logits, used in turn",
    )
    mirror: bool = Field(
        False,
        description="average the teacher's logits of each copy and of its mirror image",
        json_schema_extra=added(),
    )

    @model_validator(mode="after")
    def _standardized_logits_have_a_loss(self) -> DistillConfig:
        if self.standardize and self.loss not in {"kd", "dkd"}:
            raise ValueError(f"`.standardize` is for `.loss=kd` and dkd, not for {self.loss}")
        return self


class RoutingConfig(TrainingConfig):
    """The router's network and its pretraining."""

    epochs: Epochs = Field(30, description="passes over the training images")
    widths: Widths = Field((128, 64), description="linear: widths of the router's hidden layers")
    hidden_width: int = Field(
        128, ge=1, le=65536, description="cnn, shared: width of the router's hidden layer"
    )
    dropout: float = Field(
        0.2, ge=0, lt=1, description="cnn, linear, shared: dropout of the router"
    )


JointObjective = Literal["hierarchical", "routed", "students_only", "em", "switch", "noisy_topk"]


class JointConfig(TrainingConfig):
    """The joint training of router and students."""

    objective: JointObjective = Field(
        "hierarchical", description="objective that router and students minimize"
    )
    alpha: Fraction = Field(
        0.0,
        description="weight of the teacher's logits in what students learn, as `distill.alpha`;"
        " 0: from labels alone",
        json_schema_extra=added(objective=("hierarchical", "routed", "students_only", "switch")),
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
        description="balance the load to each cluster's share of the classes, or to equal parts",
        json_schema_extra=only(objective=("switch", "noisy_topk")),
    )
    z_loss: float = Field(
        0.0, ge=0, le=10, description="weight of the squared log-partition of the router's logits"
    )
    top: int = Field(
        2,
        ge=2,
        le=1000,
        description="noisy_topk: number of students that train on an image",
        json_schema_extra=only(objective="noisy_topk"),
    )

    @model_validator(mode="after")
    def _masked_students_need_their_own_classes(self) -> JointConfig:
        if self.mask_students and self.objective not in {"hierarchical", "em"}:
            raise ValueError(
                f"`.objective={self.objective}` trains a student on images of any class, to"
                " which a masked softmax gives no probability; set `.mask_students=false`"
            )
        if self.z_loss and self.objective == "students_only":
            raise ValueError(
                "`.z_loss` needs a router that is trained; `.objective=students_only` freezes it"
            )
        return self


class SpecialistsConfig(TrainingConfig):
    """The training of the specialists on the images that the student defers."""

    share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="share of the training images, the student's least certain, that specialists"
        " train on; more than `cascade.defer`: the student is more certain of training images",
    )


class MergeConfig(TrainingConfig):
    """The merging of the students into one (OneS), and the refinement of that student."""

    method: Literal["average", "sum", "topk", "svd", "random", "ancestor", "best_expert"] = Field(
        "average",
        description="how weights are merged; random, ancestor and best_expert are controls",
    )
    base: Literal["delta", "absolute"] = Field(
        "delta",
        description="average, sum, svd: merge differences to the ancestor, or whole weights",
        json_schema_extra=only(method=("average", "sum", "svd")),
    )
    layout: Literal["aligned", "block"] = Field(
        "aligned",
        description="topk: units keep their positions, or students are laid side by side",
        json_schema_extra=only(method="topk"),
    )
    score: Literal["delta", "in", "inout", "act"] = Field(
        "delta",
        description="topk: importance of a unit; delta: change of its weights; in: incoming norm;"
        " inout: incoming times outgoing norm; act: activation times outgoing norm",
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
        "gather",
        description="last layer; gather: merged like the others;"
        " owner: each class's row from the student of its cluster",
    )
    teacher: Literal["mixture", "hard", "teacher", "both", "none"] = Field(
        "mixture",
        description="teacher in the refinement; mixture: all students, weighted; hard: the routed"
        " student; both: mixture and teacher; none: no refinement",
    )
    alpha: Fraction = Field(
        0.7,
        description="weight of the soft loss of the refinement",
        json_schema_extra=only(teacher=("mixture", "hard", "teacher", "both")),
    )

    @property
    def gathering(self) -> MergeConfig:
        """Return the section with the defaults of all keys that only the refinement uses."""
        names = ("method", "base", "layout", "score", "rank", "scale", "head")
        return MergeConfig(**{name: getattr(self, name) for name in names})


class DataConfig(Section):
    """The data set and its splits."""

    name: DataName = Field(
        "digits",
        description="data set; folder: images in ROOT/<class>/ or ROOT/{train,val,test}/<class>/,"
        " at any depth; `val` may be missing, and is the test split without a `test`",
    )
    root: OptionalPath = Field(
        None,
        description="folder of the images, or folder to download torchvision's data sets to",
        json_schema_extra=LOCATION | unless(name="digits"),
    )
    image_size: OptionalInt = Field(
        None, description="side in pixels to resize images to; none: keep their size"
    )
    val_fraction: float = Field(
        0.1, ge=0, le=0.5, description="share of the training images held out for selection"
    )
    test_fraction: float = Field(
        0.2,
        gt=0,
        le=0.5,
        description="folder without a test split: share of its images held out as test images",
        json_schema_extra=added() | needs("data.name", "folder"),
    )
    crop: bool = Field(
        False,
        description="folder: take the centre square of each image; false: stretch images that"
        " `image_size` resizes",
        json_schema_extra=added() | needs("data.name", "folder"),
    )


class AugmentConfig(Section):
    """Augmentation of the training images."""

    flip: bool = Field(False, description="mirror half of the images")
    shift: int = Field(1, ge=0, le=16, description="largest shift in pixels, reflect-padded")
    cutout: int = Field(0, ge=0, le=64, description="side in pixels of an erased square; 0: none")
    alternate: bool = Field(
        False,
        description="mirror every image in every other epoch; with `flip`, half of them begin so",
        json_schema_extra=added(),
    )


class StudentConfig(Section):
    """The student network, copies of which become experts; the cnn's width is `hidden_width`."""

    arch: StudentName = Field(
        "cnn",
        description="student network; residual: narrow stages, by `student.channels` and"
        " `student.blocks`; residual_2mf to 26mf: made of these, of so many multiply-adds",
    )
    channels: Widths = Field(
        (32, 64),
        description="cnn: channels of the two convolutions; residual: of any number of stages",
        json_schema_extra=needs("student.arch", "cnn", "residual"),
    )
    blocks: Widths = Field(
        (2,),
        description="residual: convolutions in each stage, or one number for all stages",
        json_schema_extra=added(arch="residual"),
    )
    batch_norm: bool = Field(
        False,
        description="cnn: batch norm after each convolution",
        json_schema_extra=only(arch="cnn"),
    )

    @model_validator(mode="after")
    def _widths_fit_the_network(self) -> StudentConfig:
        stages = len(self.channels)
        if self.arch != "residual" and stages != 2:
            raise ValueError(f"`.channels` needs two widths, found {stages}")
        if not stages:
            raise ValueError("`.channels` needs a width for each stage, found none")
        if self.arch == "residual" and len(self.blocks) not in {1, stages}:
            raise ValueError(
                f"`.blocks` needs one number, or {stages} as `.channels`, found {len(self.blocks)}"
            )
        return self


class ClusterConfig(Section):
    """How classes are grouped into `k` clusters."""

    method: Literal["kmeans", "spectral", "random"] = Field(
        "kmeans",
        description="kmeans: on the teacher's mean logits per class; spectral: on its confusions;"
        " random: a control",
    )


class EnsembleConfig(Section):
    """How the k students of `system=ensemble` differ."""

    views: Literal["same", "filtered"] = Field(
        "same",
        description="same: students differ by seed alone; filtered: each has its own image filter",
    )


class MixtureConfig(Section):
    """The number of experts that classify an image."""

    top: int = Field(1, ge=1, le=2, description="2: a second expert where the router is uncertain")
    second: Fraction = Field(
        0.2,
        description="top=2: share of the validation images, by router margin, that get it",
        json_schema_extra=needs("mixture.top", 2),
    )


class CascadeConfig(Section):
    """The network to which uncertain images are deferred."""

    fallback: Literal["none", "teacher", Peer] = Field(
        "none", description="network for images of low top probability; a peer is distilled first"
    )
    defer: Fraction = Field(
        0.15,
        description="share of the validation images, the least certain, that are deferred",
        json_schema_extra=needs("cascade.fallback", "teacher", *PEERS),
    )


class LatencyConfig(Section):
    """How long to time each model."""

    repeats: int = Field(
        100, ge=10, le=100_000, description="least number of timed calls of each model"
    )
    seconds: float = Field(
        4.0,
        gt=0,
        le=3600,
        description="most seconds for a batch size (10 calls at least); it ends after a quarter of"
        " them or later, when the spread of every model is at most 5 %",
    )
    runtime: Literal["torch", "onnxruntime"] = Field(
        "torch",
        description="what runs the timed models; onnxruntime (on the CPU, as `moist export` writes"
        " them, in float32): the model is also timed in torch beside it",
        json_schema_extra=added(),
    )


class Choices(Section):
    """All choices that determine a run's result, not yet checked for conflicts."""

    system: Literal["moist", "ones", "ensemble", "student", "specialists"] = Field(
        "moist",
        description="moist: router and k students; ones: these merged into one student;"
        " ensemble: k students averaged; student: one student; specialists: a student that defers"
        " images to k specialists of `cascade.fallback`, and routes them by its own probabilities",
    )
    k: Annotated[int, Field(ge=1, le=1000)] | Literal["auto"] = Field(
        3, description="number of clusters and students; auto: selected by silhouette"
    )
    hidden_width: int = Field(
        256,
        ge=1,
        le=65536,
        description="width of a student's hidden linear layer",
        json_schema_extra=needs("student.arch", "cnn"),
    )
    router: RouterName = Field(
        "cnn",
        description="router network; shared: on the trunk that all students share;"
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
    specialists: SpecialistsConfig = SpecialistsConfig()
    merge: MergeConfig = MergeConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    mixture: MixtureConfig = MixtureConfig()
    cascade: CascadeConfig = CascadeConfig()
    latency: LatencyConfig = LatencyConfig()
