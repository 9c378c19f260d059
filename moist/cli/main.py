"""The command line: parse, call one function, print. Nothing here imports torch at start-up."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from moist import config as configs
from moist.cli.agents import wandb_sweep
from moist.cli.bench import bench
from moist.cli.options import HOME, JSON, OVERRIDES, opened, print_json
from moist.cli.run import plan, run
from moist.cli.store import cache, data
from moist.cli.study import best, dashboard, pareto
from moist.cli.sweep import sweep
from moist.cli.table import table
from moist.cli.wandb import browse, sync
from moist.cli.workspace import wandb
from moist.config import schema
from moist.config.overrides import parse
from moist.errors import ConfigError, MoistError
from moist.reporting import terminal
from moist.reporting.run_tables import print_curve, print_report
from moist.study.ref import masked
from moist.tracking.client import sweep as sweep_of_agent


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="moist")
def cli() -> None:
    """Mixtures of distilled student experts: train, measure, compare.

    \b
    moist run                                 digits, in about a minute
    moist run k=4 hidden_width=512            change what is trained
    moist run @sweeps/sound.yaml data.name=folder data.root=IMAGES
    moist runs                                all runs so far

    KEY=VALUE (and @FILE of them) changes a run's result; a --flag never does.
    """


@cli.command("config")
@OVERRIDES
@click.option("--keys", is_flag=True, help="Every key with its default, bounds and meaning.")
@JSON
def show_config(overrides: tuple[str, ...], keys: bool, as_json: bool) -> None:
    """Print the resolved config, in the form that @FILE reads; or describe the keys.

    \b
    moist config k=4 > four.yaml && moist run @four.yaml
    moist config --keys
    """
    if keys:
        described = [{"key": name, **spec} for name, spec in schema.keys().items()]
        if as_json:
            print_json(described)
            return
        rows = [
            [row["key"], str(row["default"]), schema.bounds(row), row.get("description", "")]
            for row in described
        ]
        terminal.print_table("", ["key", "default", "values", "meaning"], rows)
        return
    flat = configs.flat(parse(overrides))
    if as_json:
        print_json([flat])
        return
    for name, value in flat.items():
        click.echo(f"{name}: {'null' if value is None else value}")


@cli.command("runs")
@JSON
@HOME
def list_runs(as_json: bool, home: Path) -> None:
    """List the runs so far, newest first.

    \b
    moist runs --json
    """
    from moist.store import runs

    found = runs.all_runs(home)
    if as_json:
        print_json([run.record() for run in found])
        return
    rows = [
        [
            run.key[: terminal.SHORT],
            run.created[:16].replace("T", " "),
            run.config["data.name"],
            f"{run.report.accuracy:.2%}" + (" (told)" if run.report.upper_bound else ""),
            "-" if run.report.val_accuracy is None else f"{run.report.val_accuracy:.2%}",
            f"{run.report.mflops:.2f}",
            " ".join(shlex.split(run.command)[2:]) or "(defaults)",
        ]
        for run in found
    ]
    heads = ["run", "created (UTC)", "data", "accuracy", "val accuracy", "MFLOPs", "overrides"]
    terminal.print_table("", heads, rows)


@cli.command()
@click.argument("run")
@JSON
@HOME
def show(run: str, as_json: bool, home: Path) -> None:
    """Print a run's report again. RUN is a key, a unique prefix of one, or `last`.

    \b
    moist show last
    """
    from moist.store import runs

    found = runs.find(home, run)
    if as_json:
        print_json([found.record()])
    else:
        print_report(found.report, found.config, found.command)


@cli.command()
@click.argument("run")
@click.option("--csv", "as_csv", is_flag=True, help="Comma-separated values, unrounded.")
@JSON
@HOME
def curve(run: str, as_csv: bool, as_json: bool, home: Path) -> None:
    """Print what each threshold of a run's second opinions gives: accuracy over cost.

    From the run's record: nothing is trained. Choose by the validation columns, then set
    `cascade.defer` (or `mixture.second`) to the share asked.

    \b
    moist curve last
    moist curve last --csv > curve.csv
    """
    from moist.store import runs

    found = runs.find(home, run)
    if found.report.doubt is None:
        raise ConfigError(
            f"run `{found.key[: terminal.SHORT]}` asks for no second opinion",
            "train one with `cascade.fallback=teacher` or `mixture.top=2`",
        )
    points = [point.model_dump() for point in found.report.doubt.curve]
    if as_json:
        print_json(points)
    elif as_csv:
        lines = [points[0], *(point.values() for point in points)]
        click.echo("\n".join(",".join(map(str, line)) for line in lines))
    else:
        print_curve(found.report.doubt)


@cli.command()
@click.argument("run")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@JSON
@HOME
def predict(run: str, images: tuple[Path, ...], as_json: bool, home: Path) -> None:
    """Classify images with a run's model: class, probability, and who was asked.

    \b
    moist predict last photo.jpg
    """
    from moist.serving.predict import predict_images
    from moist.store import runs

    with opened(home, quiet=True) as store:
        predictions = predict_images(store, runs.find(home, run), images)
    if as_json:
        print_json(predictions)
        return
    shown: dict[str, Callable[[Any], str]] = {
        "image": str,
        "class": str,
        "probability": "{:.1%}".format,
        "expert": str,
        "router_confidence": "{:.1%}".format,
        "second_opinion": lambda asked: "asked" if asked else "-",
    }
    heads = [name for name in shown if name in predictions[0]]
    rows = [[shown[name](row[name]) for name in heads] for row in predictions]
    terminal.print_table("", [name.replace("_", " ") for name in heads], rows)


def main() -> None:
    """Entry point: every error is said in our words and has its exit code."""
    signal.signal(signal.SIGTERM, _terminated)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # else nohup wants it to go on
        signal.signal(signal.SIGHUP, _terminated)
    try:
        sys.exit(cli.main(standalone_mode=False))
    except click.NoSuchOption as error:
        terminal.fail(f"{error.format_message()}{flag_hint(error.option_name, sys.argv)}")
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except MoistError as error:
        terminal.fail(str(error))
        sys.exit(error.exit_code)
    except click.Abort as abort:
        if abort.__cause__ is None:  # a question answered with no
            terminal.fail("stopped; nothing was changed")
            sys.exit(1)
        _broken_off("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _broken_off(how: str) -> None:
    again = shlex.join(["moist", *map(masked, sys.argv[1:])])
    terminal.fail(f"{how}; what is finished is kept, continue with\n  {again}")


def _terminated(number: int, _frame: object) -> None:
    """What a batch system stops a run with, or a W&B agent whose sweep has seen enough of it:
    no failure then, or the agent would give up after a few."""
    if sweep_of_agent():
        sys.exit(0)
    _broken_off("terminated")
    sys.exit(128 + number)


def flag_hint(option: str, argv: list[str]) -> str:
    """`--k 3` is no flag: results are changed by KEY=VALUE."""
    key = option.lstrip("-").replace("-", "_")
    if key not in configs.flat(configs.Config()):
        return ""
    given = [word for word in argv if word == option or word.startswith(f"{option}=")]
    after = argv[argv.index(given[0]) + 1 :][:1] if given == [option] else []
    after = [word for word in after if not word.startswith("--")]
    value = given[0].partition("=")[2] if given and not after else "".join(after)
    return f"\nhint: write `{key}={value or 'VALUE'}`"


cli.add_command(bench)
cli.add_command(best)
cli.add_command(browse)
cli.add_command(cache)
cli.add_command(dashboard)
cli.add_command(data)
cli.add_command(pareto)
cli.add_command(plan)
cli.add_command(run)
cli.add_command(sweep)
cli.add_command(sync)
cli.add_command(table)
sweep.add_command(wandb_sweep)
cli.add_command(wandb)
