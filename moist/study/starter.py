"""The sweep file that `moist init` writes: a search fitted to a folder of images."""

from __future__ import annotations

import json
import re
from pathlib import Path

from moist.data.survey import Survey, small_side
from moist.env import Env

SHOWN, LEAST, MOST = 9000, 10, 40
"""Images that the teacher and the student are shown in all, and the bounds of their epochs."""


def file_of(root: Path) -> Path:
    """Return the name of the file for a folder: its own, without what a study can't be named."""
    name = re.sub(r"[^\w-]+", "-", root.resolve().name).strip("-")
    return Path(f"{name or 'images'}.yaml")


def sweep_text(found: Survey, env: Env) -> str:
    """Return a sweep file for the images that were found, fitted to this machine."""
    classes, n = len(found.classes), found.images
    on_gpu = env.device.type == "cuda"
    side = small_side(found, 64 if on_gpu else 32)
    epochs = min(max(round(SHOWN / n), LEAST), MOST)
    most = min(classes, 6)
    counts = list(range(2 if classes > 2 else 1, most + 1))
    width = 64 if n < 1000 else 128 if n < 5000 else 256
    why_side = (
        "the median of the shorter sides"
        if side not in (32, 64)
        else f"{side} train in minutes here; twice the side shows more and takes 4 times as long"
    )
    emulated = env.emulation("bf16")
    precision = (
        "  # This processor has no bf16 instructions: float32 is several times faster here.\n"
        "  precision: {value: float32}\n"
        if emulated
        else ""
    )
    return f"""\
# {n:,} images of {classes} classes: which small models are worth their multiply-adds?
# Start or continue:  moist sweep optuna FILE           Rehearse:  ... --dry-run
# `moist config --keys` explains every key; `moist sweep list` has other searches.
program: moist  # this line and `command` are as W&B needs them; `@starter` is included
command: ["${{env}}", moist, run, "@starter", "${{args_no_hyphens}}"]
method: bayes
metric: {{name: objective/accuracy, goal: maximize}}
run_cap: 12  # trials; they share one teacher, so more of them cost little
parameters:
  # The images. Test images are only read to report each model, never to choose one.
  data.name: {{value: folder}}
  data.root: {{value: {json.dumps(str(Path(found.root).resolve()), ensure_ascii=False)}}}
  # Pixels a side: {why_side}.
  data.image_size: {{value: {side}}}
  data.crop: {{value: true}}  # the centre square of each image; false stretches it

  # Searched: students, one for each cluster of classes ({classes} at most), ...
  k: {{values: {counts}}}
  # ... how wide each is (few images need few weights), ...
  hidden_width: {{distribution: q_log_uniform_values, min: 8, max: {width}}}
  # ... and what sends an image to its student: `linear` costs least.
  router: {{values: [linear, cnn]}}

  # Passes over the training images: the fewer there are, the more passes ({LEAST} to {MOST}).
  teacher.epochs: {{value: {epochs}}}
  distill.epochs: {{value: {epochs}}}
  routing.epochs: {{value: {max(epochs // 2, 5)}}}
  joint.epochs: {{value: {max(epochs // 2, 5)}}}
{precision}"""
