"""What a sweep tries next, and which of its runs have fallen behind.

Written from W&B's documentation, not from its `sweeps` package: grid and random are exact,
`bayes` is answered at random, and hyperband's rule is the documented one.
"""

from __future__ import annotations

import math
from itertools import product
from random import Random
from typing import Any

from wandb_standin.records import Refused, Run, Sweep

Values = dict[str, dict[str, Any]]
"""Parameters as agents take them: `{"lr": {"value": 0.1}}`."""


def nth(sweep: Sweep, number: int) -> Values | None:
    """The parameters of a sweep's run by its number from 0; None when there is no such run."""
    cap, parameters = sweep.config.get("run_cap"), sweep.config["parameters"]
    if cap is not None and number >= cap:
        return None
    if sweep.config["method"] == "grid":
        points = grid(parameters)
        return points[number] if number < len(points) else None
    return sample(parameters, sweep.random)


def grid(parameters: dict[str, Any]) -> list[Values]:
    """Every point, the last parameter fastest."""
    choices = [_choices(name, spec) for name, spec in parameters.items()]
    return [
        {name: {"value": value} for name, value in zip(parameters, point, strict=True)}
        for point in product(*choices)
    ]


def _choices(name: str, spec: dict[str, Any]) -> list[Any]:
    if "parameters" in spec:
        return [_bare(point) for point in grid(spec["parameters"])]
    if "value" in spec:
        return [spec["value"]]
    if "values" not in spec:
        raise Refused(400, f"grid search over `{name}` needs `values`")
    return list(spec["values"])


def sample(parameters: dict[str, Any], rng: Random) -> Values:
    """One point at random."""
    return {name: {"value": _draw(spec, rng)} for name, spec in parameters.items()}


def _bare(point: Values) -> dict[str, Any]:
    return {name: held["value"] for name, held in point.items()}


def _draw(spec: dict[str, Any], rng: Random) -> Any:
    if "parameters" in spec:
        return _bare(sample(spec["parameters"], rng))
    if "value" in spec:
        return spec["value"]
    if "values" in spec:
        return rng.choices(spec["values"], spec.get("probabilities"))[0]
    low, high, q = spec["min"], spec["max"], spec.get("q", 1)
    match spec.get("distribution", "int_uniform" if isinstance(low, int) else "uniform"):
        case "uniform":
            return rng.uniform(low, high)
        case "int_uniform":
            return rng.randint(low, high)
        case "log_uniform_values":
            return math.exp(rng.uniform(math.log(low), math.log(high)))
        case "q_uniform":
            return round(rng.uniform(low, high) / q) * q
        case "q_log_uniform_values":
            return round(math.exp(rng.uniform(math.log(low), math.log(high))) / q) * q
        case unknown:
            raise Refused(400, f"the stand-in can't draw from `{unknown}`")


def bands(rule: dict[str, Any], longest: int) -> list[int]:
    """The numbers of rows at which hyperband compares, up to `longest`.

    From `min_iter` up by `eta`; or from `max_iter` down by it, `s` times.
    """
    eta = rule.get("eta", 3)
    if "min_iter" in rule:
        found = [rule["min_iter"]]
        while found[-1] * eta <= longest:
            found.append(int(found[-1] * eta))
        return found
    sizes = [int(rule["max_iter"] / eta**power) for power in range(1, rule.get("s", 1) + 1)]
    return sorted(size for size in sizes if size >= 1)


def behind(sweep: Sweep, runs: list[Run]) -> set[str]:
    """The runs that hyperband stops: at the last band they passed (with `strict`, at any), their
    best so far is not among the best `1/eta` of all runs' there."""
    rule = sweep.config.get("early_terminate")
    if not rule:
        return set()
    best = {run.name: _best(run, sweep.config["metric"]) for run in runs}
    sizes = bands(rule, max(map(len, best.values()), default=0))
    limits = {size: _limit(best, size, rule.get("eta", 3)) for size in sizes}
    found = set()
    for name, values in best.items():
        passed = [size for size in sizes if len(values) >= size]
        judged = passed if rule.get("strict") else passed[-1:]
        if any(values[size - 1] > limits[size] for size in judged):
            found.add(name)
    return found


def _best(run: Run, metric: dict[str, Any]) -> list[float]:
    """The best value so far, row by row, of the rows that have the metric; less is better."""
    sign = -1 if metric.get("goal", "minimize") == "maximize" else 1
    rows = [row[metric["name"]] for row in run.history if metric["name"] in row]
    values = [sign * float(value) for value in rows]
    return [min(values[:size]) for size in range(1, len(values) + 1)]


def _limit(best: dict[str, list[float]], size: int, eta: float) -> float:
    there = sorted(values[size - 1] for values in best.values() if len(values) >= size)
    return there[math.ceil(len(there) / eta) - 1] if there else math.inf
