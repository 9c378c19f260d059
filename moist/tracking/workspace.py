"""A workspace in W&B's dashboard for the questions that a sweep is run to answer."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from moist.config.systems import CURVES
from moist.errors import ConfigError, StoreError
from moist.results.objectives import PREFIX
from moist.tracking.journal import TRIAL

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

MEMBER = "pareto"
"""Tag of the runs on the frontier."""

ACCURACY, COSTS = f"{PREFIX}accuracy", ("mflops", "latency_ms", "params")
STUDY_MEDIA = ["verdict", "pareto", "parameters", "importance"]
"""What a study's own run logs (`reporting/wandb_summary.py`): verdict, frontier, parameters."""

SEARCHED = {"k": False, "hidden_width": True, "router": False, "temperature": True}
"""Columns of the parallel coordinates, and whether their axis is logarithmic."""

TITLES = {
    "mflops": "accuracy over MFLOPs (a multiply-add is one)",
    "latency_ms": "accuracy over latency, ms (batch 1)",
    "params": "accuracy over parameters",
}


def build(entity: str, project: str, group: str | None) -> Workspace:
    """Build panels over a project's runs, or over those of one study or sweep; don't save them.

    Raises ConfigError if wandb-workspaces is not installed.
    """
    try:
        from wandb_workspaces import workspaces as ws
    except ImportError:
        raise ConfigError(
            "`moist wandb workspace` needs wandb-workspaces", "`pip install moist[workspaces]`"
        ) from None
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"moist: {group}" if group else "moist",
        sections=_sections(ws),
        runset_settings=ws.RunsetSettings(filters=f"Group = '{group}'" if group else ""),
        settings=ws.WorkspaceSettings(max_runs=100),
    )


def _sections(ws: Any) -> list[Section]:
    """Build the sections: the study's own figures, results, hyperparameters, learning curves."""
    from wandb_workspaces.reports import v2

    wr: Any = v2  # mypy finds no names in it
    accuracy = wr.SummaryMetric(ACCURACY)
    scatters = [
        wr.ScatterPlot(
            title=TITLES[cost], x=wr.SummaryMetric(f"{PREFIX}{cost}"), y=accuracy, log_x=True
        )
        for cost in COSTS
    ]
    columns = [
        wr.ParallelCoordinatesPlotColumn(metric=wr.Config(name), log=log)
        for name, log in SEARCHED.items()
    ]
    columns += [
        wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(name), log=log)
        for name, log in ((f"{PREFIX}mflops", True), (ACCURACY, False))
    ]
    curves = [
        wr.LinePlot(title=f"{stage}: {what}", x=f"{stage}/epoch", y=[f"{stage}/{what}"])
        for stage in CURVES
        for what in ("val_accuracy", "loss")
    ]
    return [
        ws.Section("The study", [wr.MediaBrowser(media_keys=STUDY_MEDIA)], is_open=True),
        ws.Section("Accuracy over cost", scatters, is_open=True),
        ws.Section(
            "Hyperparameters",
            [
                wr.ParallelCoordinatesPlot(columns=columns),
                wr.ParameterImportancePlot(with_respect_to=ACCURACY),
            ],
            is_open=True,
        ),
        ws.Section("Learning curves", curves, is_open=True),
    ]


def save(workspace: Workspace) -> str:
    """Save a workspace, and return its URL. Raises StoreError if the server rejects it."""
    from wandb.errors import CommError

    try:
        workspace.save()  # type: ignore[no-untyped-call]
    except (CommError, ValueError) as error:
        raise StoreError(f"W&B rejected the workspace: {error}") from error
    return str(workspace.url)


def tag(project: str, group: str | None, keys: Collection[str]) -> int:
    """Tag the runs with one of `keys` as on the frontier, and no others; return how many changed.

    `project` is `ENTITY/PROJECT`.
    """
    import wandb

    filters = {"group": group} if group else {}
    changed = 0
    for run in wandb.Api().runs(project, filters=filters, per_page=200, lazy=False):
        belongs = run.summary_metrics.get(f"{TRIAL}key") in keys
        if belongs != (MEMBER in run.tags):
            others = [one for one in run.tags if one != MEMBER]
            run.tags = [*others, MEMBER] if belongs else others
            run.update()
            changed += 1
    return changed
