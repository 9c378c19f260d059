"""Trials to draw: members of a frontier, others, one beyond a limit, and two without results."""

from moist.results.objectives import Objective
from moist.results.trials import Trial

COST, ACCURACY = Objective("mflops", "min"), Objective("accuracy", "max")
COMMAND = "moist sweep optuna sweeps/tiny.yaml --trials 5"


def complete(number, mflops, accuracy, *, excess=0.0, reported=None, params=None, **quantities):
    found = {"mflops": mflops, "accuracy": accuracy, **quantities}
    return Trial(
        number=number,
        state="complete",
        params=params or {"k": 2 + number, "router": "cnn" if number % 2 else "linear"},
        values={"mflops": mflops, "accuracy": accuracy},
        quantities=found,
        reported={} if reported is None else {"accuracy": reported},
        constraints={"latency_ms <= 2": excess},
        key=f"{number:064x}"[::-1],
    )


def front(trials, x, y):
    """Return the feasible trials that no feasible trial dominates, by definition."""

    def losses(trial):
        return x.loss(trial.quantities[x.name]), y.loss(trial.quantities[y.name])

    def beats(one, other):
        return all(a <= b for a, b in zip(one, other, strict=True)) and one != other

    kept = [trial for trial in trials if trial.feasible]
    return [one for one in kept if not any(beats(losses(o), losses(one)) for o in kept)]


TRIALS = [
    complete(0, 4.0, 0.96, reported=0.9512, latency_ms=1.25),
    complete(1, 1.0, 0.90, reported=0.8888, latency_ms=0.5),
    complete(2, 2.0, 0.94, latency_ms=0.75),
    complete(3, 3.0, 0.92),
    complete(4, 5.0, 0.99, excess=0.5),
    Trial(number=5, state="failed", params={"k": 9}, reason="a worker died"),
    Trial(number=6, state="pruned", params={"k": 8}, quantities={"mflops": 9.0, "accuracy": 0.1}),
]
MEMBERS = front(TRIALS, COST, ACCURACY)
