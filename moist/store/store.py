"""Every stage's output, computed once across processes and verified on each use.

On disk: `objects.py`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from moist.config import TrainingConfig
from moist.env import Env
from moist.errors import StageError, StoreError
from moist.store import runs
from moist.store.artifacts import NotFinite
from moist.store.calls import Backend, Call, Ref, StageCall, resolved
from moist.store.checkpoint import read_artifact, verified, write_artifact
from moist.store.keys import SHORT
from moist.store.objects import Damaged
from moist.store.remote import Remote

T = TypeVar("T")

SHARE_EVERY = 60.0
"""Seconds between two copies of a stage's newest checkpoint to the shared store: at least."""


class Store(Backend):
    """Computes what is not stored yet; waits for a key that another process is computing."""

    writes = True

    def __init__(
        self, home: Path, env: Env, reuse: bool = True, remote: Remote | None = None
    ) -> None:
        super().__init__(home, env, reuse, remote)
        self._verified: dict[str, float] = {}
        """Seconds by key of the outputs that were verified or computed here."""
        self.objects.prepare()

    def resolve(self, request: StageCall) -> Call:
        """Reuse or compute the output, once no other process computes it."""
        if call := self.find(request):
            return call
        what = f"another process to finish `{request.name}` {request.key[:SHORT]}"
        with self.objects.locked(request.key, what, self.env.progress.warned):
            return self.compute(request)

    def value(self, request: StageCall) -> Any:
        """Read the output from disk, so that a repeated run works with the same values."""
        try:
            return read_artifact(self.objects.folder(request.key))
        except FileNotFoundError:  # deleted by another process since
            self._verified.pop(request.key, None)
            self.resolve(request)
            return self.value(request)

    def find(self, request: StageCall) -> Call | None:
        """Reuse the stored output; return None if there is none, or it is damaged."""
        seconds = self._verified_seconds(request)
        return None if seconds is None else self._reuse(request, seconds)

    def compute(self, request: StageCall) -> Call:
        """Compute the output unless another process, or a machine that shares its outputs, did.

        Needs the key's lock.
        """
        self._delete_old_checkpoints(request)
        seconds, origin = self._verified_seconds(request, locked=True), ""
        if seconds is None and self._pull(request):
            seconds, origin = self._verified_seconds(request, locked=True), self._origin
        if seconds is None:
            return request.outcome(False, self._run_stage(request))
        return self._reuse(request, seconds, origin)

    @property
    def _origin(self) -> str:
        return self.remote.shown if self.remote else ""

    def _reuse(self, request: StageCall, seconds: float, origin: str = "") -> Call:
        self._sharing(lambda remote: remote.share(self.objects, request.key))
        if self.objects.checkpoints(request.key).is_dir():
            # In a home of several users we may lack the permission: its owner deletes them then.
            with suppress(StoreError), self.objects.locked_if_free(request.key) as free:
                if free:
                    self._delete_old_checkpoints(request)
        self.env.progress.reused(request.name, request.key, seconds, origin)
        return request.outcome(True, seconds, origin)

    def _pull(self, request: StageCall) -> bool:
        """Copy the output from the shared store; return whether it was there, and intact."""
        try:
            return self.reuse and bool(
                self._sharing(lambda remote: remote.pull(self.objects, request.key))
            )
        except Damaged as damage:
            self.env.progress.warned(
                f"`{request.name}` {request.key[:SHORT]} in `{self._origin}` is damaged"
                f" ({damage}); computing it again"
            )
            return False

    def _sharing(self, action: Callable[[Remote], T]) -> T | None:
        """Do something with the shared store; None, with a warning, if it is unreachable."""
        if (remote := self.remote) is None:
            return None
        return remote.attempt(lambda: action(remote), self.env.progress.warned)

    def _verified_seconds(self, request: StageCall, locked: bool = False) -> float | None:
        """Return the recorded seconds of an intact object; None if there is none.

        Every byte is verified, once a Store. While another process replaces an object it can
        look damaged; only the holder of its lock can tell, and moves it to quarantine.
        """
        if request.key in self._verified and request.key in self.objects:
            return self._verified[request.key]
        if not self.reuse:
            return None
        try:
            manifest = verified(self.objects, request.key)
        except Damaged as damage:
            if locked:
                self._quarantine(request, str(damage))
            return None
        if manifest is None:
            return None
        self.objects.touch(request.key)
        self._verified[request.key] = manifest.seconds
        return manifest.seconds

    def _run_stage(self, request: StageCall) -> float:
        """Run the stage, store its output, and return the seconds that it took.

        Raises StageError for an output, or a checkpoint, with NaN or infinity in it.
        """
        inputs = {name: resolved(value) for name, value in request.inputs.items()}
        self.env.progress.started(request.name, request.key)
        checkpoints = self.objects.checkpoints(request.key)
        with _finite(request), self._shared_checkpoints(request.key, checkpoints) as on_step:
            env = replace(self.env.at(request.name, checkpoints), on_step=on_step)
            value = request.stage(env, **inputs)
            seconds = env.seconds()
            self.objects.publish(
                lambda folder: write_artifact(folder, value), key=request.key, stage=request.name,
                version=request.version, recipe=request.recipe, seconds=seconds,
                moist=runs.version(), commit=runs.commit(),
                machine=self.env.machine().model_dump(mode="json"),
            )  # fmt: skip
        shutil.rmtree(checkpoints, ignore_errors=True)
        self._verified[request.key] = seconds
        self._sharing(lambda remote: remote.push(self.objects, request.key))
        self._sharing(lambda remote: remote.drop_checkpoint(request.key))
        self.env.progress.finished(request.name, request.key, seconds)
        return seconds

    @contextmanager
    def _shared_checkpoints(self, key: str, folder: Path) -> Iterator[Callable[[], None]]:
        """Continue from a checkpoint in the shared store, if it has a newer one.

        Yields what copies the newest to there, now and then; a signal that ends this process does
        so at once.
        """
        if self.remote is None:
            yield lambda: None
            return
        self._sharing(lambda remote: remote.pull_checkpoint(key, folder))
        due = time.monotonic() + SHARE_EVERY

        def push() -> None:
            self._sharing(lambda remote: remote.push_checkpoint(key, folder))

        def on_step() -> None:
            nonlocal due
            began = time.monotonic()
            if began >= due:
                push()
                due = time.monotonic() + max(SHARE_EVERY, 10 * (time.monotonic() - began))

        try:
            yield on_step
        except KeyboardInterrupt:
            push()
            raise

    def _delete_old_checkpoints(self, request: StageCall) -> None:
        """Delete checkpoints older than the stored output: a process was killed after storing it.

        Newer ones belong to a process that computes it again. Needs the key's lock.
        """
        checkpoints = self.objects.checkpoints(request.key)
        folder = self.objects.folder(request.key)
        if checkpoints.is_dir() and folder.is_dir():
            newest = max((path.stat().st_mtime for path in checkpoints.iterdir()), default=0.0)
            if newest <= folder.stat().st_mtime:
                shutil.rmtree(checkpoints, ignore_errors=True)

    def _quarantine(self, request: StageCall, reason: str) -> None:
        moved = self.objects.quarantine(request.key, reason)
        self.env.progress.warned(
            f"`{request.name}` {request.key[:SHORT]} is damaged ({reason}); moved to {moved},"
            " computing it again"
        )


@contextmanager
def _finite(request: StageCall) -> Iterator[None]:
    """Turn what artifacts and records raise for NaN and infinity into a StageError."""
    try:
        yield
    except NotFinite as error:
        found = str(error)
    except ValidationError as error:
        wrong = error.errors()
        if any(one["type"] != "finite_number" for one in wrong):
            raise
        found = ", ".join(f"`{'.'.join(map(str, one['loc']))}` is {one['input']}" for one in wrong)
    else:
        return
    raise StageError(f"`{request.name}` failed: {found}; nothing was stored", _way_out(request))


def _way_out(request: StageCall) -> str:
    """Say which learning rate to lower, or whose weights to replace, so that values are finite."""
    for name, value in request.inputs.items():
        if isinstance(value, TrainingConfig):
            return f"lower `{name}.lr` (it is {value.lr})"
    origins = [ref.stage for ref in request.inputs.values() if isinstance(ref, Ref)]
    if "load_teacher" in origins:
        return "give other weights as `teacher.weights`"
    trained = " or ".join(f"`{stage}`" for stage in origins if stage != "prepare")
    return trained and f"lower the learning rate of {trained}, whose output it works with"
