"""Logs of wandb are read back: whole runs, killed ones, continued ones, damaged logs."""

import math
import shutil
import sys
from pathlib import Path

import pytest
import wandb
from tracked import FIRST, log, offline, opened, writing

from moist.tracking import files
from moist.tracking.files import LoggedRun, Unreadable, history, is_open, logs, read, records


def fail(message: str) -> None:
    raise AssertionError(message)


def only(home: Path) -> LoggedRun:
    (run,) = read(home, fail)
    return run


def test_a_run_is_read_back_as_it_was_logged(tmp_path):
    log(tmp_path, "one", values={"objective/mflops": 3.5}, k=3, router="cnn", params=["k"])
    run = only(tmp_path)
    assert (run.id, run.name, run.group, run.job_type) == ("one", "name of one", "s", "trial")
    assert run.tags == ("a", "b") and run.sweep is None and run.project == "moist"
    assert run.config == {"k": 3, "router": "cnn", "params": ["k"]}
    assert run.summary["objective/mflops"] == 3.5 and run.summary["trial/state"] == "COMPLETE"
    assert (run.state, run.exit_code) == ("finished", 0)
    rows = history(run.paths, fail)
    assert [row["_step"] for row in rows] == [FIRST + 1, FIRST + 2, FIRST + 3]
    assert [row["train_jointly/loss"] for row in rows] == [1, 1 / 2, 1 / 3]


def test_a_result_at_the_end_replaces_that_of_the_last_epoch(tmp_path):
    log(tmp_path, "one", values={"objective/accuracy": 0.75})
    run = only(tmp_path)
    assert [row["objective/accuracy"] for row in history(run.paths, fail)] == [0.5] * 3
    assert run.summary["objective/accuracy"] == 0.75


def test_a_failed_run_is_read_back_as_failed(tmp_path):
    log(tmp_path, "one", "failed", {"trial/reason": "ValueError: no"})
    run = only(tmp_path)
    assert (run.state, run.exit_code, run.summary["trial/state"]) == ("failed", 1, "FAIL")
    assert run.summary["trial/reason"] == "ValueError: no"


def test_what_was_logged_before_a_kill_is_there(tmp_path):
    with writing(tmp_path, "one") as kill:
        assert only(tmp_path).state == "running"
        assert is_open(logs(tmp_path)[0].parent)
        kill()
    run = only(tmp_path)
    assert (run.state, run.exit_code) == ("killed", None)
    assert not is_open(run.paths[0].parent)
    epochs = [row["train_jointly/epoch"] for row in history(run.paths, fail)]
    assert epochs == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_a_continued_run_is_one_run_with_the_rows_of_both(tmp_path):
    with writing(tmp_path, "one") as kill:
        kill()
    log(tmp_path, "one", values={"mark": 2}, epochs=range(4, 8), late=True)
    run = only(tmp_path)
    assert (run.state, run.summary["mark"], run.config) == ("finished", 2, {"late": True})
    assert len(run.paths) == 2 and run.paths == tuple(sorted(run.paths))
    epochs = [row["train_jointly/epoch"] for row in history(run.paths, fail)]
    assert epochs == [1, 2, 3, 4, 5, 6, 7]
    later = ["train_jointly/val_accuracy" in row for row in history(run.paths, fail)]
    assert later == [False] * 3 + [True] * 4


def test_runs_come_in_order_of_start_from_a_home_its_folder_or_one_run(tmp_path):
    for id in ("b", "a"):
        log(tmp_path, id, epochs=range(0))
    assert [run.id for run in read(tmp_path, fail)] == ["b", "a"]
    assert read(tmp_path, fail) == read(tmp_path / "wandb", fail)
    (first,) = read(tmp_path, fail)[0].paths
    assert [run.id for run in read(first.parent, fail)] == ["b"]
    assert read(tmp_path / "nowhere", fail) == []


def test_of_values_that_change_the_last_counts_and_removed_ones_are_gone(tmp_path):
    with offline(tmp_path) as tracker:
        journal = opened(tracker, "one", k=3)
        journal.update_summary({"gone": 1, "kept": 1, "no": math.nan, "much": math.inf})
        journal.update_summary({"kept": 2})
        journal.submit(lambda run: run.summary.__delitem__("gone"))
        journal.submit(lambda run: run.config.update({"k": 4}, allow_val_change=True))
        journal.submit(lambda run: run.log({"row": math.nan}, step=9, commit=True))
        journal.end("complete")
    run = only(tmp_path)
    assert run.config == {"k": 4} and run.summary["kept"] == 2 and "gone" not in run.summary
    assert run.summary["much"] == math.inf
    assert math.isnan(history(run.paths, fail)[0]["row"])


@pytest.mark.slow
def test_the_documented_command_reads_what_the_fast_one_reads(tmp_path):
    log(tmp_path, "one")
    (path,) = logs(tmp_path)
    fast = records(path, fail, (files.binary,))
    assert fast == records(path, fail, (files.command,)) and fast
    broken = [sys.executable, "-c", "import sys; sys.exit('no such flag')"]
    assert records(path, fail, (lambda _path: broken, files.binary)) == fast
    with pytest.raises(Unreadable, match="no such flag"):
        records(path, fail, (lambda _path: broken,))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda _text: b"", "it has no record of a run"),
        (lambda _text: b"x" * 40_000, "bad header"),
        (lambda text: text[:20], "it has no record of a run"),
    ],
    ids=["empty", "no log", "cut short"],
)
def test_a_log_that_cannot_be_read_is_skipped_with_a_warning(tmp_path, damage, reason):
    log(tmp_path, "intact", epochs=range(0))
    log(tmp_path, "damaged", epochs=range(0))
    path = next(path for path in logs(tmp_path) if "damaged" in path.name)
    wandb.teardown()  # it may still be writing
    path.write_bytes(damage(path.read_bytes()))
    warnings: list[str] = []
    assert [run.id for run in read(tmp_path, warnings.append)] == ["intact"]
    assert (
        len(warnings) == 1
        and warnings[0].startswith(f"skipped `{path}`: ")
        and reason in warnings[0]
    )


def test_damage_inside_a_log_is_warned_of_and_the_rest_is_read(tmp_path):
    log(tmp_path, "one")
    (path,) = logs(tmp_path)
    text = bytearray(path.read_bytes())
    text[-60] ^= 0xFF
    path.write_bytes(text)
    warnings: list[str] = []
    (run,) = read(tmp_path, warnings.append)
    assert run.id == "one" and run.state == "killed"
    assert len(warnings) == 1 and "corrupt" in warnings[0] and str(path) in warnings[0]


def test_a_copied_folder_reads_the_same_elsewhere(tmp_path):
    log(tmp_path / "here", "one")
    shutil.copytree(tmp_path / "here" / "wandb", tmp_path / "there")
    here, there = only(tmp_path / "here"), only(tmp_path / "there")
    assert here.model_dump(exclude={"paths"}) == there.model_dump(exclude={"paths"})
