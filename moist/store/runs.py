"""One JSON record per run, and all of them as a table. No torch here: `moist runs` is instant."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib import metadata
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moist.config import Config, flat
from moist.config.unread import unread
from moist.disk import warn, write_atomically, writing
from moist.errors import ConfigError, StoreError, first_line
from moist.results import frames
from moist.results.report import Report
from moist.store.objects import ChecksummedRecord, now

if TYPE_CHECKING:
    import pandas as pd

PER_CLASS = {"per_class_accuracy", "sent", "silhouette"}


def command_for(config: Config) -> str:
    """Return the command that reproduces a config: every value that is read and no default.

    Paths are absolute, so that the command works in any folder.
    """
    defaults, ignored = flat(Config()), unread(config)
    changed = {k: v for k, v in flat(config).items() if v != defaults[k] and k not in ignored}
    for name in changed:
        if isinstance(path := attrgetter(name)(config), Path):
            changed[name] = path.absolute()
    return shlex.join(["moist", "run", *(f"{k}={v}" for k, v in changed.items())])


class Run(ChecksummedRecord):
    """A finished run: `config` by dotted names, `artifacts` the keys of each stage's outputs.

    `computed` has the seconds of each stage that this run computed itself, the rest being reused;
    None in records of earlier versions.
    """

    key: str
    created: str
    command: str
    moist: str
    config: dict[str, Any]
    report: Report
    artifacts: dict[str, tuple[str, ...]]
    computed: dict[str, float] | None = None

    def record(self) -> dict[str, Any]:
        """Return the report's values and, beside them, what produced it, as JSON values."""
        origin = self.model_dump(mode="json", exclude={"report"})
        return {**self.report.model_dump(mode="json"), **origin}


class RunRecords:
    """The records of the runs in one home folder: `HOME/runs/KEY.json`.

    `warn` is called with a message for each record that is damaged, which is then skipped.
    """

    def __init__(self, home: Path, warn: Callable[[str], None] = warn) -> None:
        self.folder = home / "runs"
        self.warn = warn
        self.damaged: set[str] = set()
        """The keys of the records that could not be read."""

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def save(
        self,
        *,
        command: str,
        config: Config,
        report: Report,
        artifacts: Mapping[str, tuple[str, ...]],
        computed: Mapping[str, float] | None = None,
    ) -> Run:
        """Record a run under its report's key, in place of an earlier one with that key."""
        run = Run(
            key=report.key, created=now(), command=command, moist=version(),
            config=flat(config), report=report, artifacts=dict(artifacts),
            computed=None if computed is None else dict(computed),
        )  # fmt: skip
        data = run.to_bytes()
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path(run.key), data)
        return Run.from_bytes(data)

    def all(self) -> list[Run]:
        """Return every readable run, newest first."""
        found = [run for path in self.folder.glob("[!.]*.json") if (run := self._read(path))]
        return sorted(found, key=lambda run: run.created, reverse=True)

    def get(self, key: str) -> Run | None:
        """Return the run of a whole key; None if it has no record, or a damaged one."""
        path = self.path(key)
        return self._read(path) if path.exists() else None

    def of(self, keys: Iterable[str | None]) -> dict[str, Run]:
        """Return the records of those of `keys`, whole ones, that have one."""
        found = ((key, self.get(key)) for key in keys if key)
        return {key: run for key, run in found if run is not None}

    def find(self, prefix: str) -> Run:
        """Return the run whose key starts with `prefix`; `last` and `latest` mean the newest.

        Raises ConfigError, listing candidates, unless there is exactly one; StoreError if it is
        damaged.
        """
        found = {run.key: run for run in self.all()}
        newest = prefix in {"last", "latest"}
        if newest and found:
            return next(iter(found.values()))
        damaged = sorted(key for key in self.damaged if newest or key.startswith(prefix))
        if damaged and not any(key.startswith(prefix) for key in found):
            raise StoreError(
                f"the record of run `{damaged[0]}` is damaged",
                f"`moist rm {damaged[0]}` removes it; the same config, run again, records it anew",
            )
        return found[pick(prefix, found, "runs")]

    def _read(self, path: Path) -> Run | None:
        try:
            run = Run.from_bytes(path.read_bytes())
            if run.key != path.stem:
                raise ValueError(f"it is the record of run `{run.key}`")
        except (OSError, ValueError) as error:
            self.damaged.add(path.stem)
            self.warn(f"skipped run record `{path}`, which can't be read: {first_line(error)}")
            return None
        return run


def pick(prefix: str, keys: Iterable[str], what: str) -> str:
    """Return the only key that starts with `prefix`. Raises ConfigError, listing candidates."""
    known = list(keys)
    found = [key for key in known if key.startswith(prefix)]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"`{key}`" for key in (found or known)[:8])
    if found:
        message = f"the keys of {len(found)} {what} start with `{prefix}`"
        raise ConfigError(f"{message}: {listed}", "give more of the key")
    message = f"no {what} have a key that starts with `{prefix}`"
    if not known:
        raise ConfigError(f"{message}: there are no {what} yet", "`moist run` makes one")
    raise ConfigError(message, f"there are: {listed}")


def frame(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one row per run as a data frame.

    Columns: `key`, `created`, `command` and the version of `moist`; the config's keys; the
    report's numbers by dotted names, as `latency_ms.batch_1`; `clusters_k`, the number of clusters
    found, where `k` is the config's and may be `auto`. Values per class are left out.
    """
    return frames.frame(row(run) for run in runs)


def row(run: Run) -> dict[str, Any]:
    """Return a run's values by the columns of `frame`."""
    numbers = dict(_leaves(run.report.model_dump(mode="json"), ""))
    head = {"key": run.key, "created": run.created, "command": run.command, "moist": run.moist}
    found = {"clusters_k": numbers.pop("k")}
    return head | run.config | {k: v for k, v in numbers.items() if k != "key"} | found


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            if name not in PER_CLASS:
                yield from _leaves(value, f"{prefix}{name}.")
        elif not isinstance(value, list):
            yield f"{prefix}{name}", value


@cache
def version() -> str:
    return metadata.version("moist")


@cache
def commit() -> str | None:
    """Return the commit of the source, `-dirty` if edited since; None outside a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = "git --no-optional-locks describe --always --dirty --abbrev=40 --exclude=*"
    try:
        git = subprocess.run(command.split(), cwd=root, capture_output=True, text=True)
    except OSError:
        return None
    return git.stdout.strip() or None
