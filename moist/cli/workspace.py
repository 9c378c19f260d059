"""`moist wandb`: what moist makes in W&B's dashboard."""

from __future__ import annotations

import sys

import click

from moist.cli.options import JSON, print_json
from moist.errors import ConfigError
from moist.results import queries
from moist.results.objectives import DEFAULT


@click.group()
def wandb() -> None:
    """Things made in W&B's dashboard."""


@wandb.command()
@click.argument("place", metavar="ENTITY/PROJECT")
@click.option("--group", metavar="STUDY", help="Of one study or sweep; default: of all runs.")
@JSON
def workspace(place: str, group: str | None, as_json: bool) -> None:
    """Save a workspace: accuracy over cost, parallel coordinates, importance, learning curves.

    The runs on the Pareto frontier of accuracy and mflops get the tag `pareto`, and others lose
    it.

    \b
    moist wandb workspace me/moist --group quickstart
    """
    entity, _, project = place.partition("/")
    if not entity or not project or "/" in project:
        raise ConfigError(f"`{place}` is no project of W&B", "write ENTITY/PROJECT")
    from moist.tracking.results import load
    from moist.tracking.workspace import save, tag
    from moist.tracking.workspace import workspace as made

    name, trials = load(place, group, DEFAULT, lambda text: print(text, file=sys.stderr))
    front = queries.members(trials, DEFAULT)
    panels = made(entity, project, group)
    changed = tag(place, group, {trial.key for trial in front if trial.key})
    url = save(panels)
    if as_json:
        print_json({"url": url, "study": name, "frontier": [t.number for t in front]})
    else:
        click.echo(f"{url}\n{len(front)} runs are tagged `pareto` ({changed} changed)")
