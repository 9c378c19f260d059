"""`moist sweep wandb`: a sweep on W&B's server, run by its agents on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from moist.cli.options import HOME, OVERRIDES, PATH, QUIET, STORE, check_together
from moist.disk import store_url
from moist.errors import ConfigError
from moist.interrupts import Interrupted

AGENT_OPTIONS = ("--count", "--workers", "--devices", "--threads")
"""Options that need agents to be started."""


@click.command("wandb")
@click.argument("file", required=False, type=PATH)
@OVERRIDES
@click.option(
    "--count", type=click.IntRange(1), help="Runs to start on this machine; default: the file's."
)
@click.option(
    "--workers", default=1, show_default=True, type=click.IntRange(1), help="Agents to start."
)
@click.option("--sweep", "joined", metavar="ENTITY/PROJECT/ID", help="Join a registered sweep.")
@click.option(
    "--register-only", is_flag=True, help="Start no agents; print the command that does."
)
@click.option("--entity", help="Owner of the project; default: your default entity.")
@click.option("--project", help="W&B project; default: the file's, or moist.")
@click.option("--devices", metavar="DEVICE,...", help="Devices of the agents: cuda:0,cuda:1")
@click.option("--threads", type=click.IntRange(1), help="CPU threads of each agent's runs.")
@STORE
@QUIET
@HOME
def wandb(
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
    store: str | None,
    quiet: bool,
    home: Path,
) -> None:
    """Search with W&B's server and agents on this machine.

    Registers the sweep file on the server, which draws the parameters: grid, random, or Bayesian
    with hyperband. A file with `scheduler: {engine: optuna}` is searched by an Optuna study in a
    process on this machine. `moist sweep optuna` searches the same file without a server. At
    most --count runs are started in any case.

    \b
    moist sweep wandb sweeps/quickstart.yaml --workers 2
    moist sweep wandb sweeps/quickstart.yaml --register-only
    moist sweep wandb --sweep me/moist/ab12cd34 --count 8
    """
    check_together(
        [("--sweep", option) for option in ("--register-only", "--entity", "--project")]
        + [("--register-only", option) for option in AGENT_OPTIONS]
    )
    _check_source(file, joined)
    from moist.agents.monitor import Monitor
    from moist.agents.pool import AgentPool
    from moist.agents.register import check_online, register, registration
    from moist.store.remote import connected
    from moist.study.workers import make_slots

    plan = registration(file, overrides, count) if file else None
    if register_only and plan and plan.scheduled:
        raise ConfigError(
            f"`{file}` has a `scheduler`, which must run along with its agents",
            "omit `--register-only`; other machines can join with `--sweep`",
        )
    places = make_slots(devices, workers, threads)
    shared = store_url(store)
    connected(shared)
    check_online(file)
    path = register(plan, entity, project) if plan else str(joined)
    click.echo(f"sweep {path}", err=True)
    if register_only:
        click.echo("start its agents, on any machine, with")
        click.echo(f"  moist sweep wandb --sweep {path}\nor\n  wandb agent {path}")
        return
    monitor = Monitor(path, quiet)
    try:
        with AgentPool(path, home, shared) as agents:
            if plan and plan.scheduled:
                agents.start_scheduler(plan, workers)
            agents.start_agents(plan.budget if plan else count, places)
            agents.wait(monitor.poll)
    except Interrupted as stopped:
        raise Interrupted(stopped.number, f"moist sweep wandb --sweep {path}") from None
    monitor.check()
    click.echo(f"print its frontier with\n  moist pareto --wandb {path}")


def _check_source(file: Path | None, joined: str | None) -> None:
    """Raise ConfigError unless exactly one of a file and a full sweep path is given."""
    if (file is None) == (joined is None):
        raise ConfigError(
            "expected a sweep file or `--sweep ENTITY/PROJECT/ID`, found"
            f" {'neither' if file is None else 'both'}",
            "a file registers a new sweep, `--sweep` joins an existing one",
        )
    if joined and (joined.count("/") != 2 or not all(joined.split("/"))):
        raise ConfigError(
            f"`--sweep {joined}` is not the path of a sweep", "write ENTITY/PROJECT/ID"
        )
