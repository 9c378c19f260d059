"""Client processes: scripts and `wandb` commands that know the stand-in and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import forked
from forked import Forked

from wandb_standin.server import Server


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
        return self._done("-c", code).stdout

    def wandb(self, *arguments: str) -> str:
        """All that a `wandb` command says: most of it is on stderr."""
        done = self._done("-m", "wandb", *arguments)
        return done.stdout + done.stderr

    def sweep(self, config: str) -> str:
        """`wandb sweep` of a YAML text: the sweep's path."""
        (self.home / "sweep.yaml").write_text(config)
        said = self.wandb("sweep", "sweep.yaml")
        return said.partition("wandb agent ")[2].split()[0]

    def background(self, *arguments: str) -> Forked:
        """A `wandb` command beside the test; killed if it is still there at the end."""
        return Forked(["-m", "wandb", *arguments], env=self.environment, cwd=self.home)

    def _done(self, *words: str) -> subprocess.CompletedProcess[str]:
        done = forked.run(words, env=self.environment, cwd=self.home)
        if done.returncode:
            raise AssertionError(f"{words} ended with {done.returncode}:\n{done.stderr}")
        return done
