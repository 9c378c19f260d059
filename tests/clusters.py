"""A Ray cluster of two nodes on this machine, in a process of its own, that can lose a node."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from moist.study.cluster import SETTINGS

CODE = """
import sys
from ray.cluster_utils import Cluster
# a busy machine answers late, and a driver ends with the node that it is connected to
quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000}
quick["health_check_failure_threshold"] = 10
sizes = {"num_cpus": 2, "object_store_memory": 80_000_000}
head = {**sizes, "include_dashboard": False, "_system_config": quick}
cluster = Cluster(True, head_node_args=head)
nodes = [cluster.add_node(**sizes)]
print(cluster.address, flush=True)
for word in sys.stdin:
    if word == "remove\\n":
        cluster.remove_node(nodes.pop(), allow_graceful=False)
    else:
        nodes.append(cluster.add_node(**sizes))
    print("done", flush=True)
cluster.shutdown()
"""


class Cluster:
    """Two nodes of two CPUs, at `address`; use as a context. Who knows its token is set."""

    def __init__(self, patched: pytest.MonkeyPatch) -> None:
        for name, value in {**SETTINGS, "RAY_AUTH_TOKEN": "0123456789abcdef" * 2}.items():
            patched.setenv(name, value)

    def __enter__(self) -> Cluster:
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}  # workers inherit it
        self.process = subprocess.Popen(
            [sys.executable, "-c", CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=env, text=True,
        )  # fmt: skip
        self.address = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.communicate()
        for one in family:
            if one.is_running():
                one.kill()

    def remove(self) -> None:
        """Kill all processes of the node on which no driver runs."""
        self._send("remove")

    def add(self) -> None:
        self._send("add")

    def _send(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        assert self._read() == "done"

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()
