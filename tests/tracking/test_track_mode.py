"""Where runs are logged: by flag, environment, account and network, in this order."""

import socket
from contextlib import closing
from pathlib import Path
from threading import Event

import pytest
import wandb
from wandb_standin import Server

from moist.errors import ConfigError
from moist.tracking.mode import Mode, choose_mode, reachable
from moist.tracking.tracker import BackgroundThread

KEY = "0123456789" * 4


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A machine without an account of W&B."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch, no_account: None) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a server that is not there."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("WANDB_BASE_URL", f"http://{address}")
    return address


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch, wandb_server: Server) -> Server:
    monkeypatch.setenv("WANDB_BASE_URL", wandb_server.address)
    return wandb_server


def test_without_an_account_runs_stay_here(listening):
    assert choose_mode() == Mode(
        "offline", "there is no W&B account on this machine (`wandb login`)"
    )


def test_with_an_account_and_a_server_they_go_there(account, listening):
    assert choose_mode().name == "online"
    assert listening.operations == []  # a connection is enough: no request was sent


def test_with_an_account_and_no_server_they_stay_here(account, silence):
    assert choose_mode() == Mode("offline", f"{silence} can't be reached")


def test_a_key_that_can_not_be_one_keeps_them_here(monkeypatch, listening):
    monkeypatch.setenv("WANDB_API_KEY", "short")
    assert choose_mode().name == "offline" and "key" in choose_mode().reason
    assert "short" not in choose_mode().reason


@pytest.mark.parametrize(
    ("mode", "name"),
    [("offline", "offline"), ("dryrun", "offline"), ("disabled", "off"), ("online", "online")],
)
def test_the_environment_decides_before_the_account(monkeypatch, account, listening, mode, name):
    monkeypatch.setenv("WANDB_MODE", mode)
    assert choose_mode() == Mode(name, "set by WANDB_MODE")


@pytest.mark.parametrize("flag", ["online", "offline", "off"])
def test_the_flag_decides_before_the_environment(monkeypatch, account, listening, flag):
    monkeypatch.setenv("WANDB_MODE", "disabled" if flag == "online" else "online")
    assert choose_mode(flag) == Mode(flag, "set by --wandb")


def test_a_mode_that_wandb_does_not_have_is_rejected(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "onlin")
    with pytest.raises(ConfigError, match="`WANDB_MODE=onlin`"):
        choose_mode()


def test_a_server_that_is_required_and_not_there_is_an_error(monkeypatch, silence):
    with pytest.raises(ConfigError, match="needs W&B's server, but there is no W&B account"):
        choose_mode("online")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(ConfigError, match=f"but {silence} can't be reached"):
        choose_mode()


def test_an_address_that_does_not_answer_is_not_reachable():
    assert not reachable("https://192.0.2.1", timeout=0.2)  # kept free for documents: RFC 5737


def test_work_background_is_done_in_order_and_waited_for():
    done: list[int] = []
    background = BackgroundThread(lambda error: done.append(-1))
    for number in range(100):
        background.submit(lambda number=number: done.append(number))
    assert background.close()
    assert done == [*range(100)]


def test_work_that_fails_is_told_once_and_nothing_follows():
    done: list[object] = []
    background = BackgroundThread(done.append)
    error = ValueError("full")

    def fail() -> None:
        raise error

    background.submit(fail)
    background.submit(lambda: done.append("after"))
    background.submit(fail)
    assert background.close()
    assert done == [error]


def test_closing_gives_up_after_a_timeout():
    going = Event()
    background = BackgroundThread(print)
    background.submit(going.wait)
    assert not background.close(timeout=0.01)
    going.set()
    assert background.close()
