"""Client processes: scripts and `wandb` commands that know the stand-in and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wandb_standin.server import Server

PATIENCE = 90
"""Seconds after which a client is taken to hang, and killed."""


class Client:
    """Where clients run: the folder `home`, with no variable of W&B's but the stand-in's.

    `more` are further variables: `WANDB_MODE="offline"`, `WANDB_PROJECT="p"`.
    """

    def __init__(self, server: Server, home: Path, **more: str) -> None:
        self.home = home
        kept = {key: text for key, text in os.environ.items() if not key.startswith("WANDB")}
        path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
        self.environment = kept | server.environment(home) | {"PATH": path} | more

    def python(self, code: str) -> str:
        """What a script prints."""
        return self._done([sys.executable, "-c", code]).stdout

    def wandb(self, *arguments: str) -> str:
        """All that a `wandb` command says: most of it is on stderr."""
        done = self._done([sys.executable, "-m", "wandb", *arguments])
        return done.stdout + done.stderr

    def sweep(self, config: str) -> str:
        """`wandb sweep` of a YAML text: the sweep's path."""
        (self.home / "sweep.yaml").write_text(config)
        said = self.wandb("sweep", "sweep.yaml")
        return said.partition("wandb agent ")[2].split()[0]

    @contextmanager
    def background(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """A `wandb` command beside the test; killed if it is still there at the end."""
        command = [sys.executable, "-m", "wandb", *arguments]
        with (self.home / f"{arguments[0]}.log").open("ab") as log:
            process = subprocess.Popen(
                command, env=self.environment, cwd=self.home, stdout=log, stderr=log
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def _done(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, env=self.environment, cwd=self.home, capture_output=True, text=True,
            timeout=PATIENCE,
        )  # fmt: skip
        if done.returncode:
            raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stderr}")
        return done
