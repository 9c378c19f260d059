"""One JSON record a run, and all of them as one table. No torch here: `moist runs` is instant."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moist.config import Config, flat
from moist.errors import ConfigError, first_line
from moist.results.report import Report
from moist.store.objects import Signed, now, scratch, sync

if TYPE_CHECKING:
    import pandas as pd

PER_CLASS = {"per_class_accuracy", "sent", "silhouette"}


def reproducing(config: Config) -> str:
    """The exact command that gives this config: every value that is no default."""
    defaults = flat(Config())
    changed = {k: v for k, v in flat(config).items() if v != defaults[k]}
    return shlex.join(["moist", "run", *(f"{k}={v}" for k, v in changed.items())])


class Run(Signed):
    """A finished run: `config` by dotted names, `artifacts` the keys of each stage's outputs."""

    key: str
    created: str
    command: str
    moist: str
    config: dict[str, Any]
    report: Report
    artifacts: dict[str, tuple[str, ...]]

    def record(self) -> dict[str, Any]:
        """The report, and beside it what made it, as JSON values."""
        made = self.model_dump(mode="json", exclude={"report", "checksum"})
        return {**self.report.model_dump(mode="json"), **made}


def save(
    home: Path,
    *,
    command: str,
    config: Config,
    report: Report,
    artifacts: Mapping[str, tuple[str, ...]],
) -> Run:
    """Record a run under its report's key, in place of an earlier one with that key."""
    run = Run(
        key=report.key, created=now(), command=command, moist=version(),
        config=flat(config), report=report, artifacts=dict(artifacts),
    )  # fmt: skip
    text, folder = run.text(), home / "runs"
    with scratch(folder) as tmp:
        tmp.write_bytes(text)
        sync(tmp)
        os.rename(tmp, folder / f"{run.key}.json")
        sync(folder)
    return Run.model_validate_json(text)


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def all_runs(home: Path, warned: Callable[[str], None] = _say) -> list[Run]:
    """Every run, newest first; a record that can't be read is skipped, and `warned` told."""
    paths = (home / "runs").glob("[!.]*.json")
    found = [run for path in paths if (run := _read(path, warned))]
    return sorted(found, key=lambda run: run.created, reverse=True)


def _read(path: Path, warned: Callable[[str], None]) -> Run | None:
    try:
        text = path.read_bytes()
        run = Run.model_validate_json(text)
        if run.key != path.stem:
            raise ValueError(f"it is the record of run `{run.key}`")
        if run.text() != text:
            raise ValueError("its checksum differs")
    except (OSError, ValueError) as error:
        reason = first_line(error)
        warned(f"skipped run record `{path}`, which can't be read: {reason}")
        return None
    return run


def recorded(home: Path, key: str, warned: Callable[[str], None] = _say) -> Run | None:
    """The run of that whole key; None if it has no record, or none that can be read."""
    path = home / "runs" / f"{key}.json"
    return _read(path, warned) if path.exists() else None


def find(home: Path, prefix: str) -> Run:
    """The run whose key starts so; `last` or `latest` is the newest.

    Raises ConfigError, listing candidates, unless there is exactly one.
    """
    found = {run.key: run for run in all_runs(home)}
    if prefix in {"last", "latest"} and found:
        return next(iter(found.values()))
    return found[pick(prefix, found, "runs")]


def pick(prefix: str, keys: Iterable[str], what: str) -> str:
    """The one key that starts with `prefix`. Raises ConfigError, listing candidates."""
    known = list(keys)
    found = [key for key in known if key.startswith(prefix)]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"`{key}`" for key in (found or known)[:8]) or "none"
    if found:
        message = f"the keys of {len(found)} {what} start with `{prefix}`"
        raise ConfigError(f"{message}: {listed}", "give more of the key")
    raise ConfigError(f"no {what} have a key that starts with `{prefix}`", f"there are: {listed}")


def frame(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run. Columns: the config's keys, then the report's numbers by dotted names.

    `k` is the config's (it may be `auto`), `clusters_k` the number of clusters found. What has
    one value a class stays in the record.
    """
    import pandas as pd

    return pd.DataFrame([_row(run) for run in runs])


def _row(run: Run) -> dict[str, Any]:
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
    """The commit of the source, `-dirty` if edited since; None outside a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = "git --no-optional-locks describe --always --dirty --abbrev=40 --exclude=*"
    try:
        said = subprocess.run(command.split(), cwd=root, capture_output=True, text=True)
    except OSError:
        return None
    return said.stdout.strip() or None
