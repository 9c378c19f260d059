"""Sweep files: W&B sweeps of config keys, read as a search space.

The files in sweeps/ are W&B sweeps whose parameters are keys of the config. `wandb sweep FILE`
makes a sweep on W&B's server of one, `read_sweep` the space that an Optuna study searches. One
word is an extension of moist that plain `wandb sweep` does not know: `when`, in a parameter's
entry, makes it apply only where other parameters have certain values. Elsewhere it is not set, so
that the key's default holds:

    router: {values: [cnn, linear]}
    routing.widths: {values: ["64", "128,64"], when: {router: linear}}

A recipe is included, not repeated: `command: ["${env}", moist, run, "@sweeps/short.yaml",
"${args_no_hyphens}"]` fixes the values of that file, except for parameters of this one. W&B's
agent passes the `@FILE` on to `moist run`, where later arguments win too.
"""

from moist.sweepfile.catalog import catalog
from moist.sweepfile.reading import EXHAUSTIVE, problems, read_sweep
from moist.sweepfile.space import (
    Parameter,
    Sweep,
    active,
    config_of,
    distribution,
    ends,
    grid,
    size,
)

__all__ = [
    "EXHAUSTIVE", "Parameter", "Sweep", "active", "catalog", "config_of", "distribution", "ends",
    "grid", "problems", "read_sweep", "size",
]  # fmt: skip
