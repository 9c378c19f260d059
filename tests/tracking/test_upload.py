"""Runs in files are uploaded whole and once, whatever fails or is killed meanwhile."""

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
from pathlib import Path
from threading import Event
from typing import Any

import forked
import pytest
from forked import Forked
from tracked import log, writing
from wandb_standin import Client, Server
from wandb_standin.records import Refused

from moist.errors import StoreError
from moist.tracking.files import OPEN, is_open, marked_open, read
from moist.tracking.upload import (
    LOCK,
    MANIFEST,
    SENDING,
    Destination,
    Outbox,
    UploadResult,
    marker,
    reason_for,
)

SERVER = Destination("a server")
MOIST = str(Path(sys.executable).with_name("moist"))


def fail(message: str) -> None:
    raise AssertionError(message)


def outbox(home: Path) -> Outbox:
    return Outbox(home, fail)


def due(home: Path) -> list[str]:
    return [run.id for run in outbox(home).due()]


def send(home: Path, *waits: float, place: Destination = SERVER) -> list[UploadResult]:
    results: list[UploadResult] = []
    outbox(home).upload(outbox(home).due(), place, results.append, waits)
    return results


def states(results: list[UploadResult]) -> dict[str, str]:
    return {one.id: one.state for one in results}


def epochs(server: Server, id: str) -> list[int]:
    return [row["train_jointly/epoch"] for row in server.run(id).history]


def connect(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the stand-in as the server of all that this process starts."""
    for name, value in Client(server, folder).environment.items():
        if name.startswith("WANDB"):
            monkeypatch.setenv(name, value)


@pytest.fixture
def server(wandb_server: Server, tmp_path_factory, monkeypatch) -> Server:
    connect(wandb_server, tmp_path_factory.mktemp("client"), monkeypatch)
    return wandb_server


@pytest.mark.slow
def test_runs_arrive_whole_and_once(server, tmp_path):
    log(tmp_path, "good", values={"objective/mflops": 3.5}, k=3)
    log(tmp_path, "bad", "failed", {"trial/reason": "ValueError: no"})
    with writing(tmp_path, "broken") as kill:
        kill()
    log(tmp_path, "broken", epochs=range(6, 9))
    assert due(tmp_path) == ["good", "bad", "broken"]
    found = send(tmp_path)
    assert states(found) == dict.fromkeys(["good", "bad", "broken"], "sent")
    good = server.run("good")
    assert (good.state, good.group, good.job_type) == ("finished", "s", "trial")
    assert good.summary["objective/mflops"] == 3.5 and good.config == {"k": 3}
    assert server.run("bad").state == "failed" and server.run("broken").state == "finished"
    assert epochs(server, "good") == [1, 2, 3]
    assert epochs(server, "broken") == [1, 2, 3, 4, 5, 6, 7, 8]

    before = list(server.operations)
    for path in (tmp_path / "wandb").glob("*/*.synced"):
        path.unlink()
    assert send(tmp_path) == [] and server.operations == before
    assert {log.to for log in outbox(tmp_path).sent().values()} == {"a server"}


def test_a_record_or_a_mark_of_an_upload_suffices_unless_the_log_has_grown(server, tmp_path):
    log(tmp_path, "one")
    send(tmp_path)
    assert due(tmp_path) == []
    (path,) = read(tmp_path, fail)[0].paths
    noted = tmp_path / "wandb" / MANIFEST
    text = noted.read_bytes()
    noted.unlink()
    assert due(tmp_path) == []  # killed before it noted what wandb had marked
    marker(path).unlink()
    assert due(tmp_path) == ["one"]
    noted.write_bytes(text)
    assert due(tmp_path) == []
    with path.open("ab") as file:
        file.write(bytes(8))
    assert due(tmp_path) == ["one"]


@pytest.mark.slow
def test_a_part_of_a_run_that_comes_later_is_sent_alone(server, tmp_path):
    log(tmp_path, "one", epochs=range(1, 3))
    send(tmp_path)
    log(tmp_path, "one", epochs=range(3, 5))
    assert len(outbox(tmp_path).due()[0].paths) == 1
    send(tmp_path)
    assert epochs(server, "one") == [1, 2, 3, 4]


def test_a_project_can_be_chosen(server, tmp_path):
    log(tmp_path, "one")
    place = Destination("host", "elsewhere", "somebody")
    send(tmp_path, place=place)
    assert [*server.runs] == [("somebody", "elsewhere", "one")]
    assert {log.to for log in outbox(tmp_path).sent().values()} == {"host/somebody/elsewhere"}


class Rejecting(Server):
    """A server that rejects the first requests, or those to the file stream."""

    def __init__(self, refusals: int, stream: bool = False) -> None:
        super().__init__()
        self.refusals, self.stream = refusals, stream

    def _answer(self, method: str, path: str, body: bytes) -> Any:
        if self.refusals and self.stream == path.endswith("file_stream") and "sdk" not in path:
            self.refusals -= 1
            raise Refused(403, "not today")
        return super()._answer(method, path, body)


@pytest.mark.slow
def test_what_fails_is_tried_again(tmp_path, monkeypatch):
    log(tmp_path, "one")
    with Rejecting(2) as server:
        connect(server, tmp_path, monkeypatch)
        assert states(send(tmp_path, 0, 0)) == {"one": "sent"}
        assert epochs(server, "one") == [1, 2, 3] and server.refusals == 0


@pytest.mark.slow
def test_a_run_that_cannot_be_sent_has_a_reason_and_stays(tmp_path, monkeypatch):
    log(tmp_path, "one")
    with Rejecting(2) as server:
        connect(server, tmp_path, monkeypatch)
        (results,) = send(tmp_path, 0)
        assert results.state == "failed" and "not today" in (results.reason or "")
        assert server.refusals == 0 and outbox(tmp_path).sent() == {} and due(tmp_path) == ["one"]


@pytest.mark.slow
def test_rows_that_the_server_rejects_do_not_count_as_sent(tmp_path, monkeypatch):
    log(tmp_path, "one")
    with Rejecting(1_000, stream=True) as server:
        connect(server, tmp_path, monkeypatch)
        (results,) = send(tmp_path)
        assert results.state == "failed" and "will not be synced" in (results.reason or "")
        assert due(tmp_path) == ["one"]
        server.refusals = 0
        assert states(send(tmp_path)) == {"one": "sent"}
        assert epochs(server, "one") == [1, 2, 3]


class Waiting(Server):
    """A server that lets the first request wait."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.go = Event(), Event()

    def _answer(self, method: str, path: str, body: bytes) -> Any:
        if b"RunResumeStatus" in body:
            self.reached.set()
            assert self.go.wait(60)
        return super()._answer(method, path, body)


def kill_while_it_sends(server: Waiting, home: Path) -> None:
    """Kill an upload once `wandb sync` has reached the server, and wait for the end of that."""
    code = (
        "import sys; from pathlib import Path;"
        "from moist.tracking.upload import Destination, Outbox;"
        "box = Outbox(Path(sys.argv[1]), print); box.upload(box.due(), Destination('x'), print)"
    )
    with Forked(["-c", code, home]):
        assert server.reached.wait(60)
    with pytest.raises(StoreError, match="another process is uploading the runs"):
        send(home)
    server.go.set()
    with (home / "wandb" / LOCK).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
    assert not (home / "wandb" / MANIFEST).exists()


@pytest.mark.slow
def test_killed_while_it_sends_it_sends_nothing_twice(tmp_path, monkeypatch):
    log(tmp_path, "one")
    with Waiting() as server:
        connect(server, tmp_path, monkeypatch)
        kill_while_it_sends(server, tmp_path)
        assert due(tmp_path) == []
        assert epochs(server, "one") == [1, 2, 3]


class RejectingRows(Waiting):
    """A server that rejects all rows, for a time."""

    rejects = True

    def _answer(self, method: str, path: str, body: bytes) -> Any:
        if self.rejects and path.endswith("file_stream") and "sdk" not in path:
            raise Refused(403, "not today")
        return super()._answer(method, path, body)


@pytest.mark.slow
def test_killed_while_the_server_refuses_it_sends_all_again(tmp_path, monkeypatch):
    """wandb marks a rejected log as synced, and the process that would have read why is gone."""
    log(tmp_path, "one")
    (path,) = outbox(tmp_path).due()[0].paths
    with RejectingRows() as server:
        connect(server, tmp_path, monkeypatch)
        kill_while_it_sends(server, tmp_path)
        assert marker(path).exists() and epochs(server, "one") == []
        assert due(tmp_path) == ["one"]
        server.rejects = False
        assert [one.state for one in send(tmp_path)] == ["sent"]
        assert due(tmp_path) == [] and epochs(server, "one") == [1, 2, 3]
        marker(path).unlink()
        assert due(tmp_path) == []


@pytest.mark.slow
def test_killed_while_the_server_refuses_it_still_sends_all_when_only_some_is_asked_for(
    tmp_path, monkeypatch
):
    log(tmp_path, "one")
    with RejectingRows() as server:
        connect(server, tmp_path, monkeypatch)
        kill_while_it_sends(server, tmp_path)
        server.rejects = False
        log(tmp_path, "two")
        some = [run for run in outbox(tmp_path).due() if run.id == "two"]
        outbox(tmp_path).upload(some, SERVER, lambda _: None)
        assert due(tmp_path) == ["one"]
        send(tmp_path)
        assert epochs(server, "one") == [1, 2, 3] and due(tmp_path) == []


@pytest.mark.slow
def test_what_another_process_sent_meanwhile_is_not_sent_again(server, tmp_path):
    log(tmp_path, "one")
    first, second = outbox(tmp_path), outbox(tmp_path)
    seen = first.due(), second.due()
    results: list[UploadResult] = []
    first.upload(seen[0], SERVER, results.append)
    second.upload(seen[1], SERVER, results.append)
    assert [one.state for one in results] == ["sent", "sent"]
    assert epochs(server, "one") == [1, 2, 3]


def test_several_processes_may_check_at_once_whether_a_run_is_being_written(tmp_path):
    (tmp_path / OPEN).touch()
    with (tmp_path / OPEN).open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert not is_open(tmp_path)
    with marked_open(tmp_path):
        assert is_open(tmp_path)
    assert not is_open(tmp_path) and not (tmp_path / OPEN).exists()


def test_only_one_process_uploads_from_a_folder_at_a_time(tmp_path):
    log(tmp_path, "one", epochs=range(0))
    with (tmp_path / "wandb" / LOCK).open("a") as other:
        fcntl.flock(other, fcntl.LOCK_SH)  # whatever holds it, another must not
        with pytest.raises(StoreError, match="another process is uploading the runs"):
            send(tmp_path)
    assert due(tmp_path) == ["one"]


def test_a_mark_does_not_count_beside_an_error_that_nobody_has_examined(tmp_path):
    for id in ("one", "two"):
        log(tmp_path, id, epochs=range(0))
    for run in outbox(tmp_path).due():
        marker(*run.paths).touch()
    assert due(tmp_path) == []
    (tmp_path / "wandb" / SENDING).write_text("wandb: ERROR run one was rejected\n")
    assert due(tmp_path) == ["one"]


def test_a_record_of_uploads_that_cannot_be_read_is_an_error(tmp_path):
    log(tmp_path, "one", epochs=range(0))
    (tmp_path / "wandb" / MANIFEST).write_text("{")
    with pytest.raises(StoreError, match="can't read the record of uploads"):
        due(tmp_path)


def test_a_reason_is_that_of_the_run_and_never_has_the_key(tmp_path, monkeypatch):
    for id in ("r-1", "r-10"):
        log(tmp_path, id, epochs=range(0))
    one, ten = read(tmp_path, fail)
    output = "wandb: Syncing\nwandb: ERROR [p/r-10] ten: secret\nwandb: ERROR for all\n"
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert reason_for(output, ten) == "[p/r-10] ten: ***"
    assert reason_for("wandb: ERROR run r-1: one\n" + output, one) == "run r-1: one"
    monkeypatch.delenv("WANDB_API_KEY")
    assert reason_for("", one) == "wandb gave no reason"


def moist(home: Path, client: Client, *words: str) -> subprocess.CompletedProcess[str]:
    return forked.moist("sync", *words, "--home", home, env=client.environment)


@pytest.mark.slow
def test_a_run_that_is_being_written_is_left_for_later(wandb_server, tmp_path):
    client = Client(wandb_server, tmp_path / "client")
    log(tmp_path, "done")
    with writing(tmp_path, "busy") as kill:
        found = moist(tmp_path, client, "--json")
        results = {one["id"]: one["state"] for one in json.loads(found.stdout)}
        assert results == {"busy": "running", "done": "sent"} and found.returncode == 0
        assert "running  busy  name of busy: skipped for now" in found.stderr
        kill()
    found = moist(tmp_path, client, "bu")
    assert (found.stdout, found.returncode) == ("1 uploaded\n", 0), found.stderr
    assert {run.name for run in wandb_server.runs.values()} == {"busy", "done"}
    assert client.environment["WANDB_API_KEY"] not in found.stdout + found.stderr


@pytest.mark.slow
def test_a_server_that_cannot_be_reached_is_an_error_at_once(wandb_server, tmp_path):
    client = Client(wandb_server, tmp_path / "client")
    assert moist(tmp_path, client).returncode == 0  # there is nothing to send
    log(tmp_path, "one")
    listed = moist(tmp_path, client, "--dry-run", "--json")
    assert [one["state"] for one in json.loads(listed.stdout)] == ["due"]
    with wandb_server.down():
        found = moist(tmp_path, client)
    assert found.returncode == 2 and "can't upload 1 run to W&B's server" in found.stderr
    assert "can't be reached" in found.stderr and found.stdout == ""
    del client.environment["WANDB_API_KEY"]
    found = moist(tmp_path, client)
    assert found.returncode == 2 and "there is no W&B account" in found.stderr
    assert wandb_server.operations == [] and due(tmp_path) == ["one"]


@pytest.mark.slow
def test_an_online_run_is_sent_only_if_it_was_interrupted(wandb_server, tmp_path):
    client = Client(wandb_server, tmp_path / "client")
    client.python(f"""
import sys
sys.path[:0] = {[str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]!r}
import tracked
from pathlib import Path
with tracked.tracking(Path({str(tmp_path)!r}), "online") as tracker:
    tracked.opened(tracker, "ended").end("complete")
""")
    assert due(tmp_path) == []
    with writing(tmp_path, "broken", client.environment) as kill:
        assert due(tmp_path) == []
        kill()
    assert due(tmp_path) == ["broken"]


def test_browsing_needs_runs_and_a_terminal(tmp_path):
    def browse(*words: str) -> subprocess.CompletedProcess[str]:
        return forked.moist("browse", *words, "--home", tmp_path)

    found = browse()
    assert found.returncode == 2 and "there are no W&B runs" in found.stderr
    log(tmp_path, "one", epochs=range(0))
    (path,) = read(tmp_path, fail)[0].paths
    assert f"`wandb leet inspect --json {path.parent}`" in browse("last").stderr
    assert f"`wandb leet inspect --json {path.parent}`" in browse("o").stderr
    assert "no runs have a key that starts with `two`" in browse("two").stderr
    assert marker(path).name == "run-one.wandb.synced"


@pytest.mark.slow
def test_browsing_shows_the_runs_on_a_terminal(tmp_path):
    log(tmp_path, "one")
    command = [MOIST, "browse", "--home", str(tmp_path)]
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (40, 160))
    own = {**os.environ, "TERM": "xterm", "HOME": str(tmp_path), "WANDB_MODE": "offline"}
    browsing = subprocess.Popen(
        command, stdin=its, stdout=its, stderr=its, env=own, start_new_session=True
    )
    os.close(its)
    shown = b""
    try:
        while b"offline-run-" not in shown:
            shown += os.read(ours, 65536)
    finally:
        os.killpg(browsing.pid, signal.SIGKILL)
        browsing.wait()
        os.close(ours)
