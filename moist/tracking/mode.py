"""Whether W&B gets runs on its server, in files here, or not at all: decided once, and said.

An explicit flag decides; else WANDB_MODE; else runs go to the server if there is an account for
it and it can be reached, and into files that `moist sync` sends later if not.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from threading import Thread
from typing import Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from moist.errors import ConfigError, first_line

Name = Literal["online", "offline", "off"]
FLAGS = ("auto", "online", "offline", "off")
MEANT: dict[str, Name] = {
    "online": "online", "run": "online", "shared": "online", "offline": "offline",
    "dryrun": "offline", "disabled": "off", "off": "off",
}  # fmt: skip
"""What a flag or WANDB_MODE means."""

PATIENCE = 2.0
"""Seconds in which a server must answer; name servers that are gone take far longer."""


@dataclass(frozen=True)
class Mode:
    """Where runs go, and why there."""

    name: Name
    why: str


def decide(flag: str = "auto") -> Mode:
    """Where this process and all that it starts sends its runs.

    Raises ConfigError when the server is asked for and there is no account or no way to it.
    """
    asked, by = (flag, "--wandb") if flag != "auto" else (_environment(), "WANDB_MODE")
    if asked in MEANT and MEANT[asked] != "online":
        return Mode(MEANT[asked], f"as {by} says")
    why = hindrance()
    if why is None:
        return Mode("online", "as " + by + " says" if asked else f"with your account at {host()}")
    if asked:
        raise ConfigError(
            f"`{by}={asked}` asks for W&B's server, but {why}",
            "`--wandb offline` keeps runs here, and `moist sync` sends them later",
        )
    return Mode("offline", why)


def _environment() -> str:
    """WANDB_MODE; empty when it leaves the choice open."""
    asked = os.environ.get("WANDB_MODE", "")
    if asked and asked not in MEANT:
        raise ConfigError(
            f"`WANDB_MODE={asked}` is none of W&B's modes", "set online, offline or disabled"
        )
    if not asked:
        os.environ.pop("WANDB_MODE", None)  # wandb takes no empty one
    return asked


def host() -> str:
    """The server's name, and its port if it is unusual."""
    return urlsplit(base_url()).netloc


def base_url() -> str:
    """The server that wandb is set to."""
    import wandb

    url: str = wandb.setup(wandb.Settings(silent=True)).settings.base_url  # errors are ours to say
    return url


def hindrance() -> str | None:
    """What keeps runs from the server; None if nothing does. Looks for the account first, which
    needs no network."""
    from wandb.errors import AuthenticationError
    from wandb.sdk.lib.wbauth import authenticate_session

    try:
        account = authenticate_session(
            host=base_url(), source="moist", prompt=False, update_session=False
        )
    except AuthenticationError as error:
        return f"its key can't be right: {first_line(error)}"
    if account is None:
        return "there is no W&B account on this machine (`wandb login`)"
    return None if reachable(base_url()) else f"{host()} can't be reached"


def reachable(url: str, patience: float = PATIENCE) -> bool:
    """Whether somebody listens at a URL, or at its proxy, found within `patience` seconds."""
    found = urlsplit(url)
    proxy = None if proxy_bypass(found.hostname or "") else getproxies().get(found.scheme)
    found = urlsplit(proxy) if proxy else found
    port = found.port or (80 if found.scheme == "http" else 443)
    answered: list[bool] = []

    def ask() -> None:
        try:
            socket.create_connection((found.hostname or "", port), timeout=patience).close()
        except OSError:
            return
        answered.append(True)

    asking = Thread(target=ask, daemon=True)  # looking a name up can't be given a limit
    asking.start()
    asking.join(patience)
    return bool(answered)
