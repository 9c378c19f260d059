"""The command line: what is printed on which stream, and exit codes."""

import contextlib
import csv
import io
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import click
import forked
import pytest
from click.testing import CliRunner
from forked import MOIST, Forked
from hypothesis import example, given
from hypothesis import strategies as st
from shell import Said
from tiny import TINY

from moist.cli.main import COMMANDS, cli, main
from moist.config import Config, flat
from moist.config.overrides import build, parse
from moist.config.schema import keys
from moist.results.report import Report
from moist.store.objects import ObjectStore
from moist.store.runs import RunRecords, command_for

PATIENCE = 240.0


@pytest.fixture(scope="module")
def home(trained) -> Path:
    """A home in which the last run is one of the tiny recipe."""
    home = trained()
    done = command("run", *TINY, "--quiet", "--threads", "1", MOIST_HOME=str(home))
    assert done.returncode == 0, done.stderr
    return home


def command(*words: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a command in a process of its own, as a shell would."""
    return forked.moist(*words, env={**os.environ, **environment})


# run


def test_run_prints_the_report_as_one_json_object(home, capsys):
    report = Said(capsys, "run", *TINY, "--json", "--home", home).json
    names = {"accuracy", "val_accuracy", "loss", "ece", "mflops", "params", "latency_ms"}
    assert report.keys() >= names | {"routing_accuracy", "clusters", "key", "seconds"}
    for row in (report, report["baselines"]["teacher"], report["baselines"]["student"]):
        assert row.keys() >= names
        assert row["latency_ms"].keys() == {"batch_1", "batch_256"}
    assert Report.model_validate(fields(report)).model_dump(mode="json") == fields(report)


def fields(found: dict) -> dict:
    """Return a report's part of what is printed of a run."""
    return {name: found[name] for name in Report.model_fields}


def test_a_run_prints_progress_on_stderr_and_the_report_on_stdout(home, capsys):
    done = Said(capsys, "run", *TINY, "--home", home)
    assert done.code == 0
    of_machine = ("other work", "no bf16 instructions")
    lines = [line for line in done.err.splitlines() if not any(x in line for x in of_machine)]
    assert len(lines) == 12 and all(" reused, " in line and " saved" in line for line in lines)
    for word in ("MoIST k=2, linear router", "single student", "teacher resnet8", "p95", "n 256"):
        assert word in done.out
    assert "\x1b" not in done.out + done.err


def test_quiet_prints_only_warnings_on_stderr(home, capsys):
    assert Said(capsys, "run", *TINY, "--home", home, "--quiet").err == ""
    key = Said(capsys, "runs", "--json", "--home", home).json[0]["artifacts"]["cluster_classes"][0]
    (ObjectStore(home).folder(key) / "artifact.json").write_text("{}")
    said = Said(capsys, "run", *TINY, "--home", home, "--quiet")
    assert said.code == 0 and said.err.startswith("warning: `cluster_classes`")
    assert len(said.err.splitlines()) == 1


def test_the_printed_command_reproduces_the_run(home, capsys):
    printed = Said(capsys, "show", "last", "--home", home).out
    repeat = printed.splitlines()[-1].strip()
    assert printed.splitlines()[-2].endswith("reproduce it with")
    words = shlex.split(repeat)
    assert words[:2] == ["moist", "run"]
    again = Said(capsys, *words[1:], "--home", home, "--json").json
    assert again["key"] == Said(capsys, "run", *TINY, "--home", home, "--json").json["key"]


def test_values_with_blanks_survive_the_printed_command(tmp_path):
    from moist.store.runs import command_for

    folder = ["data.name=folder", f"data.root={tmp_path}/my images"]
    config = parse([*folder, "student.channels=8,16", "k=auto"])
    assert parse(shlex.split(command_for(config))[2:]) == config
    assert command_for(Config()) == "moist run"


@pytest.mark.parametrize(
    "words", [["data.name=folder", "data.root=my images"], ["teacher.weights=my images/t.pth"]]
)
def test_printed_commands_mean_the_same_in_another_folder(tmp_path, monkeypatch, words):
    (here := tmp_path / "here").mkdir()
    monkeypatch.chdir(here)
    command = shlex.split(command_for(parse(words)))
    monkeypatch.chdir(tmp_path)
    again = parse(command[2:])
    assert here / "my images" in {again.data.root, (again.teacher.weights or here).parent}
    assert shlex.split(command_for(again)) == command


@pytest.mark.parametrize(
    ("name", "value", "colored"), [("TERM", "xterm", 1), ("NO_COLOR", "1", 0)]
)
def test_on_a_terminal_a_run_shows_bars_and_no_color_is_honored(
    home, capsys, monkeypatch, name, value, colored
):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(name, value)
    screen, other = pty.openpty()
    text = []
    reader = threading.Thread(target=read_all, args=(screen, text))
    reader.start()
    with open(other, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        said = Said(capsys, "run", *TINY, f"distill.alpha=0.{colored}", "--home", home, "--json")
    reader.join(PATIENCE)
    os.close(screen)
    shown = b"".join(text)
    assert Report.model_validate(fields(said.json))
    assert b"distill_student" in shown and b"2/2" in shown and b"computed in" in shown
    assert bool(re.search(rb"\x1b\[3\dm", shown)) == bool(colored)


def read_all(screen: int, text: list[bytes]) -> None:
    """Read a terminal until its last writer is gone, which Linux reports as an error."""
    with contextlib.suppress(OSError):
        while part := os.read(screen, 65536):
            text.append(part)


# exit codes


@pytest.mark.slow
def test_an_interrupted_run_exits_130_and_the_next_one_continues(trained, capsys):
    home = trained()  # so that only one stage is left to train, and that one takes for ever
    words = ["run", *TINY, "distill.epochs=10000", "--home", str(home), "--threads", "1"]
    with Forked([*MOIST, *words]) as process:
        process.until(lambda: list(home.glob("partial/*/step-*")))
        process.signal(signal.SIGINT)
        assert process.wait() == 130 and process.out == ""
    assert list(home.glob("partial/*/step-*"))
    message, command = process.err.splitlines()[-2:]
    assert message == "error: interrupted; finished work and checkpoints are kept, continue with"
    assert shlex.split(command) == ["moist", *words]
    assert "Traceback" not in process.err
    again = Said(capsys, "run", *TINY, "--home", home)
    assert again.code == 0 and again.err.startswith("prepare ")
    assert " reused, " in again.err.splitlines()[0]


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGUSR1, 138, "terminated by SIGUSR1"),
        (signal.SIGHUP, 129, "terminated by SIGHUP"),
    ],
)
def test_a_run_that_is_stopped_exits_as_a_shell_expects_of_the_signal(
    tmp_path, capsys, number, code, word
):
    words = [*TINY, "--home", str(tmp_path), "--threads", "1"]
    key = Said(capsys, "plan", *words, "--json").json[0]["key"]
    with (
        ObjectStore(tmp_path).locked(key),  # so that the run waits for its first stage
        Forked([*MOIST, "run", *words]) as process,
    ):
        process.until(lambda: "waiting for another process" in process.err)
        process.signal(number)
        assert process.wait() == code and process.out == ""
    message, command = process.err.splitlines()[-2:]
    assert message == f"error: {word}; finished work and checkpoints are kept, continue with"
    assert shlex.split(command) == ["moist", "run", *words]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["run", "--k", "3"], 2, "hint: write `k=3`"),
        (["run", "--k=3"], 2, "hint: write `k=3`"),
        (["run", "--hidden-width", "64"], 2, "hint: write `hidden_width=64`"),
        (["run", "--distill.alpha", "0.5"], 2, "hint: write `distill.alpha=0.5`"),
        (["run", "--seed"], 2, "hint: write `seed=VALUE`"),
        (["run", "--nothing"], 2, "No such option"),
        (["run", "k=0"], 2, "`k=0`: expected 1 to 1000 | auto"),
        (["run", "k=11"], 2, "hint: set k between 1 and 10"),
        (["plan", "distil.alpha=1"], 2, "did you mean `distill.alpha`?"),
        (["config", "@/nowhere"], 2, "can't read `/nowhere`"),
        (["run", "--dry-run"], 2, "hint: `moist plan` lists what a run would compute"),
        (["run", "--device", "abacus"], 2, "`--device abacus` is no device of torch\nhint: for"),
        (["cache", "clear", "--stage", "abacus"], 2, "no output of a stage `abacus` is stored"),
        (["show", "last"], 2, "no runs have a key that starts with `last`"),
        (["predict", "last", "x.png"], 2, "no runs"),
        (["frobnicate"], 2, "No such command"),
        (["cache", "gc", "--max-bytes", "many"], 2, "hint: for example: 500MB or 10GB"),
        (["data", "prepare", "digitz"], 2, "`data.name=digitz`: expected digits | "),
    ],
)
def test_a_wrong_request_is_an_error_on_stderr_with_exit_code_2(
    tmp_path, capsys, words, code, said
):
    found = Said(
        capsys, *words, *([] if words[0] in {"config", "frobnicate"} else ["--home", tmp_path])
    )
    assert found.code == code and found.out == ""
    assert said in found.err and "Traceback" not in found.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["k=11"], "set k between 1 and 10"),
        (["data.name=folder", "data.root=nowhere"], "`data.root=nowhere` does not exist"),
        (["teacher.weights=README.md"], "teacher.weights"),
    ],
)
def test_a_run_is_refused_before_it_says_how_it_tracks(tmp_path, capsys, words, said):
    found = Said(capsys, "run", *words, "--wandb", "offline", "--home", tmp_path)
    assert found.code == 2 and said in found.err and "tracking:" not in found.err


def test_a_stage_that_fails_exits_1(home, capsys):
    found = Said(capsys, "run", *TINY, "--home", home, "teacher.lr=10", "teacher.optimizer=sgd",
                 "teacher.weight_decay=1", "teacher.momentum=0.99", "teacher.schedule=constant",
                 "teacher.epochs=3")  # fmt: skip
    assert found.code == 1 and found.out == ""
    assert "error: `train_teacher` diverged" in found.err


@pytest.mark.parametrize(
    "words",
    [
        "runs --home PATH", "plan @PATH", "plan teacher.weights=PATH", "predict last PATH",
        "plan data.name=folder data.root=PATH", "data prepare cifar10 data.root=PATH",
        "sweep check PATH", "sweep optuna PATH", "sweep wandb PATH", "bench overhead PATH",
        "sweep optuna quickstart teacher.weights=PATH", "sweep optuna quickstart --plot=PATH",
        "pareto quickstart --plot PATH", "pareto --wandb PATH",
    ],
)  # fmt: skip
def test_a_path_of_no_user_is_refused_wherever_a_path_is_taken(words, tmp_path, capsys):
    said = Said(capsys, *words.replace("PATH", "~nosuchuser/x").split())
    assert said.code == 2 and "~nosuchuser/x`: there is no user" in said.err


def test_bytes_that_are_no_text_are_refused_before_anything_is_computed(tmp_path, capsys):
    said = Said(capsys, "run", "data.name=folder", "data.root=caf\udce9")
    assert said.code == 2 and r"`data.root=caf\udce9` has bytes that are not UTF-8" in said.err


def test_a_deleted_working_folder_is_an_error_with_a_hint(tmp_path, capsys, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    said = Said(capsys, "plan", "@tiny.yaml")
    assert said.code == 2 and "can't use the working folder" in said.err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_report_goes_on_where_the_output_lacks_a_character(
    encoding, home, tmp_path, monkeypatch
):
    run = RunRecords(home).find("last")
    config = parse([*TINY, "data.name=folder", "data.root=/\N{CJK UNIFIED IDEOGRAPH-732B}/photos"])
    RunRecords(tmp_path).save(
        command=command_for(config), config=config, report=run.report, artifacts=run.artifacts
    )
    for words in (["show", "last"], ["runs"]):
        out = io.TextIOWrapper(io.BytesIO(), encoding)
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "argv", ["moist", *words, "--home", str(tmp_path)])
        with pytest.raises(SystemExit) as exit_:
            main()
        assert not exit_.value.code
        out.flush()
        expected = "\N{CJK UNIFIED IDEOGRAPH-732B}" if encoding == "utf-8" else r"\u732b"
        assert f"data.root=/{expected}/photos" in out.buffer.getvalue().decode(encoding)


def test_a_home_that_is_a_file_is_an_error_with_a_hint(tmp_path, capsys):
    (tmp_path / "file").touch()
    found = Said(capsys, "run", *TINY, "--home", tmp_path / "file" / "below")
    assert found.code == 1 and "MOIST_HOME" in found.err


def test_messages_are_not_broken_into_lines(tmp_path, capsys):
    place = tmp_path / ("long" * 40)
    found = Said(capsys, "config", f"@{place}")
    assert found.err == f"error: can't read `{place}`: No such file or directory\n"


FULL = "os.open('/dev/full', os.O_WRONLY)"
LEFT = "(pipe := os.pipe(), os.close(pipe[0]))[0][1]"
"""A pipe whose reader has left, as that of `| true`."""
LACKING = (
    "error: can't write the output: No space left on device\n"
    "hint: write it to another file or disk\n"
)


UNBUFFERED = (
    "sys.stdout = io.TextIOWrapper(io.FileIO(1, 'w', closefd=False), 'utf-8', write_through=True);"
)


@pytest.mark.parametrize("unbuffered", ["", UNBUFFERED], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    ("words", "stream", "sink", "code", "err"),
    [
        *(
            (words, 1, sink, 1, err)
            for words in (["runs", "--json"], ["runs", "--csv"], ["sweep", "list"],
                          ["config", "--keys"], ["--help"])
            for sink, err in ((FULL, LACKING), (LEFT, ""))
        ),
        (["show", "none"], 2, FULL, 2, ""),
        (["show", "none"], 2, LEFT, 2, ""),
    ],
)  # fmt: skip
def test_output_that_can_not_be_written_is_one_message_and_no_traceback(
    tmp_path, words, stream, sink, code, err, unbuffered
):
    script = f"import io, os, sys; os.dup2({sink}, {stream}); {unbuffered}{MOIST[1]}"
    done = forked.run(["-c", script, *words], env={**os.environ, "MOIST_HOME": str(tmp_path)})
    assert (done.returncode, done.stderr) == (code, err)


def test_an_exit_code_and_both_streams_arrive_from_a_process(tmp_path):
    done = command("config", "k=0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: `k=0`: expected 1 to 1000 | auto\n"


# the other commands


@pytest.mark.parametrize(
    "words", [["plan", *TINY], ["runs"], ["cache", "ls"], ["cache", "verify"]]
)
def test_commands_that_print_data_print_a_json_array(home, capsys, words):
    found = Said(capsys, *words, "--json", "--home", home).json
    assert isinstance(found, list) and all(isinstance(row, dict) for row in found)
    assert found or words == ["cache", "verify"]


def test_plan_lists_what_a_run_would_compute_and_computes_nothing(tmp_path, home, capsys):
    assert all(row["reused"] for row in Said(capsys, "plan", *TINY, "--json", "--home", home).json)
    todo = Said(capsys, "plan", *TINY, "temperature=2", "--json", "--home", home).json
    computed = [row["stage"] for row in todo if not row["reused"]]
    assert computed[:2] == ["distill_student", "train_jointly"]
    assert all(row["seconds"] > 0 for row in todo if row["reused"])
    times = [row["expected"] for row in todo if not row["reused"]]
    assert all(0 < one["low"] < one["seconds"] < one["high"] and one["records"] for one in times)
    printed = Said(capsys, "plan", *TINY, "temperature=2", "--home", home).out
    assert "5 of 12 stages to compute, expected to take " in printed and " yet" not in printed
    assert "0 of 12 stages to compute" in Said(capsys, "plan", *TINY, "--home", home).out
    fresh = Said(capsys, "plan", "--home", tmp_path / "none").out
    assert fresh.endswith("12 of 12 stages to compute, no comparable run yet\n")
    assert not (tmp_path / "none").exists()


def test_the_printed_config_can_be_read_back_as_a_file(tmp_path, capsys):
    words = ["k=4", "student.channels=8,16", "teacher.lr=1e-5", "data.image_size=none"]
    (tmp_path / "f.yaml").write_text(Said(capsys, "config", *words).out)
    assert parse([f"@{tmp_path / 'f.yaml'}"]) == parse(words)
    assert Said(capsys, "config", *words, "--json").json == [flat(parse(words))]


@given(st.text(st.characters(codec="utf-8"), min_size=1))
@example("/x/my set #2")
@example("x: [y]\n- z")
@example("0\x850")
@example("ü\u20280")
@example("'\"\\ \u2028\x85\x07")
def test_any_path_is_read_back_from_the_printed_config(path):
    config = build({"data.name": "folder", "data.root": path, "teacher.weights": path})
    words = ("data.name=folder", f"data.root={path}", f"teacher.weights={path}")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "f.yaml"
        file.write_text(CliRunner().invoke(cli, ["config", *words]).stdout)
        assert parse([f"@{file}"]) == parse(words)
        if path == path.strip():  # a command line's values are stripped
            assert parse([f"@{file}"]) == config


def test_the_keys_are_explained(capsys):
    rows = Said(capsys, "config", "--keys", "--json").json
    assert [row["key"] for row in rows] == list(keys())
    assert all(row["description"] for row in rows)
    table = Said(capsys, "config", "--keys").out
    assert "above 0 to 100" in table and "cnn | linear | transformer | shared | oracle" in table


def test_a_run_record_holds_report_config_time_and_command(home, capsys):
    report = Said(capsys, "run", *TINY, "--json", "--home", home).json
    record = Said(capsys, "runs", "--json", "--home", home).json[0]
    assert record == report
    assert record["config"] == flat(parse(TINY))
    assert record.keys() >= {"config", "created", "command", "artifacts", "moist"}
    assert Said(capsys, "show", report["key"][:6], "--json", "--home", home).json == record
    assert report["key"][:8] in Said(capsys, "runs", "--home", home).out
    rows = list(csv.DictReader(Said(capsys, "runs", "--csv", "--home", home).out.splitlines()))
    assert rows[0]["key"] == report["key"] and float(rows[0]["accuracy"]) == report["accuracy"]


def test_an_empty_home_has_no_runs_and_is_not_created(tmp_path, capsys):
    for words in (["runs"], ["cache", "ls"], ["cache", "verify"]):
        assert Said(capsys, *words, "--json", "--home", tmp_path / "none").json == []
        assert Said(capsys, *words, "--home", tmp_path / "none").code == 0
    assert not (tmp_path / "none").exists()


def test_an_option_overrides_the_home_of_the_environment(home, tmp_path):
    assert len(json.loads(command("runs", "--json", MOIST_HOME=str(home)).stdout)) >= 1
    words = ("runs", "--json", "--home", str(tmp_path))
    assert json.loads(command(*words, MOIST_HOME=str(home)).stdout) == []


# deferral


def test_curve_prints_every_deferral_threshold(home, capsys):
    words = ["run", *TINY, "cascade.fallback=teacher", "--home", home]
    report = Said(capsys, *words, "--json").json
    points = Said(capsys, "curve", report["key"], "--home", home, "--json").json
    assert points == report["deferral"]["curve"] and len(points) > 2
    lines = Said(capsys, "curve", report["key"], "--home", home, "--csv").out.splitlines()
    assert lines[0].split(",") == list(points[0])
    rows = [[float(cell) for cell in line.split(",")] for line in lines[1:]]
    assert rows == [list(point.values()) for point in points]
    both = Said(capsys, "curve", report["key"], "--home", home, "--csv", "--json")
    assert both.code == 2 and "`--csv` and `--json` can't be combined" in both.err
    table = Said(capsys, "curve", report["key"], "--home", home).out
    assert table.count("> ") == 1
    shown = Said(capsys, "show", report["key"], "--home", home).out
    assert "\ndeferred " in shown and "deferring to teacher" in shown
    key = Said(capsys, "run", *TINY, "--home", home, "--json").json["key"]
    refused = Said(capsys, "curve", key, "--home", home)
    assert refused.code == 2 and "defers no images" in refused.err


def test_a_data_set_is_prepared_once_and_described(home, capsys):
    (row,) = Said(capsys, "data", "prepare", "digits", "--json", "--home", home, "--quiet").json
    assert (row["train"], row["val"], row["test"], row["shape"]) == (1295, 142, 360, "1x8x8")
    assert row["classes"] == list("0123456789")
    assert "shape: 1x8x8" in Said(capsys, "data", "prepare", "digits", "--home", home).out


def test_the_cache_is_listed_verified_and_emptied(home, tmp_path, capsys):
    copy = tmp_path / "home"
    subprocess.run(["cp", "-r", str(home), str(copy)], check=True)
    rows = Said(capsys, "cache", "ls", "--json", "--home", copy).json
    assert {row["stage"] for row in rows} >= {"prepare", "train_teacher", "evaluate"}
    path = ObjectStore(copy).folder(rows[0]["key"]) / "artifact.json"
    path.write_text(path.read_text() + " ")
    found = Said(capsys, "cache", "verify", "--home", copy)
    assert found.code == 1 and f"{rows[0]['key'][:8]}: artifact.json: " in found.out
    assert f"{len(rows) - 1} intact, 1 damaged" in found.out
    assert Said(capsys, "cache", "verify", "--home", copy).code == 0
    assert (
        "freed "
        in Said(capsys, "cache", "clear", "--stage", "evaluate", "--yes", "--home", copy).out
    )
    left = Said(capsys, "cache", "ls", "--json", "--home", copy).json
    assert "evaluate" not in {row["stage"] for row in left} and len(left) < len(rows)
    Said(capsys, "cache", "gc", "--max-bytes", "0", "--home", copy)
    assert Said(capsys, "cache", "ls", "--json", "--home", copy).json == []
    assert Said(capsys, "runs", "--json", "--home", copy).json  # the records stay


def test_emptying_the_cache_needs_confirmation(home):
    done = forked.moist("cache", "clear", "--home", home, stdin="n\n")
    assert done.returncode == 1 and "nothing was changed" in done.stderr
    assert any((home / "objects").iterdir())


# help


def every(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the words of every command that is not a group."""
    found, context = [], click.Context(group)
    for name in group.list_commands(context):
        one, here = group.get_command(context, name), (*path, name)
        found += every(one, here) if isinstance(one, click.Group) else [here]
    return found


@pytest.mark.parametrize("path", every(cli), ids=" ".join)
def test_every_command_has_help_with_an_example(capsys, path):
    found = Said(capsys, *path, "--help")
    assert found.code == 0 and found.err == ""
    assert found.out.startswith("Usage: ") and f"\n  moist {' '.join(path)}" in found.out


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_their_help_says(name):
    command = cli.get_command(click.Context(cli), name)
    assert command.name == name and command.get_short_help_str(80) == COMMANDS[name][1]


LIGHT = """
import os, sys
from moist.cli.main import main
READING = {"torch", "optuna", "sqlalchemy", "pandas"}
for words, heavy in (
    (["--version"], {"pydantic", "rich"}),
    (["--help"], {"pydantic", "rich"}),
    (["run", "--help"], {"torch", "optuna"}),
    (["runs"], {"torch", "optuna"}),
    (["show", "last"], {"torch", "optuna"}),
    (["cache", "ls"], {"torch", "optuna"}),
    (["best", "four"], READING),
    (["pareto", "four"], READING),
    (["sweep", "status", "four"], READING),
    (["studies"], READING),
    (["table", "four"], READING),
):
    sys.argv = ["moist", *words]
    try: main()
    except SystemExit as end: assert not end.code
    assert not heavy & sys.modules.keys(), words
os.environ |= {"_MOIST_COMPLETE": "bash_complete", "COMP_LINE": "moist best "}
try: main()
except SystemExit as end: assert not end.code
assert not {"torch", "optuna"} & sys.modules.keys(), "completion"
"""


def test_help_and_lists_import_only_what_they_need(home):
    environment = {**os.environ, "MOIST_HOME": str(home)}
    assert subprocess.run([sys.executable, "-c", LIGHT], env=environment).returncode == 0


def test_moist_runs_as_a_module():
    done = forked.run(["-m", "moist", "config", "k=3"])
    assert done.returncode == 0 and "\nk: 3\n" in done.stdout and done.stderr == ""
