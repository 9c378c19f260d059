"""`moist sweep wandb`: a sweep that W&B's server leads, run by its agents here."""

from __future__ import annotations

from pathlib import Path

import click

from moist.cli.options import HOME, OVERRIDES, QUIET, check_together
from moist.errors import ConfigError
from moist.reporting import terminal


@click.command("wandb")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@OVERRIDES
@click.option("--count", type=click.IntRange(1), help="Runs to start here; default: the file's.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="Agents.")
@click.option("--sweep", "joined", metavar="ENTITY/PROJECT/ID", help="Join a registered sweep.")
@click.option("--register-only", is_flag=True, help="Start nothing; print how to.")
@click.option("--entity", help="Whose project; default: your own.")
@click.option("--project", help="Default: the file's, or moist.")
@click.option("--devices", metavar="DEVICE,...", help="To spread agents over: cuda:0,cuda:1")
@click.option("--threads", type=click.IntRange(1), help="CPU threads of each agent's runs.")
@QUIET
@HOME
def wandb_sweep(
    file: Path | None,
    overrides: tuple[str, ...],
    count: int | None,
    workers: int,
    joined: str | None,
    register_only: bool,
    entity: str | None,
    project: str | None,
    devices: str | None,
    threads: int | None,
    quiet: bool,
    home: Path,
) -> None:
    """Search with W&B: register a sweep file on its server, and run agents here.

    Needs W&B's server; `moist sweep optuna` searches the same file without one. The server draws
    the parameters: a grid, at random, by its own Bayesian search with hyperband, or, of files
    with `scheduler: {engine: optuna}`, by an Optuna study in a process here. --count holds,
    whatever the server does.

    \b
    moist sweep wandb sweeps/quickstart.yaml --workers 2
    moist sweep wandb sweeps/quickstart.yaml --register-only
    moist sweep wandb --sweep me/moist/ab12cd34 --count 8
    """
    check_together(
        [("--sweep", "--register-only"), ("--sweep", "--entity"), ("--sweep", "--project")]
        + [("--register-only", one) for one in ("--count", "--workers", "--devices", "--threads")]
    )
    _check_source(file, joined)
    from moist.agents.monitor import Watching
    from moist.agents.pool import Crew
    from moist.agents.register import check_online, document, register
    from moist.study.search import slots

    plan = document(file, overrides, count) if file else None
    if register_only and plan and plan.scheduled:
        raise ConfigError(
            f"`{file}` has a `scheduler`, which must run beside its agents",
            "leave out `--register-only`; other machines join with `--sweep`",
        )
    places = slots(devices, workers, threads)
    check_online(file)
    path = register(plan, entity, project) if plan else str(joined)
    click.echo(f"sweep {path}", err=True)
    if register_only:
        click.echo("run its agents, on any machine, with")
        click.echo(f"  moist sweep wandb --sweep {path}\nor\n  wandb agent {path}")
        return
    watching = Watching(path, quiet)
    try:
        with Crew(path, home) as crew:
            if plan and plan.scheduled:
                crew.start_scheduler(plan, workers)
            crew.start_agents(plan.budget if plan else count, places)
            crew.watch(watching.look)
    except KeyboardInterrupt:
        terminal.fail(f"interrupted; go on with\n  moist sweep wandb --sweep {path}")
        raise click.exceptions.Exit(130) from None
    watching.check()
    click.echo(f"its frontier:\n  moist pareto --wandb {path}")


def _check_source(file: Path | None, joined: str | None) -> None:
    """Raise ConfigError unless either a file or a whole sweep's path is given."""
    if (file is None) == (joined is None):
        raise ConfigError(
            "expected a sweep file or `--sweep ENTITY/PROJECT/ID`, found"
            f" {'neither' if file is None else 'both'}",
            "a file makes a new sweep, `--sweep` joins one",
        )
    if joined and (joined.count("/") != 2 or not all(joined.split("/"))):
        raise ConfigError(f"`--sweep {joined}` is no sweep", "write ENTITY/PROJECT/ID")
