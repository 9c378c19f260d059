"""The environment of a stage: device, progress, checkpoint folder. No part of it enters a key."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import psutil
import torch

from moist.disk import write_atomically
from moist.errors import ConfigError, first_line
from moist.interrupts import check
from moist.results.report import Machine

SECONDS = "seconds"
"""The file beside a checkpoint with the seconds that its stage has taken."""


class Progress(Protocol):
    """An observer of a run: a terminal, a log, a tracker."""

    def started(self, stage: str, key: str) -> None: ...
    def advanced(
        self, stage: str, done: int, total: int, metrics: Mapping[str, float]
    ) -> None: ...
    def finished(self, stage: str, key: str, seconds: float) -> None: ...
    def reused(self, stage: str, key: str, seconds: float, origin: str = "") -> None: ...
    def warned(self, message: str) -> None: ...
    def noted(self, text: str) -> None: ...


class Silent:
    """A Progress that discards all events."""

    def started(self, stage: str, key: str) -> None: ...
    def advanced(
        self, stage: str, done: int, total: int, metrics: Mapping[str, float]
    ) -> None: ...
    def finished(self, stage: str, key: str, seconds: float) -> None: ...
    def reused(self, stage: str, key: str, seconds: float, origin: str = "") -> None: ...
    def warned(self, message: str) -> None: ...
    def noted(self, text: str) -> None: ...


@dataclass(frozen=True)
class Env:
    """The environment of a stage; the store sets what follows `progress` for each.

    `began` is the clock reading (s) at which the stage began, less the time of killed attempts;
    `on_step` is called after each epoch, when its checkpoint is on disk. `timed_on` is the machine
    whose latencies are reported, if it is not this one: they must be stored.
    """

    device: torch.device = field(
        default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu")
    )
    progress: Progress = field(default_factory=Silent)
    stage: str = ""
    checkpoints: Path | None = None
    began: float = 0.0
    on_step: Callable[[], object] = lambda: None
    timed_on: Machine | None = None

    def __post_init__(self) -> None:
        # `precision=float32` excludes TensorFloat-32 in convolutions and matrix products.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False

    def at(self, stage: str, checkpoints: Path) -> Env:
        """Return this environment for one stage, with the recorded time of killed attempts."""
        began = time.perf_counter() - _recorded_seconds(checkpoints)
        return replace(self, stage=stage, checkpoints=checkpoints, began=began)

    def seconds(self) -> float:
        """Return the time that the stage has taken so far, killed attempts included."""
        return time.perf_counter() - self.began

    def advanced(self, done: int, total: int, **metrics: float) -> None:
        """Report progress, and record the time; end here after a signal that Python ignored."""
        self.progress.advanced(self.stage, done, total, metrics)
        if self.checkpoints is not None and self.checkpoints.is_dir():
            with suppress(OSError):  # a full disk; only a recorded time depends on it
                seconds = repr(self.seconds()).encode()
                write_atomically(self.checkpoints / SECONDS, seconds, durable=False)
        self.on_step()
        check()

    def machine(self) -> Machine:
        """Describe what a time measured here depends on."""
        on_gpu = self.device.type == "cuda"
        return Machine(
            device=torch.cuda.get_device_name(self.device) if on_gpu else _processor(),
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            system=f"{platform.system()} {platform.machine()}",
        )

    def crowding(self, workers: int = 1, besides: int | None = None) -> str | None:
        """Return a warning if the threads of `workers` processes have too few free cores.

        Threads wait for each other after each operation, so one that shares its core slows all
        of them; a process of one thread only gets its share. Measures the load for 0.1 s, that
        of the process `besides` not included.
        """
        threads = torch.get_num_threads()
        if threads == 1 or self.device.type != "cpu":
            return None
        other = psutil.Process(besides) if besides and psutil.pid_exists(besides) else None
        if other:
            other.cpu_percent()
        percents, own = psutil.cpu_percent(interval=0.1, percpu=True), cores()
        # some containers renumber the cores that they show
        busy = sum(percents[core] for core in own if core < len(percents)) / 100
        if other:
            busy = max(0.0, busy - other.cpu_percent() / 100)
        return crowded(threads * workers, busy, len(own))

    def emulation(self, precision: str) -> str | None:
        """Return a warning if the processor computes `precision` by other instructions."""
        if precision != "bf16" or self.device.type != "cpu" or _has_bf16():
            return None
        return (
            "this processor has no bf16 instructions: with `precision=float32` convolutions are"
            " several times faster than with `precision=bf16`"
        )


def _has_bf16() -> bool:
    """Return whether the library of CPU kernels has a bf16 convolution for this processor."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def crowded(threads: int, busy: float, cores: int) -> str | None:
    """Return a warning if `threads` and `busy` cores together exceed `cores`; else None."""
    if threads + busy < cores + 0.5:
        return None
    return (
        f"{threads} threads on {cores} cores, {busy:.1f} of which are busy with other work:"
        " training may take several times longer than with `--threads 1`, and latencies are not"
        " those of an idle machine"
    )


def _recorded_seconds(checkpoints: Path) -> float:
    """Return the time of killed attempts; 0 if unreadable, as only a record depends on it."""
    try:
        return float((checkpoints / SECONDS).read_text())
    except (OSError, ValueError):
        return 0.0


def cores() -> list[int]:
    """List the numbers of the processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return a context for `precision`: bf16 where it is safe, or float32 throughout."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def _processor() -> str:
    """Return the processor's name and its core count: virtual machines hide the model."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().split("\n\n")[0].splitlines()
        pairs = [line.partition(":") for line in lines]
        fields = {label.strip(): value.strip() for label, _, value in pairs}
        name = fields.get("model name", name)
        if "cpu family" in fields:
            name += f" (family {fields['cpu family']} model {fields.get('model', '?')})"
    return f"{name}, {os.cpu_count()} cores"


def make_env(progress: Progress, device: str | None = None, threads: int | None = None) -> Env:
    """Create the environment for a command's options. Raises ConfigError for an unknown device."""
    if threads:
        torch.set_num_threads(threads)
    if device is None:
        return Env(progress=progress)
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ConfigError(
            f"`--device {device}` is no device of torch", "for example cpu, cuda, cuda:1 or mps"
        ) from None
    try:
        torch.zeros(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"can't compute on `--device {device}`: {first_line(error)}",
            "leave out `--device`, or use `--device cpu`",
        ) from None
    return Env(place, progress)
