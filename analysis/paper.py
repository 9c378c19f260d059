"""Compare the paper's Table I and claims with the runs of its recipe.

    uv run python -m analysis.paper      measure what its models cost, which needs no training

The paper divides fvcore's count of one image by the batch size, does not count the router, and
calls latency the time of that trace, divided, too. `analysis.tables` writes its figures beside
what its conventions give here, and what moist measures.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from analysis.experiments import PLAN, RESULTS, Experiment, read, write
from analysis.rows import Row, Rows, mean, settings
from moist.config.overrides import parse
from moist.env import Silent, make_env
from moist.measure.latency import time_interleaved
from moist.measure.multiply_adds import cost
from moist.nets.build import module, timed_models
from moist.nets.mixture import MoIST
from moist.nets.routers import ROUTERS
from moist.results.aggregate import spread
from moist.store.runs import commit
from moist.systems import architecture

COSTS = RESULTS / "paper_costs.csv"
BATCH = 64
"""The paper's batch size, by which it divides."""
ROUNDS, SECONDS = 5, 30
SHAPE, CLASSES = (3, 32, 32), 10


class Line(NamedTuple):
    """A line of Table I: the paper's figures, and where its runs are.

    Accuracy in per cent, latency in ms, MFLOPs an image. `prefix` is that of a baseline's figures
    in a run's row; `model` names its costs.
    """

    name: str
    accuracy: float
    loss: float
    ms: float
    mflops: float
    experiment: str
    setting: str
    prefix: str = ""
    model: str = ""


LINES = (
    Line("ResNet-18 teacher", 83.80, 0.4910, 6.511, 8.70,
         "paper_table", "router=cnn", "baselines.teacher.", "teacher"),
    Line("distilled student", 79.35, 0.6332, 6.591, 0.10,
         "paper_table", "router=cnn", "baselines.student.", "student"),
    Line("conceptual 100 % router (an upper bound)", 89.49, 0.3052, 0.534, 0.10,
         "paper_oracle", "", "", "oracle"),
    Line("MoIST, CNN router", 84.08, 0.5098, 0.635, 0.10, "paper_table", "router=cnn", "", "cnn"),
    Line("MoIST, transformer router", 84.01, 0.5002, 1.188, 0.10,
         "paper_table", "router=transformer", "", "transformer"),
    Line("MoIST, linear router", 83.52, 0.5071, 0.945, 0.10,
         "paper_table", "router=linear", "", "linear"),
)  # fmt: skip

TRACED = (("trace_ms", 3), ("trace_mflops", 2))
MEASURED = (("ms", 3), ("mflops", 2))
"""Columns of costs, and their decimals."""
HOLDS, IN_KIND, FAILS = "holds", "holds in kind", "does not hold"


class Runs:
    """The runs of the paper's experiments by experiment and setting, and its models' costs."""

    def __init__(self, plan: Sequence[Experiment], costs: Path = COSTS) -> None:
        self.groups = {one.name: settings(one.done()) for one in plan if one.name[:6] == "paper_"}
        self.costs = {row["model"]: row for row in read(costs)}

    def of(self, experiment: str, setting: str = "") -> Rows:
        """Return the runs of a setting, by seed; none if there are none yet."""
        return [*self.groups.get(experiment, {}).get(setting, {}).values()]

    def each(self, experiment: str) -> Mapping[str, Rows]:
        """Return the runs of each setting of an experiment by the values of the setting."""
        groups = self.groups.get(experiment, {})
        return {name.partition("=")[2]: [*runs.values()] for name, runs in groups.items()}

    def times_fewer(self, name: str, model: str = "cnn") -> float | None:
        """Return how many times the teacher's cost is that of a model; None if not measured."""
        if not self.costs:
            return None
        return float(self.costs["teacher"][name]) / float(self.costs[model][name])


def points(rows: Rows, minus: str = "") -> list[float]:
    """Return accuracies in per cent, less those of a baseline if one is given."""
    return [
        100
        * (float(row["accuracy"]) - (float(row[f"baselines.{minus}.accuracy"]) if minus else 0))
        for row in rows
    ]


def judged(found: Sequence[float], claimed: float, nothing: float = 0.0) -> str:
    """Judge a claim by the values of runs, of which larger are better.

    It holds if their mean is within two standard errors of what is claimed, or above, and in kind
    if it is at least as far above `nothing`.
    """
    each = spread(found)
    error = 2 * each.sd / each.n**0.5
    if each.mean + error >= claimed:
        return HOLDS
    return IN_KIND if each.mean - error > nothing else FAILS


class Claim(NamedTuple):
    """What the paper says, and what the runs say: a text and a verdict, or None before them."""

    text: str
    found: Callable[[Runs], tuple[str, str] | None]


def compared(
    rows: Rows, values: Callable[[Rows], list[float]], claimed: float, unit: str, nothing: float
) -> tuple[str, str] | None:
    """Compare a number of each run with what is claimed; None without runs."""
    if not rows:
        return None
    each = spread(found := values(rows))
    error = f" ± {each.sd / each.n**0.5:.2f} (SE)" if each.n > 1 else ""
    return f"{each.mean:.2f}{error} {unit}, n = {each.n}", judged(found, claimed, nothing)


def numbers_of_students(runs: Runs) -> tuple[str, str] | None:
    """Say which number of students is the most accurate."""
    found = {k: points(rows)[0] for k, rows in runs.each("paper_k").items() if k != "auto"}
    if len(found) < 5:
        return None
    best = max(found, key=found.__getitem__)
    near = found[best] - found["3"] < 0.4  # the standard error of 84 % of 10,000 images
    text = ", ".join(f"k={k} {percent:.2f}" for k, percent in found.items())
    return f"{text} %; n = 1", HOLDS if best == "3" else IN_KIND if near else FAILS


def times(runs: Runs, name: str, claimed: float) -> tuple[str, str] | None:
    """Compare how many times lower a mixture's cost is than its teacher's with what is claimed."""
    found = runs.times_fewer(name)
    return found and (f"{found:.1f} times", judged([found], claimed, 1.0))


def widths(runs: Runs) -> tuple[str, str] | None:
    """Say how far a mixture of width 1024 is above its teacher, and what it costs."""
    fewer = runs.times_fewer("mflops", "wide")
    if fewer is None:
        return None
    text, verdict = f"{fewer:.1f} times fewer", judged([fewer], 58.0, 1.0)
    if not (rows := runs.each("paper_width").get("1024", [])):
        return f"{text}; no runs yet", ""
    [gain] = points(rows, "teacher")
    both = {judged([gain], 1.4), verdict}
    worst = next(one for one in (FAILS, IN_KIND, HOLDS) if one in both)
    return f"{gain:+.2f} points, n = 1; {text}", worst


def routers(runs: Runs) -> tuple[str, str] | None:
    """Say which router is the most accurate, and how far the others are."""
    found = {name: spread(points(rows)).mean for name, rows in runs.each("paper_table").items()}
    if len(found) < 3:
        return None
    far = max(found.values()) - min(found.values())
    text = ", ".join(f"{name} {percent:.2f}" for name, percent in found.items())
    first = max(found, key=found.__getitem__) == "cnn"
    return f"{text} %", (HOLDS if first else IN_KIND) if far < 1 else FAILS


def router_sizes(runs: Runs) -> tuple[str, str] | None:
    """Say how the accuracies of linear routers go with their parameters (Spearman's rank)."""
    from scipy.stats import spearmanr

    rows = [row for [row] in runs.each("paper_router").values()]
    if len(rows) < 8:
        return None
    found = spearmanr([float(row["params"]) for row in rows], points(rows))
    text = f"rank correlation {found.statistic:+.2f}, p = {found.pvalue:.2f}, 8 sizes, n = 1"
    return text, HOLDS if found.pvalue > 0.05 else FAILS


CLAIMS = (
    Claim(
        "specializing makes students more accurate: 84.08 %, 4.73 points above the student",
        lambda runs: compared(
            runs.of("paper_table", "router=cnn"),
            lambda rows: points(rows, "student"), 4.73, "points", 0.0,
        ),
    ),
    Claim(
        "MoIST is as accurate as its teacher: 0.28 points above it",
        lambda runs: compared(
            runs.of("paper_table", "router=cnn"),
            lambda rows: points(rows, "teacher"), 0.28, "points", -1.0,
        ),
    ),
    Claim(
        "it has 87 times fewer FLOPs than the teacher",
        lambda runs: times(runs, "mflops", 87.0),
    ),
    Claim(
        "its latency is 10 times lower than the teacher's",
        lambda runs: times(runs, "ms", 10.0),
    ),
    Claim(
        "with a router that is always right it reaches 89.49 %",
        lambda runs: compared(runs.of("paper_oracle"), points, 89.49, "%", 84.08),
    ),
    Claim("three students are the best of 2 to 6", numbers_of_students),
    Claim(
        "at a width of 1024 it is 1.4 points above the teacher, at 58 times fewer FLOPs", widths
    ),
    Claim("CNN, transformer and linear routers are alike, the CNN is the best", routers),
    Claim("the size of a linear router does not matter", router_sizes),
)  # fmt: skip


def section(plan: Sequence[Experiment] = PLAN) -> str:
    """Return Table I and the claims as Markdown; empty before anything is measured."""
    runs = Runs(plan)
    if not any(runs.groups.values()) and not COSTS.exists():
        return ""
    parts = ["## The paper's Table I", "", TABLE_TEXT, "", *table_one(runs), ""]
    parts += ["## The paper's claims", "", CLAIMS_TEXT, "", *claims(runs), ""]
    if rows := runs.of("paper_table", "router=cnn"):
        parts += ["## The paper's Figure 2", "", FIGURE_TEXT, "", *specializations(rows[0]), ""]
    return "\n".join(parts)


TABLE_TEXT = """By the paper; by its conventions (fvcore's trace of our models: its time and its
count of one image, both divided by the batch size; the trace drops the router); and by moist: n
seeds of one teacher, ms at batch 1 and MFLOPs of an image, router included. Costs are those of
untrained networks."""
CLAIMS_TEXT = """A claim holds if the runs' mean is within two standard errors of it or above, and
in kind if what it says is true of a smaller number."""
FIGURE_TEXT = """Test images of each class by the student that they are sent to, seed 0."""


def table_one(runs: Runs) -> Iterator[str]:
    """Yield the lines of Table I."""
    heads = [
        "model", "paper: test %", "loss", "ms", "MFLOPs", "its conventions: ms", "MFLOPs",
        "moist: test %", "loss", "n", "ms", "MFLOPs",
    ]  # fmt: skip
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for line in LINES:
        rows, cost = runs.of(line.experiment, line.setting), runs.costs.get(line.model, {})
        cells = [
            line.name,
            f"{line.accuracy:.2f}",
            f"{line.loss:.4f}",
            f"{line.ms:.3f}",
            f"{line.mflops:.2f}",
            *(f"{float(cost[name]):.{n}f}" if cost else "" for name, n in TRACED),
            mean(f"{line.prefix}accuracy", 100)(rows) if rows else "",
            mean(f"{line.prefix}loss", digits=4)(rows) if rows else "",
            f"{len(rows)}",
            *(f"{float(cost[name]):.{n}f}" if cost else "" for name, n in MEASURED),
        ]
        yield f"| {' | '.join(cells)} |"


def claims(runs: Runs) -> Iterator[str]:
    """Yield the lines of the table of claims."""
    yield "| the paper | the runs | |"
    yield "|---|---|---|"
    for claim in CLAIMS:
        text, verdict = claim.found(runs) or ("no runs yet", "")
        yield f"| {claim.text} | {text} | {verdict} |"


def specializations(row: Row) -> Iterator[str]:
    """Yield the lines of a table: the test images of each class by student."""
    sent: dict[str, list[int]] = json.loads(row["sent"])
    students = len(next(iter(sent.values())))
    yield f"| class | {' | '.join(f'student {e}' for e in range(students))} |"
    yield "|---" * (students + 1) + "|"
    for name, counts in sent.items():
        yield f"| {name} | {' | '.join(map(str, counts))} |"


def network(model: str) -> nn.Module:
    """Build an untrained network: the teacher, the student, or a mixture by its router.

    `wide` is the mixture of three students of width 1024.
    """
    router = model if model in ROUTERS else "cnn"
    size = ("k=3", "hidden_width=1024") if model == "wide" else ("k=4",)
    config = parse(("@sweeps/paper.yaml", f"router={router}", *size))
    assert isinstance(config.k, int)
    models = timed_models(architecture(config), SHAPE, CLASSES, config.k)
    return module(models.get(model, models["model"]), torch.device("cpu")).eval()


def given(net: nn.Module) -> tuple[torch.Tensor, ...]:
    """Return what a network takes: an image, and for a mixture its label, for an oracle."""
    image, label = torch.zeros(1, *SHAPE), torch.zeros(1, dtype=torch.int64)
    return (image, label) if isinstance(net, MoIST) else (image,)


def trace(model: str) -> tuple[float, float]:
    """Trace a model as the paper's code does: milliseconds and MFLOPs, both divided by 64.

    A first trace takes longest: call it in a new process.
    """
    net = network(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore is built on torch.jit, which is deprecated
        from fvcore.nn import FlopCountAnalysis

        begin = time.perf_counter()
        analysis = FlopCountAnalysis(net, given(net))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        count = analysis.total()
        seconds = time.perf_counter() - begin
    return 1e3 * seconds / BATCH, 1e-6 * count / BATCH


def main() -> None:
    """Measure the costs of the paper's models by its conventions and by moist's."""
    models = [*(line.model for line in LINES), "wide"]
    spawn = multiprocessing.get_context("spawn")
    traces: dict[str, list[tuple[float, float]]] = {model: [] for model in models}
    for _ in range(ROUNDS):
        for model in models:
            with ProcessPoolExecutor(1, spawn) as pool:
                traces[model].append(pool.submit(trace, model).result())
    env, nets = make_env(Silent()), {model: network(model) for model in models}
    calls = {model: partial(net, *given(net)) for model, net in nets.items()}
    with torch.inference_mode():
        timings = time_interleaved(calls, lambda: None, repeats=100, seconds=SECONDS)
    rows = []
    for model, net in nets.items():
        trace_ms, trace_mflops = map(statistics.median, zip(*traces[model], strict=True))
        timing = timings[model]
        rows.append({
            "model": model, "trace_ms": trace_ms, "trace_mflops": trace_mflops, "traces": ROUNDS,
            "ms": timing.median, "mflops": cost(net, SHAPE).mflops, "n": timing.n,
            "commit": commit(), "machine": str(env.machine()),
        })  # fmt: skip
    write(COSTS, rows)


if __name__ == "__main__":
    main()
