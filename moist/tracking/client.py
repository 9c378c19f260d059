"""The client of wandb: every private setting or function that moist uses of it is named here."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import signal
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moist.config import Config, flat
from moist.config.schema import is_location
from moist.interrupts import Interrupted
from moist.store.keys import canonical
from moist.store.runs import commit, version
from moist.tracking.mode import Mode

if TYPE_CHECKING:
    import wandb

PROJECT = "moist"
"""The project of runs on the server, unless WANDB_PROJECT or the sweep file names one."""

# requests ignores it where it is imported, here by wandb in a thread; another thread that restores
# its own filters meanwhile would undo that.
warnings.filterwarnings("ignore", "SOCKS support in urllib3")

SETTINGS: dict[str, Any] = {
    "console": "off",
    "silent": True,
    "disable_git": True,
    "init_timeout": 20.0,
    "x_disable_stats": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    "x_transaction_log_flush_interval": 1.0,  # seconds that a killed process loses
    "x_file_stream_transmit_interval": 5.0,  # not 15 s: hyperband sees short trials too
    "x_graphql_retry_max": 5,
    "x_file_stream_retry_wait_max_seconds": 20.0,
}


@dataclass(frozen=True)
class RunInfo:
    """A run's id, names and config; `on_stop` is called when it is stopped from the dashboard."""

    id: str
    name: str
    job_type: str
    config: Mapping[str, Any]
    group: str | None = None
    tags: tuple[str, ...] = ()
    notes: str | None = None
    on_stop: Callable[[], None] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Client:
    """Opens runs in one mode, their files under `home/wandb`."""

    mode: Mode
    home: Path
    project: str | None = None
    entity: str | None = None

    def open(self, info: RunInfo) -> wandb.Run:
        """Open a run, new or continued. Raises wandb's errors where the server rejects it."""
        import wandb

        os.environ.setdefault("WANDB_DATA_DIR", str(self.home / "wandb"))  # for artifacts
        self.home.mkdir(parents=True, exist_ok=True)
        return wandb.init(
            mode=self.mode.name,  # type: ignore[arg-type]
            settings=self._settings(info),
            config=dict(info.config),
            name=None if agent_sweep() else info.name,  # W&B names a sweep's runs
            job_type=info.job_type,
            group=info.group,
            tags=list(info.tags),
            notes=info.notes,
            reinit="create_new",
            **({} if agent_sweep() else self._destination(info)),
        )

    def offline(self) -> Client:
        """Return a client that logs to files here."""
        return replace(self, mode=Mode("offline", "the server rejected a run"))

    def _destination(self, info: RunInfo) -> dict[str, Any]:
        """Return what the agent sets for a run that an agent starts."""
        return {
            "id": info.id,
            "project": self.project or os.environ.get("WANDB_PROJECT") or PROJECT,
            "entity": self.entity,
            "resume": "allow",
        }

    def _settings(self, info: RunInfo) -> wandb.Settings:
        """Return those of moist's settings that are not in the environment and wandb knows."""
        import wandb

        own = {"root_dir": str(self.home), "stop_fn": info.on_stop}
        chosen = {k: v for k, v in SETTINGS.items() if f"WANDB_{k.upper()}" not in os.environ}
        known = wandb.Settings.model_fields
        return wandb.Settings(**{k: v for k, v in {**chosen, **own}.items() if k in known})


def run_info(config: Config, home: Path, command: str) -> RunInfo:
    """Describe a single run; the same config in the same home is a continuation of that run."""
    values = {name: value for name, value in flat(config).items() if not is_location(name)}
    identity = [values, platform.node(), str(home.resolve())]
    digest = hashlib.sha256(canonical(identity)).hexdigest()[:16]
    name = " ".join(shlex.split(command)[2:]) or "defaults"
    extra = {"moist": version(), "commit": commit()}
    return RunInfo(
        digest,
        name,
        "run",
        flat(config) | extra,
        group=agent_sweep(),
        tags=("run",),
        notes=command,
    )


def agent_sweep() -> str | None:
    """Return the id of the W&B sweep whose agent started this process; None if none did."""
    return os.environ.get("WANDB_SWEEP_ID")


def is_stopped_by_agent(error: BaseException | None) -> bool:
    """Return whether a W&B agent ended this run because its sweep stops it."""
    terminated = isinstance(error, Interrupted) and error.number == signal.SIGTERM
    return terminated and agent_sweep() is not None


def independent_environment() -> dict[str, str]:
    """Return the environment of a process with a wandb service of its own: ours ends with us."""
    return {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}


def release_ids() -> None:
    """Release the ids of runs that the server rejected. Ends all open runs."""
    import wandb

    wandb.teardown()


def running_service() -> Any:
    """Return wandb's own process, which writes and uploads everything. Starts it if needed."""
    import wandb

    return wandb.setup().ensure_service()


def is_alive(service: Any) -> bool:
    """Return whether wandb's own process is running."""
    return service._proc is None or service._proc._process.poll() is None


def abandon_service(service: Any) -> None:
    """Let this process end without waiting for wandb's own, which ends soon after.

    What was not uploaded is in the run's files.
    """
    if service._cleanup:  # removes wandb's exit hook
        service._cleanup()
