"""wandb's client, as moist uses it: every setting that is not public is named here and nowhere
else."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moist.config import Config, flat
from moist.config.schema import is_where
from moist.store.keys import canonical
from moist.store.runs import commit, version
from moist.tracking.mode import Mode

if TYPE_CHECKING:
    import wandb

PROJECT = "moist"
"""Where runs go on the server, unless WANDB_PROJECT or the sweep file says."""

SETTINGS: dict[str, Any] = {
    "console": "off",
    "silent": True,
    "disable_git": True,
    "init_timeout": 20.0,
    "x_disable_stats": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    "x_transaction_log_flush_interval": 1.0,  # a killed process loses no more
    "x_file_stream_transmit_interval": 5.0,  # of 15 s: hyperband sees short trials too
    "x_graphql_retry_max": 5,
    "x_file_stream_retry_wait_max_seconds": 20.0,
}


@dataclass(frozen=True)
class About:
    """What a run is called and what it belongs to; `stopped` is called when somebody stops it in
    W&B's dashboard."""

    id: str
    name: str
    job_type: str
    config: Mapping[str, Any]
    group: str | None = None
    tags: tuple[str, ...] = ()
    notes: str | None = None
    stopped: Callable[[], None] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Client:
    """Opens runs in one mode, their files under `home/wandb`."""

    mode: Mode
    home: Path
    project: str | None = None
    entity: str | None = None

    def open(self, about: About) -> wandb.Run:
        """A run, new or continued. Raises wandb's errors where the server refuses it."""
        import wandb

        os.environ.setdefault("WANDB_DATA_DIR", str(self.home / "wandb"))  # of artifacts
        self.home.mkdir(parents=True, exist_ok=True)
        return wandb.init(
            mode=self.mode.name,  # type: ignore[arg-type]
            settings=self._settings(about),
            config=dict(about.config),
            name=None if sweep() else about.name,  # W&B names a sweep's runs
            job_type=about.job_type,
            group=about.group,
            tags=list(about.tags),
            notes=about.notes,
            reinit="create_new",
            **({} if sweep() else self._place(about)),
        )

    def offline(self) -> Client:
        """The same in files here."""
        return replace(self, mode=Mode("offline", "the server refused a run"))

    def _place(self, about: About) -> dict[str, Any]:
        """What an agent's run is told by its agent instead."""
        return {
            "id": about.id,
            "project": self.project or os.environ.get("WANDB_PROJECT") or PROJECT,
            "entity": self.entity,
            "resume": "allow",
        }

    def _settings(self, about: About) -> wandb.Settings:
        """Ours, where the environment has none and this version of wandb knows them."""
        import wandb

        own = {"root_dir": str(self.home), "stop_fn": about.stopped}
        asked = {k: v for k, v in SETTINGS.items() if f"WANDB_{k.upper()}" not in os.environ}
        known = wandb.Settings.model_fields
        return wandb.Settings(**{k: v for k, v in {**asked, **own}.items() if k in known})


def run_of(config: Config, home: Path, command: str) -> About:
    """What a run by itself is told as: the same config here is the same run, when continued."""
    values = {name: value for name, value in flat(config).items() if not is_where(name)}
    here = [values, platform.node(), str(home.resolve())]
    digest = hashlib.sha256(canonical(here)).hexdigest()[:16]
    name = " ".join(shlex.split(command)[2:]) or "defaults"
    extra = {"moist": version(), "commit": commit()}
    return About(
        digest, name, "run", flat(config) | extra, group=sweep(), tags=("run",), notes=command
    )


def sweep() -> str | None:
    """The W&B sweep whose agent started this process; None if none did."""
    return os.environ.get("WANDB_SWEEP_ID")


def independent_environment() -> dict[str, str]:
    """Return the environment of a process with a wandb service of its own: ours ends with us."""
    return {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}


def forget() -> None:
    """Free the ids of runs that the server refused. Ends what is open."""
    import wandb

    wandb.teardown()


def service() -> Any:
    """wandb's own process, which writes and sends all, once a run was opened."""
    import wandb

    return wandb.setup().ensure_service()


def serving(service: Any) -> bool:
    """Whether it is still there."""
    return service._proc is None or service._proc._process.poll() is None


def abandon(service: Any) -> None:
    """Don't wait for it when this process ends: it ends soon after.

    What a server didn't get is in the run's files.
    """
    if service._cleanup:  # takes wandb's exit hook away
        service._cleanup()
