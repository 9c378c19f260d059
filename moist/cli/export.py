"""`moist export`: a model as a file that needs no moist, for onnxruntime or torch."""

from __future__ import annotations

from pathlib import Path

import click

from moist.api.compute import Compute
from moist.api.runs import run_of
from moist.cli import completion
from moist.cli.options import JSON, PATH, STORAGE, computing, print_json, study_ref
from moist.disk import write_atomically, writing
from moist.errors import ConfigError
from moist.serving import SUFFIXES


@click.command()
@click.argument("name", metavar="RUN|STUDY", shell_complete=completion.runs_or_studies)
@click.option(
    "--output",
    "-o",
    "path",
    type=PATH,
    metavar="FILE",
    help="The file to write.  [default: model.onnx, or model.pt2 for torch]",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(list(SUFFIXES)),
    help="ONNX, or a `.pt2` file for torch.  [default: by FILE's ending, else onnx]",
)
@click.option(
    "--int8",
    is_flag=True,
    help="Store weights as 8-bit integers, and compute with them: a smaller file, another"
    " accuracy, which is printed. In ONNX only.",
)
@click.option(
    "--test",
    is_flag=True,
    help="Compare on the test images, not the validation images.",
)
@JSON
@STORAGE
@computing
def export(
    name: str,
    path: Path | None,
    form: str | None,
    int8: bool,
    test: bool,
    as_json: bool,
    storage: str | None,
    compute: Compute,
) -> None:
    """Export a run's model as one file, for onnxruntime or torch.

    An ONNX file runs in onnxruntime without moist or torch, a `.pt2` file in torch without moist.
    Only the students that images are routed to are computed, at every batch size. Input `images`
    is uint8, (batch, height, width, channels); output `logits`. Class names, key, config and
    figures are in the file's metadata (`.pt2`: its extra files). It is compared with the model in
    torch on the validation images first, and not written if it differs. RUN is a key, a unique
    prefix of one, or `last`; of a STUDY it is the best trial's.

    ONNX needs `pip install 'moist[onnx]'`. In a program with torch alone:

    \b
    model = torch.export.load("model.pt2").module()
    logits = model(images)["logits"]

    \b
    moist export last
    moist export quickstart -o digits.onnx
    moist export last --format torch-export -o model.pt2
    moist export last --int8 --test -o small.onnx
    """
    from moist.serving.export import export_model
    from moist.serving.exported import FORMATS

    form = form or next(
        (name for name, end in SUFFIXES.items() if path and path.suffix == end), "onnx"
    )
    path = path or Path("model").with_suffix(SUFFIXES[form])
    if path.suffix in SUFFIXES.values() and path.suffix != SUFFIXES[form]:
        raise ConfigError(
            f"`--format {form}` writes `{SUFFIXES[form]}` files, and `{path}` is another format's",
            "leave out `--format`, or give FILE its ending",
        )
    run = run_of(study_ref(name, storage, compute.home))
    with compute.plan() as store:
        found = export_model(store, run, form, int8, "test" if test else None)
    with writing(path.parent):
        write_atomically(path, found.data)
    if as_json:
        print_json({"file": str(path), **found.report()})
        return
    split = {"val": "validation", "train": "training"}.get(found.split, found.split)
    stated = f"{found.accuracy:.2%} (in torch {found.accuracy_torch:.2%}"
    if found.accuracy_recorded is not None:
        stated += f", recorded {found.accuracy_recorded:.2%}"
    click.echo(
        f"{path}: {len(found.data) / 1e6:.3g} MB{', int8' if int8 else ''},"
        f" runs in {FORMATS[form].runtime}\n"
        f"on {found.n:,} {split} images: {found.same_class:.2%} with the same class as in torch,"
        f" logits within {found.difference:.1g}, accuracy {stated})"
    )
