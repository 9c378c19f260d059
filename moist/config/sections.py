"""The sections of what is not trained: data, sizes, choices and measurement."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from moist.config.fields import WHERE, Fraction, OptionalInt, OptionalPath, Peer, Section, Widths


class DataConfig(Section):
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


class AugmentConfig(Section):
    """How training images vary."""

    flip: bool = Field(False, description="mirror half of the training images")
    shift: int = Field(1, ge=0, le=16, description="largest shift in pixels, reflect-padded")
    cutout: int = Field(0, ge=0, le=64, description="side in pixels of an erased square; 0: none")


class StudentConfig(Section):
    """The small network that copies of become experts; the cnn's width is `hidden_width`."""

    arch: Literal["cnn", Peer] = Field("cnn", description="student network")
    channels: Widths = Field((32, 64), description="cnn: filters of the two convolutions")
    batch_norm: bool = Field(False, description="cnn: batch norm after each convolution")

    @model_validator(mode="after")
    def _two_convolutions(self) -> StudentConfig:
        if len(self.channels) != 2:
            raise ValueError(f"`.channels` needs two widths, found {len(self.channels)}")
        return self


class ClusterConfig(Section):
    """How classes are grouped into `k` clusters."""

    method: Literal["kmeans", "spectral", "random"] = Field(
        "kmeans",
        description="kmeans: class-mean logits; spectral: teacher's confusion; random: control",
    )


class EnsembleConfig(Section):
    """How `system=ensemble` makes its k students differ."""

    views: Literal["same", "filtered"] = Field(
        "same", description="filtered: each sees the image through a filter of its own"
    )


class MixtureConfig(Section):
    """How many experts an image is shown."""

    top: int = Field(1, ge=1, le=2, description="2: a second expert where the router is in doubt")
    second: Fraction = Field(
        0.2, description="top=2: share of the validation images, by router margin, it is asked for"
    )


class CascadeConfig(Section):
    """What answers where the model is in doubt."""

    fallback: Literal["none", "teacher", Peer] = Field(
        "none", description="asked where the model's top probability is low; a peer is distilled"
    )
    defer: Fraction = Field(
        0.15, description="share of the validation images, the least certain, that are passed on"
    )


class LatencyConfig(Section):
    """How long is measured how long a call takes."""

    repeats: int = Field(100, ge=10, le=100_000, description="timed calls of each model")
    seconds: float = Field(
        4.0, gt=0, le=3600, description="time after which a batch size stops early (10 at least)"
    )
