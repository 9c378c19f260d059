"""A W&B sweep's runs, a line each as they end."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from moist.errors import StageError, first_line
from moist.reporting.study_tables import format_params, format_quantity
from moist.reporting.terminal import Watcher
from moist.results.objectives import PREFIX
from moist.tracking.journal import TRIAL

ENDED = {"finished", "failed", "crashed", "killed", "preempted"}


class Watching:
    """Looks at a sweep, `ENTITY/PROJECT/ID`, and tells what is new."""

    def __init__(self, sweep: str, quiet: bool) -> None:
        self.sweep = sweep
        self.project, _, self.id = sweep.rpartition("/")
        self.watcher = Watcher(quiet)
        self.told: dict[str, str] = {}
        """How runs ended, by id."""
        self.troubled = False

    @cached_property
    def _api(self) -> Any:
        import wandb

        return wandb.Api()

    def look(self) -> None:
        """One query a page. A server that does not answer now may later: that is said once."""
        import requests
        import wandb
        from wandb.sdk.lib.service.service_connection import WandbApiFailedError

        try:
            self._look()
        except (wandb.Error, WandbApiFailedError, requests.RequestException, ValueError) as error:
            if not self.troubled:
                said = first_line(error)
                self.watcher.warned(f"can't look at the sweep ({said}); its agents go on")
            self.troubled = True

    def _look(self) -> None:
        self._api.flush()  # it keeps what it was told
        found = self._api.runs(
            self.project, filters={"sweep": self.id}, order="+created_at", per_page=200, lazy=False
        )
        for run in found:
            if run.state in ENDED and run.id not in self.told:
                self.told[run.id] = run.summary.get(f"{TRIAL}state", run.state)
                self.watcher.said(self._line(run))

    def check(self) -> None:
        """Raise StageError when runs ended and none was completed."""
        if self.told and not {"COMPLETE", "finished"} & {*self.told.values()}:
            raise StageError(
                f"none of {len(self.told)} runs of `{self.sweep}` was completed",
                "what they said is in HOME/logs/wandb and in W&B's dashboard",
            )

    @cached_property
    def _searched(self) -> list[str]:
        """The parameters that have more than one value."""
        every = self._api.sweep(self.sweep).config["parameters"]
        return [name for name, entry in every.items() if "value" not in entry]

    def _line(self, run: Any) -> str:
        found = [
            f"{name} {format_quantity(name, run.summary[PREFIX + name])}"
            for name in ("accuracy", "mflops")
            if PREFIX + name in run.summary
        ]
        params = {name: run.config[name] for name in self._searched if name in run.config}
        said = run.summary.get(f"{TRIAL}state", run.state).lower()
        return "  ".join([f"run {run.id}", said, *found, format_params(params)])
