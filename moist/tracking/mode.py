"""Where runs are logged: to W&B's server, to files here, or not at all.

The mode is chosen once and printed. An explicit flag decides; else WANDB_MODE; else runs go to
the server if there is an account and it can be reached, and if not to files that `moist sync`
uploads later.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from threading import Thread
from typing import Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from moist.errors import ConfigError, first_line, unknown

Name = Literal["online", "offline", "off"]
FLAGS = ("auto", "online", "offline", "off")
MODES: dict[str, Name] = {
    "online": "online", "run": "online", "shared": "online", "offline": "offline",
    "dryrun": "offline", "disabled": "off", "off": "off",
}  # fmt: skip
"""The mode by the value of a flag or of WANDB_MODE."""

TIMEOUT = 2.0
"""Seconds in which a server must answer; a name server that is down takes far longer."""


@dataclass(frozen=True)
class Mode:
    """Where runs are logged, and the reason."""

    name: Name
    reason: str


def choose_mode(flag: str = "auto") -> Mode:
    """Choose where this process, and all that it starts, log their runs.

    Raises ConfigError if the server is required and there is no account, or it can't be reached.
    """
    if flag not in FLAGS:
        raise unknown("mode of tracking", flag, FLAGS)
    name, by = (flag, "--wandb") if flag != "auto" else (_environment(), "WANDB_MODE")
    if name in MODES and MODES[name] != "online":
        return Mode(MODES[name], f"set by {by}")
    problem = why_unreachable()
    if problem is None:
        return Mode("online", f"set by {by}" if name else f"with your account at {host()}")
    if name:
        raise ConfigError(
            f"`{by}={name}` needs W&B's server, but {problem}",
            "`--wandb offline` keeps runs here, and `moist sync` uploads them later",
        )
    return Mode("offline", problem)


def _environment() -> str:
    """Return WANDB_MODE; empty if it is not set."""
    name = os.environ.get("WANDB_MODE", "")
    if name and name not in MODES:
        raise ConfigError(
            f"`WANDB_MODE={name}` is not a mode of W&B", "set online, offline or disabled"
        )
    if not name:
        os.environ.pop("WANDB_MODE", None)  # wandb rejects an empty one
    return name


def host() -> str:
    """Return the server's name, with its port if it is unusual."""
    return urlsplit(base_url()).netloc.rpartition("@")[2]


def base_url() -> str:
    """Return the URL of the server that wandb is configured for."""
    import wandb

    settings = wandb.Settings(silent=True)  # moist reports its errors
    url: str = wandb.setup(settings).settings.base_url
    return url


def why_unreachable() -> str | None:
    """Return why runs can't be logged to the server; None if they can.

    Looks for the account first, which needs no network.
    """
    from wandb.errors import AuthenticationError
    from wandb.sdk.lib.wbauth import authenticate_session

    try:
        account = authenticate_session(
            host=base_url(), source="moist", prompt=False, update_session=False
        )
    except AuthenticationError as error:
        return f"its API key is not valid: {first_line(error)}"
    if account is None:
        return "there is no W&B account on this machine (`wandb login`)"
    return None if reachable(base_url()) else f"{host()} can't be reached"


def reachable(url: str, timeout: float = TIMEOUT) -> bool:
    """Return whether the server of a URL, or its proxy, accepts connections within `timeout` s."""
    found = urlsplit(url)
    proxy = None if proxy_bypass(found.hostname or "") else getproxies().get(found.scheme)
    found = urlsplit(proxy) if proxy else found
    port = found.port or (80 if found.scheme == "http" else 443)
    connected: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection((found.hostname or "", port), timeout=timeout).close()
        except OSError:
            return
        connected.append(True)

    thread = Thread(target=connect, daemon=True)  # a name look-up has no timeout of its own
    thread.start()
    thread.join(timeout)
    return bool(connected)
