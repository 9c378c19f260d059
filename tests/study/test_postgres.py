"""A study in PostgreSQL survives the same kills, and its password is never shown."""

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from driving import records, start, trials
from forked import MOIST, Forked
from sqlalchemy import create_engine, make_url, text
from test_leases import rivals
from toy import SWEEP, WAIT, Start, attempts, ref

from moist.cli.main import main
from moist.errors import StoreError, masked
from moist.study.leases import driver_of, lease
from moist.study.storage import find, load

pytestmark = pytest.mark.slow
NUMBERS = itertools.count()
SECRET = "s3cret-p4ssword"


def execute(url: str, *statements: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server's URL, for its owner; Ann needs her password to log in."""
    folder = tmp_path_factory.mktemp("postgres")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))  # where its lock lies
        import pgserver

        running = pgserver.get_server(folder / "data", cleanup_mode="stop")
        rules = folder / "data" / "pg_hba.conf"
        rules.write_text(f"local all ann scram-sha-256\n{rules.read_text()}")
        url = running.get_uri()
        execute(url, f"CREATE ROLE ann LOGIN PASSWORD '{SECRET}'", "SELECT pg_reload_conf()")
        yield url
        running.cleanup()


@pytest.fixture
def storage(server: str) -> str:
    """Ann's URL of a new database."""
    name = f"study_{next(NUMBERS)}"
    execute(server, f"CREATE DATABASE {name} OWNER ann")
    url = make_url(server).set(username="ann", password=SECRET, database=name)
    return url.render_as_string(hide_password=False)


def table(home: Path, study: str, storage: str | None) -> list[object]:
    return [(t.number, t.state, t.params, t.values) for t in trials(home, study, storage)]


def test_a_study_in_postgres_killed_anywhere_equals_the_one_in_a_file(storage, tmp_path):
    assert start(Start(tmp_path, trials=12)).finish() == 0
    home = tmp_path / "home"
    home.mkdir()
    for kill_at in (18, 17, 24, 14):
        assert start(Start(home, trials=12, storage=storage, kill_at=kill_at)).finish() == -9
    assert start(Start(home, trials=12, storage=storage)).finish() == 0
    assert table(home, "toy", storage) == table(tmp_path, "toy", None)


def test_a_killed_drivers_lock_is_free_at_once_and_its_trials_continue(storage, tmp_path, capsys):
    what = Start(tmp_path, trials=4, workers=2, storage=storage, script={2: WAIT, 3: WAIT})
    driving, study = start(what), ref(tmp_path, storage=storage)
    driving.until(lambda: len(attempts(tmp_path)) == 4)
    stamps = records(tmp_path)
    assert driver_of(study) == driving.name
    driving.kill()
    (tmp_path / "go").touch()
    resumed = start(what)
    assert resumed.finish() == 0, resumed.text
    assert driver_of(study) is None
    assert [trial.state for trial in trials(tmp_path, "toy", storage)] == ["complete"] * 4
    assert stamps.items() <= records(tmp_path).items()
    sys.argv = ["moist", "pareto", "toy", "--storage", storage, "--home", str(tmp_path), "--json"]
    with pytest.raises(SystemExit):
        main()
    assert len(json.loads(capsys.readouterr().out)) >= 1


def test_of_six_drivers_at_once_on_a_new_server_one_runs_and_the_others_name_it(storage, tmp_path):
    what = Start(tmp_path, trials=1, storage=storage, script={0: WAIT})
    winner, losers = rivals(*[what] * 6)
    for loser in losers:
        assert loser.finish() == 1
        assert loser.text.splitlines()[1] == f"study `toy` is driven by {winner.name}"
    (tmp_path / "go").touch()
    assert winner.finish() == 0


def test_a_study_of_the_same_name_in_another_database_is_another(server, storage, tmp_path):
    mine, other = (ref(tmp_path, storage=url) for url in (storage, server))
    with lease(mine):
        assert driver_of(other) is None
        with lease(other):
            pass


def test_a_server_that_drops_the_driver_ends_it_in_order_and_the_study_continues(
    server, storage, tmp_path
):
    what = Start(tmp_path, trials=2, storage=storage, script={0: WAIT})
    driving = start(what)
    driving.until(lambda: attempts(tmp_path))
    execute(server, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'ann'")
    (tmp_path / "go").touch()
    assert driving.finish() == 1
    assert ": terminating connection" in driving.text
    assert "Traceback" not in driving.text and SECRET not in driving.text
    assert start(what).finish() == 0
    assert [trial.state for trial in trials(tmp_path, "toy", storage)] == ["complete"] * 2


def test_a_driver_whose_lock_was_cut_off_stops_another_goes_on_and_two_people_watch(
    server, storage, tmp_path
):
    what = Start(tmp_path, trials=2, storage=storage, script={0: WAIT})
    driving = start(what)
    driving.until(lambda: attempts(tmp_path))
    execute(
        server,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE usename = 'ann' AND application_name LIKE 'moist %'",
    )
    assert driving.finish() == 1  # its first trial still waits
    assert "the connection that holds the lock of study `toy` was cut: term" in driving.text
    assert [trial.state for trial in trials(tmp_path, "toy", storage)] == ["running"]
    driving = start(what)
    driving.until(lambda: len(attempts(tmp_path)) == 2)
    words = [*MOIST, "sweep", "status", "toy", "--watch", "--storage", storage]
    watching = [Forked([*words, "--home", tmp_path / name]) for name in "ab"]
    for watcher in watching:
        watcher.until(lambda watcher=watcher: "toy: 1 running" in watcher.out)
    (tmp_path / "go").touch()
    assert driving.finish() == 0
    for watcher in watching:
        assert watcher.wait() == 0 and "toy: 2 complete" in watcher.out, watcher.err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"password": f"{SECRET}-wrong"}, "password authentication failed"),
        ({"password": SECRET, "database": "nowhere"}, 'database "nowhere" does not exist'),
        ({"host": "127.0.0.1", "port": 1, "query": {}}, "Connection refused"),
        ({"drivername": "mysql", "host": "127.0.0.1", "query": {}}, "No module named 'MySQLdb'"),
    ],
)
def test_errors_of_a_server_do_not_show_the_password(changed, message, server, tmp_path, capsys):
    url = make_url(server).set(username="ann", password=SECRET).set(**changed)
    text = url.render_as_string(hide_password=False)
    with pytest.raises(StoreError, match=message):
        find(ref(tmp_path, storage=text))
    file = tmp_path / "toy.yaml"
    file.write_text(SWEEP)
    for words in (["pareto", "toy"], ["sweep", "status", "toy"], ["sweep", "optuna", str(file)]):
        sys.argv = ["moist", *words, "--storage", text, "--home", str(tmp_path)]
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capsys.readouterr()
        assert exit_.value.code == 1 and message in err and "hint: " in err
        assert SECRET not in out + err


def test_the_command_that_a_study_is_continued_with_has_no_password(storage, tmp_path, capsys):
    file = tmp_path / "small.yaml"
    file.write_text(SWEEP)
    sys.argv = ["moist", "sweep", "optuna", str(file), "--storage", storage, "--timeout", "1e-9"]
    sys.argv += ["--home", str(tmp_path), "--quiet"]
    with pytest.raises(SystemExit):  # its time is over, and by now there is the study
        main()
    spec, _ = load(ref(tmp_path, "small", storage))
    assert f"--storage '{storage.replace(SECRET, '***')}'" in spec.command
    assert SECRET not in spec.command + "".join(capsys.readouterr())


def test_only_passwords_are_masked():
    assert masked("postgresql://ann:a:b/c@d@host:5432/x") == "postgresql://ann:***@host:5432/x"
    for plain in ("postgresql://ann@host:5432/x", "data.root=/a:b@c", "sqlite:///a:b.db"):
        assert masked(plain) == plain


def test_whoever_may_only_select_reads_a_study(server, storage, tmp_path, capsys):
    assert start(Start(tmp_path, trials=2, storage=storage)).finish() == 0
    name = make_url(storage).database
    owner = make_url(storage).render_as_string(hide_password=False)
    execute(server, f"CREATE ROLE reader_{name} LOGIN")
    execute(owner, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader_{name}")
    url = make_url(server).set(username=f"reader_{name}", database=name)
    reader = url.render_as_string(hide_password=False)
    for words in (
        ["pareto", "toy"], ["best", "toy"], ["table", "toy"], ["sweep", "status", "toy"],
        ["sweep", "doctor", "toy"],
    ):  # fmt: skip
        sys.argv = ["moist", *words, "--storage", reader, "--home", str(tmp_path), "--json"]
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capsys.readouterr()
        assert not exit_.value.code, err
        assert words[1] == "doctor" or json.loads(out)
