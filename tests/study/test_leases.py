"""One driver for each study, and its name."""

import signal
import sqlite3
import threading
import time

import pytest
from driving import PATIENCE, Driving, start, trials
from forked import MOIST, Forked
from toy import WAIT, Start, attempts, ref, search

from moist.disk import this_process
from moist.errors import ConfigError, StoreError
from moist.study.leases import AlreadyDriven, driver_of, lease, lock_file
from moist.study.ledger import opened
from moist.study.ref import database_of
from moist.study.storage import load


def rivals(*starts: Start) -> tuple[Driving, list[Driving]]:
    """Start drivers at once, of which all but one end; return it, and the others."""
    driving = [start(one) for one in starts]
    for one in driving:
        one.until(lambda one=one: "driving" in one.text)
    left, deadline = driving, time.monotonic() + PATIENCE
    while len(left) > 1 and time.monotonic() < deadline:
        left[0].poll(0.02)
        left = [one for one in left if one.poll() is None]
    if len(left) > 1:
        for one in left:
            one.kill()
        pytest.fail("more than one drives it")
    return left[0], [one for one in driving if one is not left[0]]


@pytest.mark.slow
def test_of_six_drivers_at_once_one_runs_and_the_others_name_it(tmp_path):
    winner, losers = rivals(*[Start(tmp_path, trials=3, script={0: WAIT})] * 6)
    message = f"study `toy` is driven by {winner.name}"
    for loser in losers:
        assert loser.finish() == 1 and loser.text.splitlines()[1] == message, loser.text
    study = ref(tmp_path)
    assert driver_of(study) == winner.name
    winner.until(lambda: attempts(tmp_path))
    winner.kill()
    assert driver_of(study) is None
    (tmp_path / "go").touch()
    assert start(Start(tmp_path, trials=3)).finish() == 0
    assert [trial.state for trial in trials(tmp_path)] == ["complete"] * 3


@pytest.mark.slow
def test_drivers_of_six_studies_create_their_common_database_once(tmp_path):
    database = f"sqlite:///{tmp_path / 'new' / 'studies.db'}"
    names = [f"study-{i}" for i in range(6)]
    for name in names:
        (tmp_path / name).mkdir()
    driving = [start(Start(tmp_path / n, trials=2, study=n, storage=database)) for n in names]
    for one in driving:
        assert one.finish() == 0, one.text
    for name in names:
        found = trials(tmp_path, name, database)
        assert [trial.state for trial in found] == ["complete"] * 2
    connection = sqlite3.connect(tmp_path / "new" / "studies.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_a_driver_gets_its_lease_while_others_check_whether_there_is_one(tmp_path):
    study, over = ref(tmp_path), threading.Event()
    with lease(study):
        pass

    def look() -> None:
        while not over.is_set():
            driver_of(study)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for _ in range(50):
            with lease(study):
                pass
    finally:
        over.set()
        watcher.join()


def test_a_database_has_one_lock_however_it_is_spelled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    spelled = [f"sqlite:///{tmp_path}/folder/a.db", "sqlite:///folder/a.db",
               "sqlite:///folder/../folder/a.db", "sqlite:///link/a.db"]  # fmt: skip
    files = {lock_file(ref(tmp_path, storage=one)) for one in spelled}
    assert len(files) == 1 and files.pop().parent == tmp_path / "folder"
    with lease(ref(tmp_path, storage=spelled[0])):
        with (
            pytest.raises(AlreadyDriven, match=f"driven by {this_process()}"),
            lease(ref(tmp_path, storage=spelled[1])),
        ):
            pytest.fail("two drive it")
        with lease(ref(tmp_path, "other", spelled[1])):
            pass


@pytest.mark.parametrize("storage", ["sqlite://", "sqlite:///:memory:", "studies.db", "foo://x/y"])
def test_a_database_that_can_not_be_resumed_from_is_rejected(storage, tmp_path):
    with pytest.raises(ConfigError, match="--storage"):
        database_of(storage, tmp_path)


@pytest.mark.parametrize(
    "storage", ["postgresql//ann:s3cret@host/x", "postgresql://ann:s3cret@host:port/x"]
)
def test_a_mistaken_url_is_shown_without_its_password(storage, tmp_path):
    with pytest.raises(ConfigError) as error:
        database_of(storage, tmp_path)
    assert "s3cret" not in str(error.value)


def test_a_home_may_have_any_name(tmp_path):
    home = tmp_path / "what? 100% #1"
    home.mkdir()
    assert [one.state for one in search(Start(home, trials=1))] == ["complete"]
    assert (home / "studies.db").exists()


@pytest.mark.slow
def test_a_locked_database_is_reported_with_its_holder_and_ctrl_c_ends_the_wait(tmp_path, capsys):
    search(Start(tmp_path, trials=1))
    hold = (
        "import sqlite3, sys; held = sqlite3.connect(sys.argv[1]);"
        "held.execute('PRAGMA locking_mode=EXCLUSIVE'); held.execute('BEGIN EXCLUSIVE');"
        "print('held', flush=True); sys.stdin.read(); import time; time.sleep(1000)"
    )
    database = tmp_path / "studies.db"
    with Forked(["-c", hold, database]) as holder:
        holder.until(lambda: "held" in holder.out)
        with Forked([*MOIST, "pareto", "toy", "--home", tmp_path]) as waiting:
            waiting.until(lambda: "warning" in waiting.err)
            said = f"warning: waiting for `{database}`, locked by process {holder.pid}"
            assert waiting.err.splitlines() == [said]
            waiting.signal(signal.SIGINT)
            assert waiting.wait() == 130
        with Forked([*MOIST, "pareto", "toy", "--home", tmp_path]) as waiting:
            waiting.until(lambda: "warning" in waiting.err)
            holder.kill()
            assert waiting.wait() == 0


def test_a_database_of_another_optuna_is_refused_with_what_to_do(tmp_path):
    search(Start(tmp_path, trials=1))
    for revision, hint in (("v2.6.0.a", "optuna storage upgrade"), ("v9", "pip install -U")):
        connection = sqlite3.connect(tmp_path / "studies.db")
        connection.execute("UPDATE alembic_version SET version_num = ?", [revision])
        connection.commit()
        connection.close()
        with pytest.raises(StoreError, match="set up by optuna") as error:
            load(ref(tmp_path))
        assert hint in error.value.hint


def test_a_file_that_is_not_a_database_raises_a_store_error(tmp_path):
    file = tmp_path / "studies.db"
    file.write_text("no database" * 100)
    with pytest.raises(StoreError, match="failed: file is not a database"):
        search(Start(tmp_path, trials=1))


def test_a_database_that_is_damaged_under_the_driver_raises_a_store_error(tmp_path):
    search(Start(tmp_path, trials=1))
    study = ref(tmp_path)
    spec, _ = load(study)
    with pytest.raises(StoreError, match=r"studies.db` failed: "):
        with opened(study, spec) as ledger:
            for file in tmp_path.glob("studies.db*"):
                file.write_bytes(b"no database" * (file.stat().st_size // 11))
            ledger.enqueue([{"k": 3, "hidden_width": 8, "temperature": 2.0}])
