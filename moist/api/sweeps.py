"""Search a sweep's space in a study. Imports torch only when called."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from moist.disk import store_url, writing
from moist.errors import StageError
from moist.reporting.terminal import TerminalProgress
from moist.results import queries
from moist.results.objectives import DEFAULT, Objective, parse_limits
from moist.results.trials import Trial
from moist.study.query import Study, ref_of, words_of
from moist.study.ref import StudyRef
from moist.study.settings import SearchResult, Settings
from moist.study.spec import StudySpec, study_spec
from moist.sweepfile import Sweep, read_sweep

if TYPE_CHECKING:
    from moist.study.search import SearchPlan
    from moist.study.workers import Engine, Slot


class Where(TypedDict, total=False):
    """Where a search runs and what it shows, by the command's options of these names."""

    home: str | Path | None
    storage: str | None
    store: str | None
    devices: str | None
    threads: int | None
    quiet: bool
    wandb: str


def sweep(
    file: str | Path,
    *overrides: str,
    trials: int | None = None,
    workers: int = 1,
    study: str | None = None,
    max: Mapping[str, float] | None = None,
    **where: Unpack[Where],
) -> Study:
    """Search a sweep file's space with Optuna on this machine, as `moist sweep optuna` does.

    A study of that name that was interrupted is continued. The call works in a script without
    `if __name__ == "__main__"`, in a notebook and in a thread.

    Args:
        file: a sweep file, or the name of one that comes with moist, as `quickstart`.
        overrides: `KEY=VALUE` and `@FILE` words that fix keys.
        trials: complete trials at which the study ends; default: the file's.
        workers: trials in parallel.
        study: name of the study; default: the file's.
        max: limits on new trials, as `{"mflops": 0.1}`.
        where: home, storage, store, devices, threads, quiet, wandb, as the command's options.

    Raises ConfigError for a mistake in the file or a study of another search, StageError if no
    trial gave a result, StoreError for a database or folder that can't be used.
    """
    read = read_sweep(Path(file), overrides)
    home, limits = where.get("home"), parse_limits(words_of(max))
    ref = ref_of(study or read.name, home, where.get("storage"))
    ref = replace(ref, store=store_url(where.get("store")))
    prepare_workers(ref)
    from moist.study.search import requested_trials
    from moist.study.workers import make_slots

    options = {"--trials": trials, "--study": study, "--workers": workers if workers > 1 else None}
    words = ["moist", "sweep", "optuna", str(file), *overrides]
    words += [str(word) for pair in options.items() if pair[1] is not None for word in pair]
    words += [word for text in words_of(max) for word in ("--max", text)]
    search = Search(
        ref,
        read,
        read.objectives or DEFAULT,
        Settings(requested_trials(read, trials), limits=limits),
        make_slots(where.get("devices"), workers, where.get("threads")),
        command=ref.locate(shlex.join(words)),
        quiet=where.get("quiet", False),
    )
    search.run(where.get("wandb", "auto"))
    return Study(ref)


def prepare_workers(ref: StudyRef) -> None:
    """Let the server of worker processes import what they need, while this process does, too.

    Only `search` knows the client of a shared store, which is to be imported as well.
    """
    from moist.study.workers import start_server

    if ref.store is None:
        start_server()


@dataclass(frozen=True)
class Search:
    """A search of a sweep's space, which a command or a program requests by `command`."""

    ref: StudyRef
    sweep: Sweep
    objectives: Sequence[Objective]
    settings: Settings
    slots: Sequence[Slot]
    command: str
    seed: int = 0
    quiet: bool = False
    engine: Engine | None = None
    """How trials are run; default: in processes of this machine."""

    def plan(self) -> SearchPlan:
        """Return what the search would compute. Raises as `check_start` does."""
        from moist.study.search import plan_search

        spec = self._checked(TerminalProgress(self.quiet), fetch=False)
        return plan_search(self.ref, self.sweep, spec, self.settings, slots=self.slots)

    def run(
        self,
        wandb: str,
        page: Path | None = None,
        show: Callable[[SearchResult, list[Trial], Path], object] = lambda *_: None,
    ) -> SearchResult:
        """Run trials until enough are complete, log them, and plot the frontier.

        `page` is where to plot it; default: HOME/plots/STUDY.html. `show` is called with the
        result, the frontier and that path, before the last upload is waited for. Raises
        StageError if trials failed and none gave a result.
        """
        from moist.reporting.plots import check_plot_path, plot_study
        from moist.reporting.progress import SearchProgress
        from moist.reporting.wandb_summary import log_summary
        from moist.study.events import Observer
        from moist.study.search import search
        from moist.study.tracking import WandbObserver
        from moist.study.workers import Pool
        from moist.tracking.tracker import open_tracker

        check_plot_path(page)
        progress, ref = TerminalProgress(self.quiet), self.ref
        spec = self._checked(progress, fetch=True)
        page = page or ref.home / "plots" / f"{ref.name}.html"
        with open_tracker(wandb, ref.home, progress.noted, progress.warned) as tracker:
            with SearchProgress(self.quiet) as shown:
                observers: list[Observer] = [shown]
                observers += [] if tracker.off else [WandbObserver(tracker)]
                result = search(
                    ref, self.sweep, spec, self.settings, slots=self.slots, observers=observers,
                    engine=self.engine or Pool,
                )  # fmt: skip
            front = queries.members(result.trials, self.objectives)
            show(result, front, page)
            if front:  # last: a plot that can't be written costs no result
                with writing(page.parent):
                    page.parent.mkdir(parents=True, exist_ok=True)
                plot_study(page, ref)
                if result.stats.outcomes and not tracker.off:
                    log_summary(tracker, ref, page)
        if result.stats.all_failed:
            raise StageError(
                f"no trial of this start gave a result: {result.stats.outcomes['failed']} failed",
                f"`{ref.command('sweep status')}` says why; `{ref.command('sweep retry')}`"
                " requeues them",
            )
        return result

    def _checked(self, progress: TerminalProgress, fetch: bool) -> StudySpec:
        """Check the search before anything is trained, and report what is worth knowing."""
        from moist.study.search import check_start
        from moist.study.workers import machine_of

        machine = machine_of(self.slots, self.settings.needed(self.objectives))
        spec = study_spec(self.sweep, self.objectives, self.seed, self.command, machine=machine)
        spec, source, conflicts = check_start(self.ref, self.sweep, spec, self.settings, fetch)
        if source.summary:
            progress.noted(source.summary)
        if conflicts:
            progress.warned(conflicts)
        return spec
