"""The plots of a study, read back from what was written."""

import itertools
import logging
import os
import re
import resource
import subprocess
import sys
import xml.etree.ElementTree as ET
from contextlib import contextmanager
from itertools import pairwise

import optuna
import pytest
from drawn_trials import ACCURACY, COMMAND, COST, MEMBERS, TRIALS, complete, front
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor

from moist.errors import ConfigError, StoreError
from moist.reporting.frontier_plot import BLUE, GREY, PRINTED, RED, axis_label, frontier_plot
from moist.reporting.plots import SUFFIXES, importances, save_plot
from moist.results.objectives import QUANTITIES, Objective


def saved(
    path, trials=TRIALS, members=None, x=COST, y=ACCURACY, title="tiny", errors=None, **more
):
    members = front(trials, x, y) if members is None else members
    save_plot(path, frontier_plot(trials, members, x, y, errors), title, COMMAND, **more)
    return path


# what is drawn


def test_every_quantity_can_be_drawn():
    assert PRINTED.keys() == QUANTITIES.keys()


@pytest.mark.parametrize(
    "name, direction, said",
    [
        ("accuracy", "max", "accuracy on validation, % (more is better)"),
        ("mflops", "min", "MFLOPs per image (a multiply-add is one; less is better)"),
        ("mflops", "max", "MFLOPs per image (a multiply-add is one; more is better)"),
        ("latency_ms", "min", "latency, ms (batch 1; less is better)"),
    ],
)
def test_an_axis_label_gives_the_unit_and_which_way_is_better(name, direction, said):
    assert axis_label(Objective(name, direction)) == said


values = st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
directions = st.sampled_from(["max", "min"])


@settings(deadline=None)
@given(st.lists(st.tuples(values, values, st.booleans()), min_size=1), directions, directions)
def test_the_line_bounds_what_was_reached_and_claims_no_more(drawn, across, upward):
    x, y = Objective("latency_ms", across), Objective("accuracy", upward)
    trials = [
        complete(n, 1.0, accuracy, latency_ms=latency, excess=0.0 if kept else 1.0)
        for n, (latency, accuracy, kept) in enumerate(drawn)
    ]
    plot = frontier_plot(trials, front(trials, x, y), x, y)

    def losses(points):
        return [(x.loss(point[-2]), y.loss(point[-1])) for point in points]

    def better(one, other):
        return one[0] <= other[0] and one[1] <= other[1]

    line, members = losses(plot.steps), losses(plot.members)
    feasible = [mark for mark in plot.marks if mark.trial.feasible]
    assert all(any(better(corner, point) for corner in line) for point in losses(feasible))
    assert all(any(better(member, corner) for member in members) for corner in line)
    assert set(members) <= set(line)
    for (x1, y1), (x2, y2) in pairwise(line):
        assert (x1 <= x2 and y1 == y2) or (x1 == x2 and y1 >= y2)
    if line:
        worst = [max(column) for column in zip(*losses(plot.marks), strict=True)]
        assert [line[-1][0], line[0][1]] == worst


def test_a_member_because_of_a_third_objective_is_drawn_off_the_line():
    plot = frontier_plot(TRIALS, [*MEMBERS, TRIALS[3]], COST, ACCURACY)
    assert [mark.trial.number for mark in plot.members] == [1, 2, 3, 0]
    assert (3.0, 92.0) not in plot.steps


def test_a_trial_without_the_quantity_is_counted_and_not_drawn():
    x = Objective("latency_ms", "min")
    plot = frontier_plot(TRIALS, [TRIALS[1]], x, ACCURACY)
    assert [mark.trial.number for mark in plot.marks] == [0, 1, 2]
    assert plot.caption == (
        "trials: 7; complete: 5; on the frontier: 1; not drawn (not measured): 2"
    )


@pytest.mark.parametrize("trials", [[], TRIALS[5:], TRIALS[3:]])
def test_nothing_to_draw_is_an_error_that_names_the_quantities(tmp_path, trials):
    with pytest.raises(ConfigError, match=f"none of {len(trials)} trials .* `latency_ms` and"):
        saved(tmp_path / "a.png", trials, [], x=Objective("latency_ms", "min"))
    assert not any(tmp_path.iterdir())


# a PNG or an SVG


def svg_text(path):
    return [node.text for node in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def test_an_svg_has_its_labels_and_counts_as_text(tmp_path):
    trials = [trial.model_copy(update={"number": 700 + trial.number}) for trial in TRIALS]
    path = saved(tmp_path / "a.svg", trials, title="5 $ < 6 $ & <b>", errors={702: (0.93, 0.005)})
    texts = svg_text(path)
    assert [text for text in texts if re.fullmatch(r"70\d", text)] == ["701", "702", "700"]
    assert {axis_label(COST), axis_label(ACCURACY), "5 $ < 6 $ & <b>"} <= set(texts)
    assert {"trial", "beyond a limit", "frontier", "mean ± one standard deviation"} <= set(texts)
    assert COMMAND in path.read_text()
    assert "trials: 7; complete: 5; beyond a limit: 1; on the frontier: 3" in texts


def svg_places(path, axis):
    """Return positions by text; trial numbers must differ from ticks."""
    found = ET.parse(path).iter("{http://www.w3.org/2000/svg}text")
    return {node.text: float(node.get(axis)) for node in found if node.get(axis)}


def test_a_logarithmic_axis_of_an_svg_has_even_decades_and_plain_numbers(tmp_path):
    trials = [complete(100, 0.7, 0.9), complete(101, 70.0, 0.95)]
    at = svg_places(saved(tmp_path / "a.svg", trials), "x")
    assert at["10"] - at["1"] == pytest.approx(at["50"] - at["5"], rel=1e-3)
    assert at["20"] - at["10"] == pytest.approx(at["2"] - at["1"], rel=1e-3)


def test_the_numbers_of_neighbours_do_not_overlap(tmp_path):
    crowd = [complete(n, 10 + n / 1e6, 0.9 + n / 1e6) for n in range(100, 112)]
    trials = [*crowd, complete(1, 1.0, 0.5)]
    path = saved(tmp_path / "a.svg", trials)
    found = svg_places(path, "y")
    places = sorted(found[str(trial.number)] for trial in crowd)
    assert all(below - above > 10 for above, below in pairwise(places))


def test_a_png_has_the_specified_size_and_colours(tmp_path):
    with Image.open(saved(tmp_path / "a.png")) as image:
        assert image.size == (1800, 1200) and image.format == "PNG"
        assert image.text["Description"] == COMMAND
        pixels = image.convert("RGB")
    colours = {colour for _, colour in pixels.getcolors(1800 * 1200)}
    assert {ImageColor.getrgb(RED), ImageColor.getrgb(GREY)} <= colours
    assert ImageColor.getrgb(BLUE) not in colours  # it lets what lies below shine through
    assert pixels.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_study_gives_the_same_bytes(tmp_path, suffix):
    first, second = (saved(tmp_path / f"{name}{suffix}") for name in "ab")
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_title_with_letters_that_the_font_lacks_causes_no_warning(tmp_path, suffix):
    assert saved(tmp_path / f"a{suffix}", title="精度 🚀").stat().st_size


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_one_trial_and_no_frontier_are_enough_for_a_plot(tmp_path, suffix):
    assert saved(tmp_path / f"a{suffix}", [TRIALS[4]], []).stat().st_size
    assert saved(tmp_path / f"b{suffix}", [TRIALS[0]]).stat().st_size


def test_drawing_does_not_change_the_settings_of_the_process(tmp_path):
    import matplotlib

    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        with matplotlib.rc_context({"lines.linewidth": 7, "svg.fonttype": "path"}):
            before = dict(matplotlib.rcParams)
            saved(tmp_path / "a.svg")
            assert dict(matplotlib.rcParams) == before
        assert logger.level == logging.INFO
    finally:
        logger.setLevel(level)


ALONE = """
import sys
from pathlib import Path
from moist.reporting.frontier_plot import frontier_plot
from moist.reporting.plots import save_plot
from moist.results.objectives import Objective
from moist.results.trials import Trial
assert not {"plotly", "matplotlib", "torch"} & sys.modules.keys(), "imported before it is needed"
trial = Trial(number=0, state="complete", params={}, quantities={"mflops": 1, "accuracy": 1})
axes = Objective("mflops", "min"), Objective("accuracy", "max")
for suffix in (".svg", ".png"):
    path = Path(sys.argv[1]).with_suffix(suffix)
    save_plot(path, frontier_plot([trial], [trial], *axes), "title", "command")
assert "matplotlib.pyplot" not in sys.modules, "its state is shared"
"""


@pytest.mark.slow
def test_drawing_is_silent_and_needs_no_display_settings_or_cache(tmp_path):
    style = tmp_path / "matplotlibrc"
    style.write_text("text.usetex: True\nno.such.setting: 1\n")
    elsewhere = {"MPLCONFIGDIR": str(style / "cache"), "MATPLOTLIBRC": str(style)}
    env = {**os.environ, **elsewhere, "MPLBACKEND": "TkAgg", "DISPLAY": ""}
    command = [sys.executable, "-W", "always", "-c", ALONE, str(tmp_path / "a.png")]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (1800, 1200)


# the file


@pytest.mark.parametrize("name", ["a.pdf", "a", "html", ".png", "a.html.gz"])
def test_an_unknown_suffix_is_rejected_with_the_known_ones(tmp_path, name):
    with pytest.raises(ConfigError) as error:
        saved(tmp_path / name)
    assert all(f"{suffix}" in str(error.value) for suffix in (".html", ".png", ".svg"))
    assert str(tmp_path / name) in str(error.value)
    assert not any(tmp_path.iterdir())


def test_a_suffix_may_be_upper_case(tmp_path):
    with Image.open(saved(tmp_path / "A.PNG")) as image:
        assert image.format == "PNG"


def test_a_missing_folder_is_reported_by_name(tmp_path):
    with pytest.raises(ConfigError, match=f"no folder `{tmp_path / 'no'}`"):
        saved(tmp_path / "no" / "a.html")
    assert not any(tmp_path.iterdir())


def test_a_folder_in_place_of_the_file_is_rejected(tmp_path):
    (tmp_path / "a.svg").mkdir()
    with pytest.raises(StoreError, match=r"can't write `.*a.svg`: Is a directory"):
        saved(tmp_path / "a.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["a.svg"]


@contextmanager
def files_of_at_most(size):
    """Let writes beyond `size` bytes fail, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_write_that_fails_leaves_the_old_file(tmp_path, suffix):
    path = saved(tmp_path / f"a{suffix}")
    old = path.read_bytes()
    with files_of_at_most(5000), pytest.raises(StoreError, match=r"can't write .*too large"):
        saved(path, title="another")
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_a_plot_replaces_the_last_one_and_open_readers_keep_theirs(tmp_path):
    path = saved(tmp_path / "a.svg")
    old = path.read_text()
    with path.open() as reading:
        saved(path, title="another")
        assert reading.read() == old
    assert "another" in svg_text(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_plot_has_the_permissions_of_a_new_file(tmp_path):
    (tmp_path / "plain").touch()
    path = saved(tmp_path / "a.svg")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


# importance


def searched(trials: int) -> optuna.Study:
    """A study in which `best` makes a trial the best, `worst` the worst, and `idle` neither."""
    study = optuna.create_study(directions=["maximize", "minimize"])
    for a, b in itertools.product(range(10), range(10)):
        if len(study.trials) < trials:
            params = {"best": a / 9, "worst": b / 9, "idle": (7 * a + 3 * b) % 10 / 9}
            scale = optuna.distributions.FloatDistribution(0, 1)
            accuracy = 0.5 + 0.3 * (a == 9) - 0.4 * (b == 0) + 1e-4 * (a + b)
            study.add_trial(
                optuna.trial.create_trial(
                    params=params, distributions=dict.fromkeys(params, scale),
                    values=[accuracy, 1.0 + b],
                )
            )  # fmt: skip
    return study


def test_importance_explains_the_best_trials_and_no_cost():
    objectives = [Objective("accuracy", "max"), Objective("mflops", "min")]
    found = importances(searched(100), objectives)
    assert [*found] == ["accuracy"]
    assert max(found["accuracy"], key=found["accuracy"].get) == "best"
    assert importances(searched(19), objectives) == {}
