"""What a sweep searches: a W&B sweep file read as a space of configs.

The files in sweeps/ are W&B sweeps whose parameters are keys of the config. `wandb sweep FILE`
makes a sweep on W&B's server of one, `read_sweep` what an Optuna study searches. One word is
moist's own, and plain `wandb sweep` does not know it: `when`, in a parameter's entry, makes it
apply only where other parameters have certain values. Elsewhere it is not set, so that the key's
default holds:

    router: {values: [cnn, linear]}
    routing.widths: {values: ["64", "128,64"], when: {router: linear}}

A recipe is included, never repeated: with `command: ["${env}", moist, run, "@sweeps/short.yaml",
"${args_no_hyphens}"]` the values of that file are fixed, but for the parameters of this one. W&B's
agent passes the `@FILE` on to `moist run`, where the later arguments win in the same way.
"""

from moist.sweepfile.catalog import catalog
from moist.sweepfile.parameters import Parameter, distribution
from moist.sweepfile.sweep import Sweep, active, config_of, grid, problems, read_sweep, size

__all__ = [
    "Parameter", "Sweep", "active", "catalog", "config_of", "distribution", "grid", "problems",
    "read_sweep", "size",
]  # fmt: skip
