"""The runs of a W&B sweep, printed one line each as they end."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from moist.errors import StageError, first_line
from moist.reporting.study_tables import format_params, format_quantity
from moist.reporting.terminal import TerminalProgress
from moist.results.objectives import PREFIX
from moist.tracking.journal import TRIAL

ENDED = {"finished", "failed", "crashed", "killed", "preempted"}


class Monitor:
    """A poller of a sweep, `ENTITY/PROJECT/ID`, that prints each run once it has ended."""

    def __init__(self, sweep: str, quiet: bool) -> None:
        self.sweep = sweep
        self.project, _, self.id = sweep.rpartition("/")
        self.progress = TerminalProgress(quiet)
        self.ended: dict[str, str] = {}
        """Final states of runs, by id."""
        self.has_warned = False

    @cached_property
    def _api(self) -> Any:
        import wandb

        return wandb.Api()

    def poll(self) -> None:
        """Query the server, once a page of runs. Warns once if it does not answer."""
        import requests
        import wandb
        from wandb.sdk.lib.service.service_connection import WandbApiFailedError

        try:
            self._poll()
        except (wandb.Error, WandbApiFailedError, requests.RequestException, ValueError) as error:
            if not self.has_warned:
                message = f"can't query the sweep ({first_line(error)}); its agents continue"
                self.progress.warned(message)
            self.has_warned = True

    def _poll(self) -> None:
        self._api.flush()  # it caches results
        runs = self._api.runs(
            self.project, filters={"sweep": self.id}, order="+created_at", per_page=200, lazy=False
        )
        for run in runs:
            if run.state in ENDED and run.id not in self.ended:
                self.ended[run.id] = run.summary.get(f"{TRIAL}state", run.state)
                self.progress.noted(self._line(run))

    def check(self) -> None:
        """Raise StageError when runs ended and none was completed."""
        if self.ended and not {"COMPLETE", "finished"} & {*self.ended.values()}:
            raise StageError(
                f"none of {len(self.ended)} runs of `{self.sweep}` was completed",
                "their output is in HOME/logs/wandb and in W&B's dashboard",
            )

    @cached_property
    def _searched(self) -> list[str]:
        """Return the parameters that are not fixed."""
        parameters = self._api.sweep(self.sweep).config["parameters"]
        return [name for name, entry in parameters.items() if "value" not in entry]

    def _line(self, run: Any) -> str:
        values = [
            f"{name} {format_quantity(name, run.summary[PREFIX + name])}"
            for name in ("accuracy", "mflops")
            if PREFIX + name in run.summary
        ]
        params = {name: run.config[name] for name in self._searched if name in run.config}
        state = run.summary.get(f"{TRIAL}state", run.state).lower()
        return "  ".join([f"run {run.id}", state, *values, format_params(params)])
