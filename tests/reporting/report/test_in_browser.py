"""The report in a headless browser: its script, its layout and its colors. Skipped without one."""

import pytest
from browser import browsing
from drawn_trials import ACCURACY, COST, TRIALS, complete
from shell import Said

from moist.reporting.frontier_plot import frontier_plot
from moist.reporting.plots import save_plot

pytestmark = pytest.mark.slow

OUTSIDE = """
[...document.querySelectorAll("body *")].filter(one => {
  const box = one.getBoundingClientRect();
  return box.width && (box.right > innerWidth + 1 || box.left < -1);
}).map(one => one.outerHTML.slice(0, 80))
"""
EMPTY = """
[...document.querySelectorAll("section")].filter(one => one.offsetHeight < 30).map(one => one.id)
"""
COLORS = """
(style => Object.fromEntries(["page", "panel", "ink", "muted", "chosen", "student", "teacher"]
  .map(name => [name, style.getPropertyValue("--" + name).trim()])))
(getComputedStyle(document.documentElement))
"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browsing(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


@pytest.fixture
def report(trained, tmp_path, capsys):
    path = tmp_path / "report.html"
    assert Said(capsys, "report", "four", "--home", trained(), "-o", path).code == 0
    return path


def contrast(one, other):
    """Return the contrast ratio of two colors, as WCAG 2 defines it."""

    def luminance(color):
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_slider_hover_and_keys_work_and_nothing_overflows(tab, report):
    tab.open(report)
    assert tab.run(EMPTY) == []
    ranked = tab.run("JSON.parse(document.getElementById('trials').textContent).budget.ranked")
    for key, cost in (("End", max), ("Home", min)):
        tab.run("document.getElementById('slider').focus()")
        tab.press(key)
        limit = cost(one for _, one in ranked)
        best = next(number for number, one in ranked if one <= limit)
        card = tab.run("document.getElementById('card').textContent")
        assert card.startswith(f"Trial {best}") and "moist best four --max mflops=" in card
        chosen = tab.run(
            "[...document.querySelectorAll('.mark.chosen')].map(m => m.dataset.trial)"
        )
        assert set(chosen) == {str(best)}

    tab.press("End")
    tab.press("ArrowLeft")
    assert 0 < tab.run("Number(document.getElementById('slider').value)") < 1

    tab.move("svg.wide .mark:has(.member)")
    tip = tab.run("document.getElementById('tip').innerText")
    assert tip.startswith("Trial ") and "hidden_width" in tip and "moist run" in tip
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    assert tab.run("document.getElementById('tip').hidden")

    tab.run("document.querySelector('svg.wide .mark[tabindex=\"0\"]').focus()")
    first = tab.run("document.activeElement.dataset.trial")
    tab.press("ArrowRight")
    second = tab.run("document.activeElement.dataset.trial")
    assert second != first
    tab.press("Enter")
    assert tab.run("document.querySelector('#card h3').textContent") == f"Trial {second}"

    for dark in (False, True):
        tab.open(report, width=390, dark=dark)
        assert tab.run("document.documentElement.scrollWidth") == 390
        assert tab.run(OUTSIDE) == [] and tab.run(EMPTY) == []
        colors = tab.run(COLORS)
        for name in ("ink", "muted", "chosen", "student", "teacher"):
            assert contrast(colors[name], colors["page"]) >= 4.5, (name, dark)
        assert contrast(colors["muted"], colors["panel"]) >= 4.5
    assert tab.errors == []


def test_names_and_values_of_any_length_neither_run_nor_overflow(tab, tmp_path):
    nasty = "<script>window.hit=1</script><img src=x onerror='window.hit=1'>" + 80 * "w"
    params = {nasty: nasty, f"k{nasty}": 3}
    trials = [
        complete(n, 1.0 + 9 * n, 0.9 + n / 99, params={**params, nasty: f"{n}{nasty}"}).model_copy(
            update={"command": f"moist run {nasty}"}
        )
        for n in range(4)
    ]
    failed = TRIALS[5].model_copy(update={"reason": nasty, "params": params})
    plot = frontier_plot(trials, trials, COST, ACCURACY)
    save_plot(tmp_path / "a.html", plot, nasty, nasty, [*trials, failed])
    for width in (1280, 390):
        tab.open(tmp_path / "a.html", width=width)
        assert tab.run("window.hit ?? 0") == 0
        assert tab.run("document.documentElement.scrollWidth") == width
        assert tab.run(OUTSIDE) == []
    assert tab.errors == []
