"""What a sweep file says beside its parameters: what W&B admits, and what moist needs of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from moist.errors import ConfigError, did_you_mean, unknown
from moist.results.objectives import DEFAULT, PREFIX, QUANTITIES, Direction, Objective
from moist.sweepfile.errors import noted, together

WORDS = (
    "program", "command", "method", "metric", "metrics", "parameters", "run_cap", "scheduler",
    "early_terminate", "name", "description", "project", "entity", "controller", "kind",
    "apiVersion",
)  # fmt: skip
METHODS = ("grid", "random", "bayes", "custom")
ENGINES = {"optuna": ("custom",), "ax": ("custom",), "wandb": ("grid", "random", "bayes")}
"""W&B's search engines that run beside the agents, and the methods of each."""

METRIC = ("name", "goal", "target", "impute", "impute_while_running")
GOALS: dict[str, Direction] = {"maximize": "max", "minimize": "min"}
ARGUMENTS = "${args_no_hyphens}"


def check_head(document: Mapping[str, Any]) -> None:
    """Raise ConfigError, a line a mistake, for what W&B or moist could not work with."""
    with together() as wrong:
        wrong += [*_unknown(document), *_of_a_run(document), *_of_the_search(document)]
        for word in ("metric", "metrics"):
            if word in document:
                with noted(wrong):
                    read_objectives(document, word)


def _unknown(document: Mapping[str, Any]) -> Iterator[str]:
    for word in document:
        if word not in WORDS:
            yield f"unknown key `{word}`; {did_you_mean(word, WORDS)}"


def _of_a_run(document: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with how an agent starts a run, and with how many it may start."""
    if document.get("program") != "moist":
        yield f"`program`: expected `moist`, found `{document.get('program', 'none')}`"
    command = document.get("command")
    if not isinstance(command, list) or command[-1:] != [ARGUMENTS]:
        yield (
            f"`command`: expected a list that ends in `{ARGUMENTS}`, found `{command}`;"
            f' write ["${{env}}", moist, run, "{ARGUMENTS}"]'
        )
    cap = getattr(document.get("run_cap", None), "seen", None)
    if "run_cap" in document and not (type(cap) is int and cap > 0):
        yield f"`run_cap`: expected a whole number above 0, found `{document['run_cap']}`"
    if not isinstance(document.get("parameters"), dict) or not document["parameters"]:
        yield "`parameters`: expected `KEY: {value: VALUE}` lines, found none"


def _of_the_search(document: Mapping[str, Any]) -> Iterator[str]:
    """What does not go together in method, metrics, scheduler and early termination."""
    method, scheduler = document.get("method"), document.get("scheduler")
    if method not in METHODS:
        yield f"`method`: expected {' | '.join(METHODS)}, found `{method or 'none'}`"
    if method == "bayes" and "metric" not in document:
        yield f"`method: bayes` needs a `metric`; write {{name: {PREFIX}accuracy, goal: maximize}}"
    if method == "custom" and scheduler is None:
        yield "`method: custom` needs a `scheduler`, or W&B starts nothing; write {engine: optuna}"
    if "metrics" in document and method != "custom":
        yield f"`metrics` need `method: custom`, found `{method}`; write one `metric`, or custom"
    if "metrics" in document and "metric" in document:
        yield "`metric` and `metrics` are both given; write one of them"
    if "scheduler" in document and "early_terminate" in document:
        yield "`early_terminate` does not go with a `scheduler`, which W&B refuses; leave one out"
    engine = scheduler.get("engine") if isinstance(scheduler, dict) else None
    if scheduler is not None and engine not in ENGINES:
        yield f"`scheduler`: expected {{engine: {' | '.join(ENGINES)}}}, found `{scheduler}`"
    elif method in METHODS and engine and method not in ENGINES[engine]:
        yield (
            f"`scheduler`: `engine: {engine}` does not go with `method: {method}`;"
            f" write {' or '.join(f'`method: {one}`' for one in ENGINES[engine])}"
        )


def for_wandb(document: Mapping[str, Any]) -> dict[str, str]:
    """What of a sound file is for W&B's own search alone, and what plays its part in a study.

    A `metric` that a study optimizes anyway is none of it.
    """
    found = {}
    if "metric" in document and read_objectives(document, "metric")[0] not in DEFAULT:
        found["metric"] = "--objective"
    if "early_terminate" in document:
        found["early_terminate"] = "--prune"
    if "scheduler" in document and document["scheduler"]["engine"] == "ax":
        found["engine: ax"] = "--sampler"
    return found


def read_objectives(
    document: Mapping[str, Any], word: Literal["metric", "metrics"]
) -> tuple[Objective, ...]:
    """The objectives that `metric` or `metrics` name. Raises ConfigError, a line a mistake."""
    entries = document[word] if word == "metrics" else [document[word]]
    if word == "metrics" and (not isinstance(entries, list) or len(entries) < 2):
        raise ConfigError(
            f"`metrics`: expected a list of two or more {{name, goal}}, found `{entries}`;"
            " one objective is a `metric`"
        )
    found: list[Objective] = []
    with together() as wrong:
        for entry in entries:
            with noted(wrong):
                found.append(_objective(word, entry))
        if len({one.name for one in found}) < len(found):
            wrong.append("`metrics`: an objective is given twice")
    return tuple(found)


def _objective(word: str, entry: Any) -> Objective:
    asked = entry if isinstance(entry, dict) else {}
    name, goal = str(asked.get("name", entry)), asked.get("goal")
    if strange := [one for one in asked if one not in METRIC]:
        raise unknown("key", f"{word}.{strange[0]}", [f"{word}.{one}" for one in METRIC])
    quantity = name.removeprefix(PREFIX)
    if name == quantity or quantity not in QUANTITIES:
        raise ConfigError(
            f"`{word}`: unknown objective `{name}`",
            did_you_mean(name, [PREFIX + one for one in QUANTITIES]),
        )
    if goal not in GOALS:
        raise ConfigError(
            f"`{word}`: `{name}` needs `goal: maximize` or `goal: minimize`, found"
            f" `{goal or 'none'}` (without one, W&B minimizes)"
        )
    return Objective(quantity, GOALS[goal])
