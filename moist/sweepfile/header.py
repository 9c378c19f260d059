"""A sweep file apart from its parameters: what W&B allows there, and what moist needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from moist.config.files import included
from moist.errors import ConfigError, did_you_mean, unknown
from moist.results.objectives import DEFAULT, PREFIX, QUANTITIES, Direction, Objective
from moist.sweepfile.errors import noted, raised_together

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


def present(content: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the settings that are null: W&B's server and agents read them as absent.

    But `wandb sweep` fails at `controller: null`, which is kept to be rejected.
    """
    return {
        word: value
        for word, value in content.items()
        if getattr(value, "seen", value) is not None or word == "controller"
    }


def check_header(content: Mapping[str, Any]) -> None:
    """Raise ConfigError, one line per mistake, for a file that W&B or moist can't run."""
    with raised_together() as mistakes:
        mistakes += [
            f"unknown key `{word}`; {did_you_mean(word, WORDS)}"
            for word in content
            if word not in WORDS
        ]
        mistakes += [*_run_mistakes(content), *_search_mistakes(content)]
        for word in ("metric", "metrics"):
            if word in content:
                with noted(mistakes):
                    read_objectives(content, word)


def _run_mistakes(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with how an agent starts a run, and with how many it may start.

    Only W&B needs `program` and `command`; what is left out there is no mistake here.
    """
    if content.get("program", "moist") != "moist":
        yield f"`program`: expected `moist`, found `{content['program']}`"
    command = content.get("command", ["run", ARGUMENTS])
    if not isinstance(command, list) or not {"run", ARGUMENTS} <= set(map(str, command)):
        yield (
            f"`command`: expected a list that ends in `{ARGUMENTS}`, found `{command}`;"
            f' write ["${{env}}", moist, run, "{ARGUMENTS}"]'
        )
    elif late := included({"command": ["run", *command[command.index(ARGUMENTS) + 1 :]]}):
        yield (
            f"`command`: `{late[0]}` would win over the parameters; write it before `{ARGUMENTS}`"
        )
    if not isinstance(content.get("controller", {}), dict):
        yield f"`controller`: expected {{type: cloud}}, found `{content['controller']}`"
    cap = getattr(content.get("run_cap", None), "seen", None)
    if "run_cap" in content and not (type(cap) is int and cap > 0):
        yield f"`run_cap`: expected a whole number above 0, found `{content['run_cap']}`"
    if not isinstance(content.get("parameters"), dict) or not content["parameters"]:
        yield "`parameters`: expected `KEY: {value: VALUE}` lines, found none"


def _search_mistakes(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with method, metrics, scheduler and early termination together."""
    method, scheduler = content.get("method"), content.get("scheduler")
    if method not in METHODS:
        yield f"`method`: expected {' | '.join(METHODS)}, found `{method or 'none'}`"
    if method == "bayes" and "metric" not in content:
        yield f"`method: bayes` needs a `metric`; write {{name: {PREFIX}accuracy, goal: maximize}}"
    if method == "custom" and scheduler is None:
        yield "`method: custom` needs a `scheduler`, or W&B starts no run; write {engine: optuna}"
    if "metrics" in content and method != "custom":
        yield f"`metrics` need `method: custom`, found `{method}`; write one `metric`, or custom"
    if "metrics" in content and "metric" in content:
        yield "`metric` and `metrics` are both given; write one of them"
    stop = content.get("early_terminate", {})
    if "early_terminate" in content and not (
        isinstance(stop, dict)
        and stop.get("type") == "hyperband"
        and ("min_iter" in stop or {"max_iter", "s"} <= stop.keys())
    ):
        yield (
            "`early_terminate`: expected `type: hyperband` with `min_iter`, or with `max_iter`"
            f" and `s`, found `{stop}`"
        )
    if "scheduler" in content and "early_terminate" in content:
        yield "`early_terminate` does not go with a `scheduler`, which W&B rejects; leave one out"
    engine = scheduler.get("engine") if isinstance(scheduler, dict) else None
    if scheduler is not None and engine not in ENGINES:
        yield f"`scheduler`: expected {{engine: {' | '.join(ENGINES)}}}, found `{scheduler}`"
    elif method in METHODS and engine and method not in ENGINES[engine]:
        yield (
            f"`scheduler`: `engine: {engine}` does not go with `method: {method}`;"
            f" write {' or '.join(f'`method: {one}`' for one in ENGINES[engine])}"
        )


def wandb_only(content: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings of a correct file that only W&B's own search uses, each with the option
    that replaces it in a study.

    A `metric` that a study optimizes anyway is not among them.
    """
    found = {}
    if "metric" in content and read_objectives(content, "metric")[0] not in DEFAULT:
        found["metric"] = "--objective"
    if "early_terminate" in content:
        found["early_terminate"] = "--prune"
    if "scheduler" in content and content["scheduler"]["engine"] == "ax":
        found["engine: ax"] = "--sampler"
    return found


def read_objectives(
    content: Mapping[str, Any], word: Literal["metric", "metrics"]
) -> tuple[Objective, ...]:
    """Return the objectives of `metric` or `metrics`. Raises ConfigError, one line per mistake."""
    entries = content[word] if word == "metrics" else [content[word]]
    if word == "metrics" and (not isinstance(entries, list) or len(entries) < 2):
        raise ConfigError(
            f"`metrics`: expected a list of two or more {{name, goal}}, found `{entries}`;"
            " one objective is a `metric`"
        )
    found: list[Objective] = []
    with raised_together() as mistakes:
        for entry in entries:
            with noted(mistakes):
                found.append(_objective(word, entry))
        if len({one.name for one in found}) < len(found):
            mistakes.append("`metrics`: an objective is given twice")
    return tuple(found)


def _objective(word: str, entry: Any) -> Objective:
    fields = entry if isinstance(entry, dict) else {}
    name, goal = str(fields.get("name", entry)), fields.get("goal")
    if other := [one for one in fields if one not in METRIC]:
        raise unknown("key", f"{word}.{other[0]}", [f"{word}.{one}" for one in METRIC])
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
