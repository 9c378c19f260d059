"""A stage call with its key, the reference to its output, and the interface of the stores.

A key is known before anything is computed: it is the digest of the stage's name, its version and
its inputs, where the output of another stage enters with its own key.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from moist.env import Env
from moist.errors import StoreError
from moist.results.expected import Expected
from moist.store.checkpoint import read_artifact, verified
from moist.store.keys import encoded, key_of
from moist.store.objects import Damaged, ObjectStore
from moist.store.remote import Remote

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Ref(Generic[T_co]):
    """A stage's output: its key, and its value once it is needed."""

    key: str
    stage: str
    load: Callable[[], T_co] = field(repr=False, compare=False)
    _kept: list[T_co] = field(default_factory=list, repr=False, compare=False)

    @property
    def value(self) -> T_co:
        if not self._kept:
            self._kept.append(self.load())
        return self._kept[0]


@dataclass(frozen=True)
class Call:
    """The outcome of one call: reused or computed, and the `seconds` that computing took.

    What is reused may come from the shared store `origin`, else from this home.

    They are None for what a Plan would compute; `expected` is then what to expect, if anything
    comparable is on record. `needs` are the keys of the outputs among its inputs.
    """

    stage: str
    key: str
    reused: bool
    seconds: float | None
    needs: tuple[str, ...] = ()
    expected: Expected | None = None
    origin: str = ""

    def record(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class StageCall:
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
        """Return the inputs as JSON, with the stage's defaults: a changed default is a new key.

        Arguments that the stage got later (`added`) are left out while they have their default.
        """
        signature = _signature(self.stage)
        bound = signature.bind(None, **self.inputs)
        bound.apply_defaults()
        given = dict([*bound.arguments.items()][1:])
        for name in getattr(self.stage, "added", ()):
            if given[name] == signature.parameters[name].default:
                del given[name]
        return {name: encoded(value, name) for name, value in given.items()}

    @cached_property
    def key(self) -> str:
        return key_of(self.name, self.version, self.recipe)

    @cached_property
    def needs(self) -> tuple[str, ...]:
        """List the keys of the outputs among the inputs."""
        return tuple(dict.fromkeys(ref.key for ref in _refs(dict(self.inputs))))

    def outcome(self, reused: bool, seconds: float | None, origin: str = "") -> Call:
        return Call(self.name, self.key, reused, seconds, needs=self.needs, origin=origin)


_signature = cache(inspect.signature)


class Backend(ABC):
    """Calls stages and records the outcomes in `calls`: a Store, a NonBlockingStore or a Plan.

    `reuse=False` ignores what is stored. `remote` is the store that this home shares with others.
    """

    writes: ClassVar[bool]

    def __init__(
        self, home: Path, env: Env, reuse: bool = True, remote: Remote | None = None
    ) -> None:
        self.objects = ObjectStore(home)
        self.remote = remote
        self.env = env
        self.reuse = reuse
        self.calls: list[Call] = []

    @property
    def home(self) -> Path:
        return self.objects.home

    def call(self, stage: Callable[..., T], **inputs: Any) -> Ref[T]:
        """Return the output of `stage(env, **inputs)`.

        A `Ref` among the inputs arrives as its value. Raises what the stage raises, and stores
        nothing then.
        """
        request = StageCall(stage, inputs)
        self.calls.append(self.resolve(request))
        return Ref(request.key, request.name, lambda: self.value(request))

    @abstractmethod
    def resolve(self, request: StageCall) -> Call:
        """Do what it takes to have the output, and return the outcome."""

    @abstractmethod
    def value(self, request: StageCall) -> Any:
        """Return the output of a call that was resolved."""

    def load(self, key: str) -> Any:
        """Return a stored output by its whole key. Raises StoreError if missing or damaged."""
        try:
            manifest = verified(self.objects, key)
        except Damaged as damage:
            raise StoreError(
                f"stored output `{key}` is damaged ({damage})", "run again to compute it"
            ) from None
        if manifest is None:
            raise StoreError(f"no stored output `{key}`", "run again to compute it")
        self.objects.touch(key)
        return read_artifact(self.objects.folder(key))

    def computed(self) -> dict[str, float]:
        """Return the seconds that each stage computed here, without what was reused."""
        seconds: dict[str, float] = {}
        for call in self.calls:
            if not call.reused:
                seconds[call.stage] = seconds.get(call.stage, 0.0) + (call.seconds or 0.0)
        return seconds

    def keys(self) -> dict[str, tuple[str, ...]]:
        """Return the keys of all outputs called for, by stage, in order."""
        stages = dict.fromkeys(call.stage for call in self.calls)
        return {
            stage: tuple(dict.fromkeys(call.key for call in self.calls if call.stage == stage))
            for stage in stages
        }


def _refs(value: Any) -> Iterator[Ref[Any]]:
    """Yield every Ref in an input, in order."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _refs(inner)
    elif type(value) in (tuple, list):
        for inner in value:
            yield from _refs(inner)


def resolved(value: Any) -> Any:
    """Replace every Ref in an input by its value.

    Values are read from disk for each stage, so that no stage sees another's changes to them.
    """
    if isinstance(value, Ref):
        return value.load()
    if isinstance(value, Mapping):
        return {key: resolved(inner) for key, inner in value.items()}
    if type(value) in (tuple, list):
        return type(value)(resolved(inner) for inner in value)
    return value
