"""The report of a study and of a run, read back from the page that was written."""

import base64
import hashlib
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser

import pytest
from drawn_trials import ACCURACY, COMMAND, COST, TRIALS, complete, front
from shell import Said

from moist.errors import ConfigError
from moist.reporting.frontier_plot import frontier_plot
from moist.reporting.plots import save_plot
from moist.reporting.report.page import StudyReport, study_page
from moist.reporting.report.search import importance_section, parameters_section
from moist.reporting.report.verdict import run_verdict, study_verdict
from moist.results import queries
from moist.results.objectives import Limit, Objective
from moist.results.trials import Trial
from moist.store.runs import RunRecords

OF_A_STUDY = [
    "verdict", "frontier", "hypervolume", "parameters", "importance-of-the-parameters",
    "failed,-pruned-and-rejected-trials",
]  # fmt: skip
OF_A_RUN = [
    "the-model-beside-its-baselines", "learning-curves", "classes-and-students",
    "routing-confusion", "class-confusion", "example-images", "stages", "machine",
]  # fmt: skip


class Page(HTMLParser):
    """All tags of a page with their attributes, its texts, and the data for its script."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.texts, self._open = [], [], []
        self.source = source
        self.feed(source)
        found = re.search(r'<script type="application/json" id="trials">(.*?)</script>', source)
        self.data = json.loads(found[1]) if found else None

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "input", "br"}:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"{tag} is closed where it is not open"

    def handle_data(self, data):
        if self._open and self._open[-1] not in {"script", "style"}:
            self.texts.append((self._open[-1], data))

    def text(self, *tags):
        return [text for tag, text in self.texts if not tags or tag in tags]

    @property
    def words(self):
        return "".join(self.text()).replace("\u00a0", " ")

    def of_class(self, name):
        return [found for _, found in self.tags if name in (found.get("class") or "").split()]

    @property
    def sections(self):
        return [found["id"] for tag, found in self.tags if tag == "section"]


def drawn(trials=TRIALS, x=COST, y=ACCURACY, errors=None, title="tiny", command=COMMAND, **more):
    plot = frontier_plot(trials, front(trials, x, y), x, y, errors)
    return Page(study_page(StudyReport(title, command, trials, plot, **more)))


@pytest.fixture(scope="module")
def home(trained):
    return trained()


@pytest.fixture
def written(home, capsys, tmp_path):
    """Write a report with the command, and read it."""

    def write(name, folder=home):
        said = Said(capsys, "report", name, "--home", folder, "-o", tmp_path / "r.html")
        assert said.code == 0 and "report: " in said.err and not said.out, said.err
        return Page((tmp_path / "r.html").read_text())

    return write


# the frontier


def test_every_complete_trial_is_a_mark_in_both_widths_and_infeasible_ones_differ():
    page = drawn()
    numbers = [found["data-trial"] for found in page.of_class("mark")]
    assert sorted(numbers) == sorted(2 * [str(n) for n in range(5)])
    assert len(page.of_class("member")) == 2 * 3 + 1 + 2 * 3  # marks, legend, parallel lines
    assert len(page.of_class("beyond")) == 2 * 2 + 2
    assert drawn(TRIALS[:4]).of_class("beyond") == []


def test_a_mark_has_all_parameters_results_with_units_and_the_command():
    trial = complete(0, 4.0, 0.96, reported=0.9512, latency_ms=1.25)
    page = drawn([trial.model_copy(update={"command": "moist run k=2"}), *TRIALS[1:]])
    (found,) = [one for one in page.data["trials"] if one["number"] == 0]
    assert found["command"] == "moist run k=2"
    assert found["facts"] == [
        ["accuracy on validation, %", "96"],
        ["accuracy on test, %", "95.12"],
        ["MFLOPs per image", "4"],
        ["latency, ms", "1.25"],
        ["k", "2"],
        ["router", "linear"],
    ]


def test_the_budget_ranks_feasible_trials_and_names_the_query():
    budget = drawn(limited=lambda limit: f"moist best tiny --max {limit}").data["budget"]
    assert budget["ranked"] == [[0, 4.0], [2, 2.0], [3, 3.0], [1, 1.0]]
    assert (budget["low"], budget["high"], budget["log"]) == (1.0, 4.0, False)
    assert budget["command"] == "moist best tiny --max mflops=BUDGET"
    assert drawn(x=Objective("mflops", "max")).data["budget"] is None


def test_the_slider_chooses_as_best_does_where_latencies_are_within_their_spreads():
    latency = Objective("latency_ms", "min")
    trials = [
        complete(n, 1.0, accuracy, latency_ms=ms, latency_spread=spread)
        for n, (ms, spread, accuracy) in enumerate(
            [(1.0, 0.1, 0.8), (1.05, 0.2, 0.9), (2, 0, 0.95)]
        )
    ]
    budget = drawn(trials, x=latency).data["budget"]
    for most in (1.0, 1.04, 1.2, 1.99, 2.0):
        chosen = next(number for number, least in budget["ranked"] if least <= most)
        limit = Limit("latency_ms", "max", most)
        assert chosen == queries.best(trials, [limit], ACCURACY).number


@pytest.mark.parametrize("most, log", [(5.0, False), (5.1, True)])
def test_the_axis_is_logarithmic_if_costs_span_more_than_five_times(most, log):
    page = drawn([complete(0, 1.0, 0.9), complete(1, most, 0.95)])
    assert page.data["budget"]["log"] is log


def test_members_that_were_trained_again_have_error_bars():
    assert len(drawn(errors={2: (0.93, 0.005), 3: (0.5, 0.1)}).of_class("error")) == 2 + 1
    assert not drawn().of_class("error")


def test_the_members_are_listed_with_their_parameters_and_the_command_is_given():
    page = drawn()
    assert page.text("td") == [
        *("1", "90.00", "1", "0.5", "88.88", "k=3 router=cnn   run 10000000"),
        *("2", "94.00", "2", "0.75", "-", "k=4 router=linear   run 20000000"),
        *("0", "96.00", "4", "1.25", "95.12", "k=2 router=linear   run 00000000"),
        *("5", "failed", "a worker died", "k=9"),
        *("6", "rejected before training", "no reason is on record", "k=8"),
    ]
    assert page.text("title") == page.text("h1") == ["tiny"]
    assert COMMAND in page.words
    assert "Trials: 7; complete: 5; beyond a limit: 1; on the frontier: 3." in page.words


def test_without_a_feasible_trial_the_page_says_so():
    page = drawn(TRIALS[4:])
    assert "No trial is complete and within every limit (1 trial, 0 failed)." in page.words
    assert "no trial is within every limit" in page.words
    assert not [found for tag, found in page.tags if tag == "input"]


# the search


def test_the_hypervolume_names_the_trial_that_last_enlarged_it():
    assert "Trial 2 was the last to enlarge it" in drawn(TRIALS[:4]).words
    alone = drawn([complete(0, 1.0, 0.9)])
    assert "No trial dominates another" in alone.words


def test_parameters_that_vary_have_an_axis_with_their_values():
    settings = [
        {"k": 2, "rate": 1e-4, "router": "cnn", "seed": 0, "balance": True},
        {"k": 4, "rate": 1e-1, "router": "linear", "seed": 0, "balance": False},
        {"k": 2, "rate": 1e-2, "router": "cnn", "seed": 0},
    ]
    trials = [complete(n, 1.0 + n, 0.9 + n / 100, params=p) for n, p in enumerate(settings)]
    plot = frontier_plot(trials, trials, COST, ACCURACY)
    texts = Page(parameters_section(plot)).text("text")
    for shown in ("k", "2", "4", "rate", "0.0001", "0.01", "0.1", "cnn", "linear", "False", "-"):
        assert shown in texts
    assert "seed" not in texts
    same = [complete(n, 1.0 + n, 0.9, params={"k": 3}) for n in range(3)]
    assert parameters_section(frontier_plot(same, same, COST, ACCURACY)) == ""


def test_importances_are_in_per_cent_with_the_largest_on_top():
    page = Page(importance_section({"accuracy": {"k": 0.1, "rate": 0.64}}, 24, 20))
    texts = page.text("text")
    assert texts[:4] == ["rate", "64 %", "k", "10 %"]
    assert "n = 24" in page.words
    assert (
        "from 20 complete trials or more, and there are 7"
        in Page(importance_section({}, 7, 20)).words
    )


# escaping and policy


NASTY = """</script><script>alert(1)</script><img src="x" onerror='a()'>&lt;&amp;"""


def test_user_given_names_are_escaped_everywhere():
    def trials(name, suffix):
        return [
            *(complete(n, 1.0 + n, 0.9 + n / 99, params={name: f"{n}{name}", f"{suffix}k": n})
              for n in range(6)),
            Trial(number=6, state="failed", params={name: name}, reason=name),
        ]  # fmt: skip

    pages = [
        drawn(
            [t.model_copy(update={"command": name}) for t in trials(name, name[:3])],
            title=name, command=name, importances={name: {name: 1.0}},
        )
        for name in (NASTY, "calm")
    ]  # fmt: skip
    nasty, calm = (Counter(tag for tag, _ in page.tags) for page in pages)
    assert nasty.keys() == calm.keys() and nasty["script"] == calm["script"]
    assert pages[0].text("h1") == pages[0].text("title") == [NASTY]
    assert pages[0].data["trials"][0]["command"] == NASTY


def test_a_page_loads_nothing_and_runs_only_its_own_script_and_style(written):
    page = written("four")
    policy = next(a["content"] for _, a in page.tags if "http-equiv" in a)
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy
    for tag in ("style", "script"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", page.source, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    for tag, found in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "a", "base"}
        assert not {"href", "srcset", "style"} & found.keys()
        assert not [name for name in found if name.startswith("on")]
        assert found.get("src", "data:").startswith("data:image/png;base64,") or tag != "img"
    assert len(page.source) < 6_000_000


# the verdict


@pytest.fixture(scope="module")
def runs(home):
    return RunRecords(home).all()


def with_accuracies(run, model, student, key):
    """Return a run with other validation accuracies, and half the cost for its student."""
    beside = run.report.baselines
    own = beside.student.model_copy(
        update={"val_accuracy": student, "mflops": run.report.mflops / 2}
    )
    report = run.report.model_copy(
        update={
            "val_accuracy": model,
            "baselines": beside.model_copy(update={"student": own}),
        }
    )
    artifacts = {**run.artifacts, "distill_student": (key,)}
    return run.model_copy(update={"key": key, "report": report, "artifacts": artifacts})


@pytest.mark.parametrize(
    "students, first, second",
    [
        ((0.7, 0.75), "10.0 points more than its own single student, at 2 times",
         "No single student of the study reaches it: the best of 2 classifies 75.0 %."),
        ((0.7, 0.85), "10.0 points more", "1 of the 2 single students of the study reaches it"),
        ((0.9, 0.1), "10.0 points fewer", "1 of the 2 single students of the study reaches it"),
        ((0.8, 0.1), "as many as its own", "1 of the 2 single students of the study reaches it"),
    ],
)  # fmt: skip
def test_the_verdict_compares_the_knee_with_every_single_student(runs, students, first, second):
    run = next(run for run in runs if run.config["system"] == "moist")
    found = {
        key: with_accuracies(run, 0.8, student, key)
        for key, student in zip(("0" * 64, "1" * 64), students, strict=True)
    }
    trials = [
        complete(n, 1.0 + 2 * n, 0.8).model_copy(update={"key": key})
        for n, key in enumerate(found)
    ]
    best, *said = study_verdict(trials, (ACCURACY, COST), found)
    assert best is trials[0] and first in said[0] and second in said[1]
    assert f"80.0 % of {run.report.n_val} validation images" in said[0]


def test_without_records_the_verdict_names_the_knee_alone():
    best, first, second = study_verdict(TRIALS, (ACCURACY, COST), {})
    assert best.number == 2 and "trial 2 (k=4 router=linear): val % 94.00" in first
    assert second == "It is one of 3 members, of 7 trials."


def test_the_verdict_on_a_run_is_about_its_test_images(runs):
    first, second = run_verdict(runs[0])
    assert f"of {runs[0].report.n_test} test images" in first and "times the" in second


# the model


def test_the_report_of_a_study_has_every_section_in_order(written, home):
    page = written("four")
    assert page.sections == [*OF_A_STUDY, *OF_A_RUN, "reproduce-it-with"]
    assert page.text("h1") == ["Study four"] and "Not available" not in page.words
    assert f"moist best four --max mflops=BUDGET --home {home}" == page.data["budget"]["command"]


def test_the_report_of_a_run_shows_what_its_record_and_its_model_say(written, runs):
    run = runs[0]
    page = written(run.key[:12])
    assert page.sections == ["verdict", *OF_A_RUN]
    assert run.command in page.words
    images = [found for tag, found in page.tags if tag == "img"]
    right, wrong = len(page.of_class("right")), len(page.of_class("wrong"))
    assert len(images) == right + wrong and right and wrong
    assert "taken for" in images[-1]["alt"] or wrong == 0
    for stage in run.report.stage_seconds:
        assert stage in page.text("text")


def test_stages_that_were_reused_are_told_from_those_computed(written, runs):
    page = written(runs[0].key)
    reused = set(runs[0].report.stage_seconds) - set(runs[0].computed)
    labels = [text for text in page.text("text") if text.endswith(" reused")]
    assert len(labels) == 2 * len(reused) > 0


def test_a_cleared_cache_leaves_the_page_with_a_sentence_in_place_of_a_section(
    trained, written, capsys
):
    home = trained()
    shutil.rmtree(home / "objects")
    page = written("four", home)
    assert page.sections == [*OF_A_STUDY, *OF_A_RUN, "reproduce-it-with"]
    assert page.words.count("Not available: no stored output") == 3


def test_a_name_that_is_neither_a_study_nor_a_run_is_rejected(home, capsys, tmp_path):
    said = Said(capsys, "report", "fuor", "--home", home, "-o", tmp_path / "r.html")
    assert said.code == 2 and "`fuor` is neither a study nor a run" in said.err
    assert "did you mean `four`?" in said.err
    said = Said(capsys, "report", "four", "--home", home, "-o", tmp_path / "r.svg")
    assert said.code == 2 and "a report is a page" in said.err


def test_trials_without_a_study_have_a_page_without_a_model(tmp_path):
    plot = frontier_plot(TRIALS, front(TRIALS, COST, ACCURACY), COST, ACCURACY)
    save_plot(tmp_path / "w.html", plot, "tiny", COMMAND, TRIALS)
    page = Page((tmp_path / "w.html").read_text())
    assert "stages" not in page.sections and "a worker died" in page.words
    with pytest.raises(ConfigError):
        save_plot(tmp_path / "w.pdf", plot, "tiny", COMMAND)
