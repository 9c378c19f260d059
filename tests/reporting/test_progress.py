"""The progress of a run and of a search on stderr."""

import io
import re
import threading
from pathlib import Path

import pytest
from rich.console import Console
from tiny import STUDY

from moist.config import Config
from moist.reporting import terminal
from moist.reporting.progress import SearchProgress
from moist.reporting.terminal import TerminalProgress
from moist.results.objectives import DEFAULT
from moist.results.trials import Trial
from moist.study.events import (
    EpochDone,
    EventProgress,
    StageStarted,
    StudyOpened,
    TrialEnded,
    TrialStarted,
    Warned,
)
from moist.study.spec import study_spec
from moist.sweepfile import read_sweep


def test_a_warning_that_every_trial_repeats_is_printed_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with SearchProgress(quiet=True) as progress:
        for event in (Warned(0, "of the data"), Warned(1, "of the data"), Warned(1, "other"),
                      Warned(None, "a worker died"), Warned(None, "a worker died")):  # fmt: skip
            progress.observe(event)
    assert [line.removeprefix("warning: ") for line in capsys.readouterr().err.splitlines()] == [
        "trial 0: of the data", "trial 1: other", "a worker died", "a worker died",
    ]  # fmt: skip


def test_a_warning_of_each_estimate_of_the_driver_is_sent_once() -> None:
    sent: list[object] = []
    progress = EventProgress(sent.append)
    for text in ("not read: *.txt: 3", "not read: *.txt: 3", "other"):
        progress.warned(text)
    assert sent == [Warned(None, "not read: *.txt: 3"), Warned(None, "other")]


class Lines(io.StringIO):
    """A file, or a terminal, that can be waited for."""

    def __init__(self, tty: bool = False) -> None:
        super().__init__()
        self.tty, self.written = tty, threading.Event()

    def isatty(self) -> bool:
        return self.tty

    def write(self, text: str) -> int:
        count = super().write(text)
        if "\n" in text:
            self.written.set()
        return count


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Lines:
    """What is printed where stderr is a file and a minute passes at once."""
    monkeypatch.setattr(terminal, "EVERY", 0.001)
    lines = Lines()
    monkeypatch.setattr(terminal, "console", lambda stderr: Console(file=lines, width=999))
    return lines


def test_a_long_stage_prints_a_line_a_minute_with_loss_and_best_accuracy(written: Lines) -> None:
    progress = TerminalProgress()
    progress.started("train_teacher", "0" * 32)
    assert written.written.wait(30)  # also before its first epoch ends
    for done, accuracy in enumerate((0.87, 0.851), 1):
        metrics = {"loss": 0.4321, "lr": 0.1, "val_accuracy": accuracy}
        progress.advanced("train_teacher", done, 12, metrics)
    written.written.clear()
    assert written.written.wait(30) and written.written.wait(30)
    progress.close()
    text = written.getvalue()
    assert re.search("^train_teacher, .* s so far$", text, re.M)
    wanted = "train_teacher 2 of 12, loss 0.432, val 85.1 %, best 87.0 %, "
    assert re.search(f"^{wanted}.* s so far$", text, re.M)


@pytest.mark.parametrize("objectives", [DEFAULT, DEFAULT[::-1]])
def test_a_search_prints_a_line_a_minute_with_trials_best_and_epochs(
    written: Lines, tmp_path: Path, objectives
) -> None:
    (file := tmp_path / "s.yaml").write_text(STUDY)
    spec = study_spec(read_sweep(file, []), objectives, 0, "moist ...")

    def trial(number: int, accuracy: float, mflops: float) -> Trial:
        values = {"accuracy": accuracy, "mflops": mflops}
        return Trial(number=number, state="complete", params={"k": 2}, values=values)

    with SearchProgress() as progress:
        progress.observe(StudyOpened("toy", spec, 6, (trial(0, 0.9, 3.0),)))
        progress.observe(TrialEnded(trial(1, 0.8, 1.0), "trained"))
        progress.observe(TrialEnded(trial(2, 0.7, 2.0), "trained"))
        progress.observe(TrialStarted(3, {"k": 3}, Config(), command="", stop=print))
        progress.observe(StageStarted(3, "distill_student", "0" * 32))
        metrics = {"loss": 0.4321, "val_accuracy": 0.5}
        progress.observe(EpochDone(3, "distill_student", 2, total=12, metrics=metrics))
        written.written.clear()
        assert written.written.wait(30)
    best = {"accuracy": "accuracy 90.00 % (trial 0)", "mflops": "mflops 1 (trial 1)"}
    wanted = f"toy: 3 of 6 trials, best {best[objectives[0].name]}, "
    line = written.getvalue().splitlines()[-1]
    assert line.startswith(wanted) and " left" in line
    assert line.endswith("; trial 3 distill_student 2 of 12, loss 0.432, val 50.0 %, best 50.0 %")


def test_a_bar_with_loss_and_best_accuracy_fits_on_80_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = Lines(tty=True)
    out = Console(file=lines, width=80, force_terminal=True, legacy_windows=False)
    monkeypatch.setattr(terminal, "console", lambda stderr: out)
    progress = TerminalProgress()
    progress.started("train_specialists", "0" * 32)
    metrics = {"loss": 0.4321, "val_accuracy": 0.5}
    progress.advanced("train_specialists", 100, 200, metrics)
    progress.close()
    assert "loss 0.432, val 50.0 %, best 50.0 %" in lines.getvalue()
