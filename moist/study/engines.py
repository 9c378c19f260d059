"""The engines of a search by name: how its trials are run, and with which slots."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial

from moist.errors import ConfigError
from moist.study.workers import Engine, Pool, Slot, make_slots
from moist.sweepfile import Sweep, ends


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster and what each trial takes of it, as requested; None is the default."""

    address: str | None = None
    cpus: float | None = None
    gpus: float | None = None
    connect: bool = True


def check_engine(name: str, needed: Collection[str], sweep: Sweep, reuse: bool) -> None:
    """Raise ConfigError for trials on different machines that would have to time themselves.

    The driver times all others, on its own machine.
    """
    if name != "ray" or "latency_ms" not in needed:
        return
    if "auto" in ends(sweep, "k") or not reuse:
        what = "`--no-reuse`" if not reuse else "`k=auto`"
        raise ConfigError(
            f"`--engine ray` can't select or limit trials by `latency_ms` with {what}: each would"
            " be timed where it runs, on different machines and beside other trials",
            "leave one of them out; `moist pareto STUDY --reseed N` times a frontier afterwards",
        )


def make_engine(
    name: str, workers: int | None, devices: str | None, threads: int | None, cluster: Cluster
) -> tuple[Sequence[Slot], Engine, str]:
    """Return slots, the engine of that name, and a line about where it runs, if that is news.

    With `ray` the one slot is the driver's. Raises ConfigError for a device that does not exist,
    and for a cluster that can't be used.
    """
    if name == "ray":
        return _on_cluster(workers, threads, cluster)
    if name == "local":
        return make_slots(devices, workers or 1, threads), Pool, ""
    from moist.study.inline import Inline

    if workers and workers > 1:
        raise ConfigError(
            f"`--engine inline` runs one trial at a time, not `--workers {workers}`",
            "use `--engine local`",
        )
    return make_slots(devices, 1, threads), Inline, ""


def _on_cluster(
    workers: int | None, threads: int | None, cluster: Cluster
) -> tuple[Sequence[Slot], Engine, str]:
    from moist.study.cluster import Ray, Share, connect, nodes, room

    cpus = 1.0 if cluster.cpus is None else cluster.cpus
    slot = Slot("cpu", threads or max(1, int(cpus)))
    if not cluster.connect:
        return [slot] * (workers or 1), Pool, ""
    connect(cluster.address)
    any_gpu = any(node.get("GPU") for node in nodes())
    share = Share(cpus, float(any_gpu) if cluster.gpus is None else cluster.gpus, workers)
    found, fit = len(nodes()), room(share)
    note = f"Ray cluster of {found} node{'s' * (found != 1)}: {fit} trials at once, {share} each"
    return [slot], partial(Ray, share=share), note
