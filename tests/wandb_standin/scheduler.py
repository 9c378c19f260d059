"""What `wandb sweep-scheduler` needs besides: runs that a scheduler puts in line.

The rest of it is in `sweeps` (its state), `projects` (the runs it watches) and `runs` (history,
stopping).
"""

from __future__ import annotations

import json
import math
from typing import Any

from wandb_standin import sweeps
from wandb_standin.records import Refused, Sweep
from wandb_standin.state import State


def enqueue(_: Any, info: Any, input: dict[str, Any]) -> Any:
    """Put a run in line; its parameters come as agents take them.

    A scheduler that asks for more when `run_cap` runs have been started and have ended has heard
    of them all: the sweep is finished. (By its own count killed runs are none, and it would wait.)
    """
    state = info.context
    if not state.features["SWEEPS_LOCAL_SCHEDULER"]:
        raise Refused(400, "this server knows no schedulers")
    sweep = state.sweep_of(input["id"])
    run = sweeps.add(state, sweep, json.loads(input["config"]), input.get("display_name"))
    sweep.queue.append(run.name)
    if len(sweep.started) >= sweep.config.get("run_cap", math.inf) and not _alive(state, sweep):
        sweep.state = "FINISHED"
    return {"id": run.name, "run_queue_item_id": None}


def _alive(state: State, sweep: Sweep) -> bool:
    runs = [state.runs[sweep.entity, sweep.project, name] for name in sweep.started]
    return any(run.state in {"pending", "running"} for run in runs)


def controller(sweep: Sweep, info: Any) -> str:
    """The name of the run that a scheduler writes its own log to."""
    return f"{sweep.name}-controller"


RESOLVERS: dict[str, dict[str, Any]] = {
    "Mutation": {"enqueueSweepRun": enqueue},
    "Sweep": {"controllerRunName": controller},
}
