"""Config sections without training: data, architecture, systems and measurement."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from moist.config.fields import (
    LOCATION,
    Fraction,
    OptionalInt,
    OptionalPath,
    Peer,
    Section,
    Widths,
)


class DataConfig(Section):
    """The data set and its splits."""

    name: Literal["digits", "cifar10", "cifar100", "fashion_mnist", "svhn", "folder"] = Field(
        "digits", description="data set; folder: images in ROOT/{train,test}/<class>/*"
    )
    root: OptionalPath = Field(
        None,
        description="folder of the images, or folder to download torchvision's data sets to",
        json_schema_extra=LOCATION,
    )
    image_size: OptionalInt = Field(
        None, description="side in pixels to resize images to; none: keep their size"
    )
    val_fraction: float = Field(
        0.1, ge=0, le=0.5, description="share of the training images held out to select with"
    )


class AugmentConfig(Section):
    """Augmentation of the training images."""

    flip: bool = Field(False, description="mirror half of the images")
    shift: int = Field(1, ge=0, le=16, description="largest shift in pixels, reflect-padded")
    cutout: int = Field(0, ge=0, le=64, description="side in pixels of an erased square; 0: none")


class StudentConfig(Section):
    """The student network, copies of which become experts; the cnn's width is `hidden_width`."""

    arch: Literal["cnn", Peer] = Field("cnn", description="student network")
    channels: Widths = Field((32, 64), description="cnn: channels of the two convolutions")
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
        description="kmeans: on the teacher's mean logits of a class; spectral: on its confusion;"
        " random: a control",
    )


class EnsembleConfig(Section):
    """How the k students of `system=ensemble` differ."""

    views: Literal["same", "filtered"] = Field(
        "same", description="same: by their seed alone; filtered: each has its own image filter"
    )


class MixtureConfig(Section):
    """The number of experts that classify an image."""

    top: int = Field(1, ge=1, le=2, description="2: a second expert where the router is uncertain")
    second: Fraction = Field(
        0.2,
        description="top=2: share of the validation images, by router margin, that get it",
    )


class CascadeConfig(Section):
    """The network to which uncertain images are deferred."""

    fallback: Literal["none", "teacher", Peer] = Field(
        "none", description="network for images of low top probability; a peer is distilled first"
    )
    defer: Fraction = Field(
        0.15, description="share of the validation images, the least certain, that are deferred"
    )


class LatencyConfig(Section):
    """How long to time each model."""

    repeats: int = Field(100, ge=10, le=100_000, description="number of timed calls of each model")
    seconds: float = Field(
        4.0,
        gt=0,
        le=3600,
        description="seconds after which a batch size stops early (10 calls at least)",
    )
