"""What `wandb sync` says of runs that it could not send: only its errors tell, in its output."""

from __future__ import annotations

import os
import re

from moist.tracking.files import Logged


def refusals(output: str, run: Logged) -> list[str]:
    """The errors that name a run, by its id or by the folder of a log."""
    names = [f"(?<![\\w-]){re.escape(run.id)}", *(re.escape(p.parent.name) for p in run.paths)]
    named = re.compile(f"({'|'.join(names)})(?![\\w-])")
    return [line for line in _errors(output) if named.search(line)]


def reason(output: str, run: Logged) -> str:
    """Why a run was not sent, as wandb says it: about this run, else at last. Never the key."""
    said = (refusals(output, run) or _errors(output) or output.split("\n") or [""])[0]
    return without_key(said) or "wandb gave no reason"


def without_key(said: str) -> str:
    key = os.environ.get("WANDB_API_KEY")
    return said.replace(key, "(key)") if key else said


def _errors(output: str) -> list[str]:
    lines = [line.removeprefix("wandb: ") for line in output.splitlines()]
    return [line.removeprefix("ERROR ") for line in lines if line.startswith("ERROR ")]
