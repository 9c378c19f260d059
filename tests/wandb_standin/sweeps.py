"""Sweeps and their agents: what a heartbeat is answered."""

from __future__ import annotations

import json
import math
from typing import Any

import yaml

from wandb_standin import projects, search
from wandb_standin.queries import page
from wandb_standin.records import ENTITY, Agent, Refused, Run, Sweep
from wandb_standin.state import State

METHODS = {"grid", "random", "bayes", "custom"}
Command = dict[str, Any]


def upsert(_: Any, info: Any, input: dict[str, Any]) -> Any:
    """Make a sweep, or change one: `wandb sweep --stop`, the scheduler's last word."""
    state = info.context
    sweep = state.sweep_of(input["id"]) if input.get("id") else _made(state, input)
    for column in ("state", "description", "display_name", "controller", "scheduler"):
        if input.get(column) is not None:
            setattr(sweep, column, input[column])
    if input.get("config"):
        sweep.text, sweep.config = input["config"], _read(input["config"])
    return {"sweep": sweep, "config_validation_warnings": []}


def _made(state: State, input: dict[str, Any]) -> Sweep:
    _read(input.get("config") or "{}")
    where = state.made(input.get("entity_name"), input.get("project_name"))
    sweep = Sweep(*where, f"sweep{state.number():03}")
    state.sweeps[sweep.name] = sweep
    return sweep


def _read(text: str) -> dict[str, Any]:
    """A sweep's config; Refused for the few mistakes that the stand-in knows."""
    config = yaml.safe_load(text)
    method, metric = config.get("method"), config.get("metric")
    if method not in METHODS:
        raise Refused(400, f"invalid sweep config: method {method!r}")
    if (method == "bayes" or "early_terminate" in config) and not metric:
        raise Refused(400, "invalid sweep config: this needs a metric")
    if "scheduler" in config and ("early_terminate" in config or method != "custom"):
        raise Refused(400, "invalid sweep config: this is not for a scheduler")
    return config


def create_agent(_: Any, info: Any, input: dict[str, Any]) -> Any:
    state = info.context
    sweep = state.sweeps.get(input["sweep"])
    where = (input.get("entity_name") or ENTITY, input.get("project_name"))
    if sweep is None or (sweep.entity, sweep.project) != where:
        raise Refused(404, f"sweep {'/'.join(map(str, where))}/{input['sweep']} not found")
    agent = Agent(f"agent{state.number():03}", input["host"], sweep)
    state.agents[agent.id] = agent
    return {"agent": agent}


def heartbeat(_: Any, info: Any, input: dict[str, Any]) -> Any:
    """What an agent is to do: at most one thing, as its function flavour reads only the first."""
    agent = info.context.agents.get(input["id"])
    if agent is None or agent.sweep.name not in info.context.sweeps:
        raise Refused(404, f"agent {input['id']} not found")
    told = json.loads(input.get("run_state") or "{}")
    alive = {name for name, is_alive in told.items() if is_alive}
    _lost(info.context, agent, alive)
    command = _command(info.context, agent.sweep, alive)
    if command and command["type"] == "run":
        agent.given.append(command["run_id"])
    return {"agent": agent, "commands": json.dumps([command] if command else [])}


def _lost(state: State, agent: Agent, alive: set[str]) -> None:
    """Runs that ended without a word have crashed; the real server notices minutes later."""
    for run in state.runs_of(agent.sweep):
        lost = run.name in agent.given and run.name not in alive
        if lost and run.state in {"pending", "running"}:
            run.state = "killed" if run.stop else "crashed"


def _command(state: State, sweep: Sweep, alive: set[str]) -> Command | None:
    if sweep.state == "CANCELED":
        return {"type": "exit"}
    stopped = _stopped(state, sweep, alive)
    if stopped is not None:
        return {"type": "stop", "run_id": stopped.name}
    if alive or sweep.state == "PAUSED":
        return None
    return (_next(state, sweep) if sweep.state == "RUNNING" else None) or _idle(sweep)


def _idle(sweep: Sweep) -> Command | None:
    """Nothing to start: wait for the scheduler, or leave."""
    return None if sweep.state == "RUNNING" else {"type": "exit"}


def _stopped(state: State, sweep: Sweep, alive: set[str]) -> Run | None:
    """One of an agent's runs that is to stop: somebody asked for it, or it has fallen behind."""
    runs = state.runs_of(sweep)
    behind = search.behind(sweep, runs)
    for run in runs:
        if run.name in alive and (run.stop or run.name in behind):
            run.stop = True
            return run
    return None


def _next(state: State, sweep: Sweep) -> Command | None:
    """The next run; with none left the sweep is finished, though runs may still be under way."""
    if sweep.config["method"] == "custom":
        return _in_line(state, sweep)
    values = search.nth(sweep, len(sweep.started))
    if values is None:
        sweep.state = "FINISHED"
        return None
    return _start(state, sweep, add(state, sweep, values).name)


def _in_line(state: State, sweep: Sweep) -> Command | None:
    """What a scheduler has in line, up to `run_cap`; to end the sweep is for `enqueue`."""
    spent = len(sweep.started) >= sweep.config.get("run_cap", math.inf)
    return None if spent or not sweep.queue else _start(state, sweep, sweep.queue.popleft())


def add(state: State, sweep: Sweep, values: search.Values, name: str | None = None) -> Run:
    """A run of a sweep that nobody has begun yet."""
    run = Run(sweep.entity, sweep.project, f"run{state.number():05}")
    run.display_name, run.wrapped = name or run.name, dict(values)
    run.sweep, run.state = sweep.name, "pending"
    return state.runs.setdefault(run.key, run)


def _start(state: State, sweep: Sweep, name: str) -> Command:
    sweep.started.append(name)
    values = state.runs[sweep.entity, sweep.project, name].wrapped
    return {"type": "run", "run_id": name, "program": sweep.config.get("program"), "args": values}


def _best_loss(sweep: Sweep, info: Any) -> float | None:
    metric = sweep.config.get("metric") or {}
    found = [run.summary.get(metric.get("name")) for run in info.context.runs_of(sweep)]
    numbers = [value for value in found if isinstance(value, int | float)]
    best = max if metric.get("goal") == "maximize" else min
    return best(numbers, default=None)


def _expected(sweep: Sweep, info: Any) -> int | None:
    if sweep.config["method"] != "grid":
        return sweep.config.get("run_cap")
    size = len(search.grid(sweep.config["parameters"]))
    return min(size, sweep.config.get("run_cap", size))


RESOLVERS: dict[str, dict[str, Any]] = {
    "Mutation": {
        "upsertSweep": upsert,
        "createAgent": create_agent,
        "agentHeartbeat": heartbeat,
    },
    "Agent": {"name": lambda agent, info: agent.id},
    "Sweep": {
        "method": lambda sweep, info: sweep.config["method"],
        "config": lambda sweep, info: sweep.text,
        "updatedAt": lambda sweep, info: sweep.created_at,
        "heartbeatAt": lambda sweep, info: sweep.created_at,
        "bestLoss": _best_loss,
        "earlyStopJobRunning": lambda sweep, info: False,
        "runCount": lambda sweep, info: len(info.context.runs_of(sweep)),
        "runCountExpected": _expected,
        "project": lambda sweep, info: projects.of(info.context, sweep),
        "runs": lambda sweep, info, first=None, after=None: page(
            info.context.runs_of(sweep), first, after
        ),
    },
}
