"""Compare the paper's Table I and claims with the runs of its recipe.

    uv run python -m analysis.paper      measure the time that the paper calls latency

The paper divides fvcore's count of one image by the batch size, does not count the router, and
divides the time of tracing the model by the batch size, too. `analysis.tables` writes its figures
beside those of the runs, by its conventions and by moist's.
"""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from analysis.experiments import PLAN, RESULTS, Experiment, read
from analysis.rows import Row, Rows, mean, settings
from moist.disk import write_atomically
from moist.env import Silent, make_env
from moist.results.aggregate import spread
from moist.store.runs import commit

TRACES = RESULTS / "paper_traces.csv"
BATCH = 64
"""The paper's batch size, by which it divides."""
ROUNDS = 5


class Line(NamedTuple):
    """A line of Table I: the paper's figures, and where its runs are.

    Accuracy in per cent, latency in ms, MFLOPs an image. `prefix` is that of a baseline's figures
    in a run's row; `traced` is the model whose trace is timed.
    """

    name: str
    accuracy: float
    loss: float
    ms: float
    mflops: float
    experiment: str
    setting: str
    prefix: str = ""
    traced: str = ""


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

HOLDS, IN_KIND, FAILS = "holds", "holds in kind", "does not hold"


class Runs:
    """The runs of the paper's experiments, by experiment and setting."""

    def __init__(self, plan: Sequence[Experiment]) -> None:
        self.groups = {one.name: settings(one.done()) for one in plan if one.name[:6] == "paper_"}

    def of(self, experiment: str, setting: str = "") -> Rows:
        """Return the runs of a setting, by seed; none if there are none yet."""
        return [*self.groups.get(experiment, {}).get(setting, {}).values()]

    def each(self, experiment: str) -> Mapping[str, Rows]:
        """Return the runs of each setting of an experiment by the values of the setting."""
        groups = self.groups.get(experiment, {})
        return {name.partition("=")[2]: [*runs.values()] for name, runs in groups.items()}


def points(rows: Rows, minus: str = "") -> list[float]:
    """Return accuracies in per cent, less those of a baseline if one is given."""
    return [
        100
        * (float(row["accuracy"]) - (float(row[f"baselines.{minus}.accuracy"]) if minus else 0))
        for row in rows
    ]


def ratio(rows: Rows, name: str) -> list[float]:
    """Return how many times the teacher's figure is that of the model."""
    return [float(row[f"baselines.teacher.{name}"]) / float(row[name]) for row in rows]


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


def widths(runs: Runs) -> tuple[str, str] | None:
    """Say how far a mixture of width 1024 is above its teacher, and what it costs."""
    rows = runs.each("paper_width").get("1024", [])
    if not rows:
        return None
    [gain], [times] = points(rows, "teacher"), ratio(rows, "mflops")
    verdict = judged([gain], 1.4) if times >= 58 else IN_KIND if gain > 0 and times > 1 else FAILS
    return f"{gain:+.2f} points, {times:.1f} times fewer; n = 1", verdict


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
        lambda runs: compared(
            runs.of("paper_table", "router=cnn"),
            lambda rows: ratio(rows, "mflops"), 87.0, "times", 1.0,
        ),
    ),
    Claim(
        "its latency is 10 times lower than the teacher's",
        lambda runs: compared(
            runs.of("paper_table", "router=cnn"),
            lambda rows: ratio(rows, "latency_ms.batch_1"), 10.0, "times at batch 1", 1.0,
        ),
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
    if not any(runs.groups.values()) and not TRACES.exists():
        return ""
    parts = ["## The paper's Table I", "", TABLE_TEXT, "", *table_one(runs), ""]
    parts += ["## The paper's claims", "", CLAIMS_TEXT, "", *claims(runs), ""]
    if rows := runs.of("paper_table", "router=cnn"):
        parts += ["## The paper's Figure 2", "", FIGURE_TEXT, "", *specializations(rows[0]), ""]
    return "\n".join(parts)


TABLE_TEXT = """By the paper; by its conventions (fvcore's trace of our untrained models: its time
and its count of one image, both divided by the batch size; the trace drops the router); and as
moist measures trained ones: per image, router included, ms at batch 1, ± over seeds of one
teacher."""
CLAIMS_TEXT = """A claim holds if the runs' mean is within two standard errors of it or above, and
in kind if what it says is true of a smaller number."""
FIGURE_TEXT = """Test images of each class by the student that they are sent to, seed 0."""


def table_one(runs: Runs) -> Iterator[str]:
    """Yield the lines of Table I."""
    traces = {row["line"]: row for row in read(TRACES)}
    heads = [
        "model", "paper: test %", "loss", "ms", "MFLOPs",
        "its conventions: ms", "MFLOPs", "moist: n", "test %", "loss", "ms", "MFLOPs",
    ]  # fmt: skip
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for line in LINES:
        rows, p = runs.of(line.experiment, line.setting), line.prefix
        _, accuracy, loss, ms, mflops, *_ = line
        paper = [f"{accuracy:.2f}", f"{loss:.4f}", f"{ms:.3f}", f"{mflops:.2f}"]
        traced = [""] * 2
        if found := traces.get(line.name):
            traced = [f"{float(found['ms']):.3f}", f"{float(found['mflops']):.2f}"]
        measured = ["0", *[""] * 4]
        if rows:
            measured = [
                f"{len(rows)}",
                mean(f"{p}accuracy", 100)(rows),
                mean(f"{p}loss", digits=4)(rows),
                mean(f"{p}latency_ms.batch_1", digits=3)(rows),
                mean(f"{p}mflops")(rows),
            ]
        yield f"| {' | '.join([line.name, *paper, *traced, *measured])} |"


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


def trace(which: str) -> tuple[float, float]:
    """Trace one model of Table I as the paper's code does: its time in ms, and its MFLOPs.

    Both are divided by the batch size. A first trace takes longest: call it in a new process.
    """
    import torch
    from fvcore.nn import FlopCountAnalysis

    from moist.config.overrides import parse
    from moist.nets.build import module, timed_models
    from moist.systems import architecture

    router = which if which not in {"teacher", "student"} else "cnn"
    config = parse(("@sweeps/paper.yaml", "k=4", f"router={router}"))
    models = timed_models(architecture(config), (3, 32, 32), 10, 4)
    net = module(models[which if which in models else "model"], torch.device("cpu")).eval()
    image, label = torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.int64)
    given = (image, label) if which == "oracle" else (image,)
    begin = time.perf_counter()
    analysis = FlopCountAnalysis(net, given)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    count = analysis.total()
    return 1e3 * (time.perf_counter() - begin) / BATCH, 1e-6 * count / BATCH


def main() -> None:
    """Trace each model of Table I in processes of its own, and write the medians."""
    spawn = multiprocessing.get_context("spawn")
    found: dict[str, list[tuple[float, float]]] = {line.name: [] for line in LINES}
    for _ in range(ROUNDS):
        for line in LINES:
            with ProcessPoolExecutor(1, spawn) as pool:
                found[line.name].append(pool.submit(trace, line.traced).result())
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["line", "ms", "mflops", "n", "commit", "machine"])
    machine = str(make_env(Silent()).machine())
    for name, traces in found.items():
        ms, mflops = (statistics.median(values) for values in zip(*traces, strict=True))
        writer.writerow([name, ms, mflops, len(traces), commit(), machine])
    write_atomically(TRACES, text.getvalue().encode())


if __name__ == "__main__":
    main()
