"""Every stage's output, computed once: whoever asks, in parallel too, and checked on each use.

A key is known before anything is computed: it is the digest of the stage's name, its version and
its inputs, where an output of another stage counts with its own key. On disk: `objects.py`.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from moist.env import Env
from moist.errors import StoreError
from moist.store import objects, runs
from moist.store.checkpoint import read_artifact, write_artifact
from moist.store.keys import encoded, key_of

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Ref(Generic[T_co]):
    """A stage's output: its key, and its value once somebody needs it."""

    key: str
    stage: str
    _load: Callable[[], T_co] = field(repr=False, compare=False)
    _kept: list[T_co] = field(default_factory=list, repr=False, compare=False)

    @property
    def value(self) -> T_co:
        if not self._kept:
            self._kept.append(self._load())
        return self._kept[0]


@dataclass(frozen=True)
class Call:
    """What became of one call: `seconds` is what computing it took, now or when it was stored.

    In a Plan `seconds` is expected, from stored outputs of the stage; None if there are none.
    `needs` are the keys of the outputs among its inputs.
    """

    stage: str
    key: str
    reused: bool
    seconds: float | None
    needs: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Job:
    """A stage and its inputs. Raises TypeError for inputs that the stage or a key can't take."""

    stage: Callable[..., Any]
    inputs: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.stage.__name__

    @property
    def version(self) -> int:
        found = getattr(self.stage, "version", None)
        if not isinstance(found, int):
            raise TypeError(f"`{self.name}` has no version: mark it with `@stage(version=1)`")
        return found

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The inputs as JSON, the stage's defaults included: a changed default is a new key."""
        bound = inspect.signature(self.stage).bind(None, **self.inputs)
        bound.apply_defaults()
        return {name: encoded(bound.arguments[name], name) for name in [*bound.arguments][1:]}

    @cached_property
    def key(self) -> str:
        return key_of(self.name, self.version, self.recipe)

    @cached_property
    def needs(self) -> tuple[str, ...]:
        """Keys of the other outputs that it takes."""
        return tuple(dict.fromkeys(ref.key for ref in _refs(dict(self.inputs))))

    def call(self, reused: bool, seconds: float | None) -> Call:
        return Call(self.name, self.key, reused, seconds, self.needs)


class Store:
    """Calls stages, or hands out what they gave before. `reuse=False` computes all afresh."""

    writes = True

    def __init__(self, home: Path, env: Env, reuse: bool = True) -> None:
        self.home = home
        self.env = env
        self.reuse = reuse
        self.calls: list[Call] = []
        self._sound: dict[str, float] = {}  # keys verified or computed here, and their seconds
        if self.writes:
            objects.prepare(home)

    def call(self, stage: Callable[..., T], **inputs: Any) -> Ref[T]:
        """The output of `stage(env, **inputs)`; a `Ref` among the inputs arrives as its value.

        Computes unless it is stored. Raises what the stage raises, and then stores nothing.
        """
        job = Job(stage, inputs)
        self.calls.append(self._settle(job))
        return Ref(job.key, job.name, lambda: self._value(job))

    def load(self, key: str) -> Any:
        """A stored output, by its whole key. Raises StoreError if it is gone or damaged."""
        try:
            manifest = objects.check(self.home, key)
        except objects.Damaged as damage:
            raise StoreError(
                f"stored output `{key}` is damaged ({damage})", "run again to compute it anew"
            ) from None
        if manifest is None:
            raise StoreError(f"no stored output `{key}`", "run again to compute it anew")
        objects.used(self.home, key)
        return read_artifact(objects.folder_of(self.home, key))

    def keys(self) -> dict[str, tuple[str, ...]]:
        """The keys of all outputs called for, by stage, in order."""
        stages = dict.fromkeys(call.stage for call in self.calls)
        return {
            stage: tuple(dict.fromkeys(call.key for call in self.calls if call.stage == stage))
            for stage in stages
        }

    def _settle(self, job: Job) -> Call:
        """Make sure that the output is stored and sound."""
        seconds = self._stored(job)
        if seconds is not None:
            return self._reused(job, seconds)
        with objects.alone(self.home, job.key, lambda: self._wait(job)):
            return self._settle_alone(job)

    def _settle_alone(self, job: Job) -> Call:
        """The same, holding the key's lock."""
        self._tidy(job)
        seconds = self._stored(job, alone=True)
        if seconds is None:
            return job.call(False, self._compute(job))
        return self._reused(job, seconds)

    def _reused(self, job: Job, seconds: float) -> Call:
        if self._partial(job).is_dir():
            # a home that several users share may refuse us the lock: then it is theirs to tidy
            with suppress(StoreError), objects.unless_held(self.home, job.key) as free:
                if free:
                    self._tidy(job)
        self.env.progress.reused(job.name, job.key, seconds)
        return job.call(True, seconds)

    def _stored(self, job: Job, alone: bool = False) -> float | None:
        """The recorded seconds of a sound object; a damaged one is put away if we are alone.

        Every byte is verified, once a Store. While another process replaces an object it can
        look damaged; only who holds its lock can tell.
        """
        if job.key in self._sound and objects.folder_of(self.home, job.key).is_dir():
            return self._sound[job.key]
        if not self.reuse:
            return None
        try:
            manifest = objects.check(self.home, job.key)
        except objects.Damaged as damage:
            if alone:
                self._put_away(job, str(damage))
            return None
        if manifest is None:
            return None
        objects.used(self.home, job.key)
        self._sound[job.key] = manifest.seconds
        return manifest.seconds

    def _compute(self, job: Job) -> float:
        """Run the stage and store what it gives. Needs the key's lock."""
        inputs = {name: resolved(value) for name, value in job.inputs.items()}
        self.env.progress.started(job.name, job.key)
        env = self.env.at(job.name, self._partial(job))
        value = job.stage(env, **inputs)
        seconds = env.seconds()
        objects.publish(
            self.home, lambda folder: write_artifact(folder, value), key=job.key, stage=job.name,
            version=job.version, recipe=job.recipe, seconds=seconds, moist=runs.version(),
            commit=runs.commit(), machine=self.env.machine().model_dump(mode="json"),
        )  # fmt: skip
        shutil.rmtree(self._partial(job), ignore_errors=True)
        self._sound[job.key] = seconds
        self.env.progress.finished(job.name, job.key, seconds)
        return seconds

    def _partial(self, job: Job) -> Path:
        return self.home / "partial" / job.key

    def _tidy(self, job: Job) -> None:
        """Delete checkpoints older than the stored output: who wrote both was killed in between.

        Newer ones are of who computes it afresh. Needs the key's lock.
        """
        partial, folder = self._partial(job), objects.folder_of(self.home, job.key)
        if partial.is_dir() and folder.is_dir():
            newest = max((path.stat().st_mtime for path in partial.iterdir()), default=0.0)
            if newest <= folder.stat().st_mtime:
                shutil.rmtree(partial, ignore_errors=True)

    def _value(self, job: Job) -> Any:
        """Always what was read from disk, so that a repeated run works with the same values."""
        try:
            return read_artifact(objects.folder_of(self.home, job.key))
        except FileNotFoundError:  # another process cleaned up since
            self._sound.pop(job.key, None)
            self._settle(job)
            return self._value(job)

    def _wait(self, job: Job) -> None:
        self.env.progress.warned(
            f"waiting for another process to finish `{job.name}` {job.key[:8]}"
        )

    def _put_away(self, job: Job, reason: str) -> None:
        moved = objects.quarantine(self.home, job.key, reason)
        self.env.progress.warned(
            f"`{job.name}` {job.key[:8]} is damaged ({reason}); moved to {moved},"
            " computing it again"
        )


def _refs(value: Any) -> Iterator[Ref[Any]]:
    """Every Ref in an input, in order."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _refs(inner)
    elif type(value) in (tuple, list):
        for inner in value:
            yield from _refs(inner)


def resolved(value: Any) -> Any:
    """An input as the stage gets it: every Ref in it replaced by its value.

    Read anew for each stage, so that none gets what another wrote into its inputs.
    """
    if isinstance(value, Ref):
        return value._load()
    if isinstance(value, Mapping):
        return {key: resolved(inner) for key, inner in value.items()}
    if type(value) in (tuple, list):
        return type(value)(resolved(inner) for inner in value)
    return value
