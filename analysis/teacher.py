"""Train the teacher of a config alone, print its accuracies, and keep its weights as float16.

    python -m analysis.teacher @sweeps/teacher.yaml --home HOME -o analysis/weights/X.safetensors

The stages are those of `moist run`, which reuses them in the same home. A run in another home, or
in another clone, takes the file as `teacher.weights`.
"""

from pathlib import Path

import click
import torch

from moist.cli.options import OVERRIDES, Compute, computing
from moist.config.overrides import parse
from moist.errors import MoistError
from moist.stages.evaluate import evaluate
from moist.stages.teacher import train_teacher
from moist.store.artifacts import Teacher
from moist.store.checkpoint import write_tensors
from moist.systems.bound import Bound
from moist.systems.shared import prepared


@click.command()
@OVERRIDES
@click.option("-o", "path", type=click.Path(path_type=Path), help="File for the weights.")
@computing
def main(overrides: tuple[str, ...], path: Path | None, compute: Compute) -> None:
    """Train the teacher of a config alone."""
    c = parse(overrides)
    with compute.store() as store:
        data, _ = prepared(c, store)
        call = Bound(store, data=data, augment=c.augment, precision=c.precision, seed=c.seed)
        teacher = call(train_teacher, teacher=c.teacher)
        found = call(evaluate, model=teacher, oracle=False).value
    for epoch, row in enumerate(teacher.value.history, 1):
        figures = "  ".join(f"{name} {value:.5g}" for name, value in row.items())
        click.echo(f"epoch {epoch}  {figures}")
    val = "no validation split" if found.val_accuracy is None else f"{found.val_accuracy:.2%}"
    click.echo(f"validation {val} (n={found.n_val}), test {found.accuracy:.2%} (n={found.n})")
    if path is not None:
        write(teacher.value, path)
        click.echo(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


def write(teacher: Teacher, path: Path) -> None:
    """Write a teacher's weights as float16, in the form that `teacher.weights` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    floats = {name: t for name, t in teacher.state.items() if t.is_floating_point()}
    write_tensors(path, {name: t.to(torch.float16) for name, t in floats.items()})


if __name__ == "__main__":
    try:
        main(standalone_mode=False)
    except (MoistError, click.ClickException) as error:
        raise SystemExit(f"error: {error}") from None
