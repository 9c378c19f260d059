"""The one recipe that tests train: digits, the smallest networks, an epoch or a few of each stage.

In the home folders that `trained` gives lie a run of `TINY` and a study of `STUDY`.
"""

from pathlib import Path

SWEEPS = Path(__file__).parents[1] / "sweeps"
EPOCHS = {"teacher": 1, "distill": 2, "routing": 1, "joint": 3}
TINY = [
    f"@{SWEEPS / 'tiny.yaml'}",
    *(f"{section}.epochs={count}" for section, count in EPOCHS.items()),
    "precision=float32",  # some processors emulate bf16
    "distill.views=2", "latency.repeats=10", "latency.seconds=0.01",
]  # fmt: skip
"""Overrides, as `moist run` takes them."""


def searched(
    method: str, k: str = "values: [2, 3]", width: str = "values: [4, 32]", **epochs: int
) -> str:
    """Return a sweep file over k and the hidden width of the tiny recipe, with other `epochs`."""
    constants = dict(word.split("=") for word in TINY[1:])
    constants |= {f"{section}.epochs": str(count) for section, count in epochs.items()}
    fixed = "".join(f"  {key}: {{value: {value}}}\n" for key, value in constants.items())
    return f"""
program: moist
method: {method}
command: ["${{env}}", moist, run, "${{args_no_hyphens}}"]
parameters:
  data.name: {{value: digits}}
  teacher.arch: {{value: resnet8}}
  student.channels: {{value: "8,16"}}
  router: {{value: linear}}
{fixed}  k: {{{k}}}
  hidden_width: {{{width}}}
"""


STUDY = searched("grid")
"""A sweep of four trials; the first is the run of `TINY` with another width."""
