"""What the stand-in knows of: plain Python, for a test to read at any time."""

from __future__ import annotations

import json
import random
from base64 import urlsafe_b64encode
from collections import defaultdict, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

ENTITY = "tester"
"""Who everyone is that doesn't say."""
HISTORY, EVENTS, SUMMARY, OUTPUT = (
    "wandb-history.jsonl",
    "wandb-events.jsonl",
    "wandb-summary.json",
    "output.log",
)
Key = tuple[str, str, str]
"""Entity, project and name."""


class Refused(Exception):
    """What the real server would refuse too, so no violation: an HTTP status and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def now() -> str:
    return datetime.now(UTC).isoformat()


def identity(kind: str, *names: str) -> str:
    """The id of a thing in the database, in the real server's form."""
    return urlsafe_b64encode(":".join([kind, "v1", *names]).encode()).decode()


@dataclass
class Run:
    """A run, as far as it has been told."""

    entity: str
    project: str
    name: str
    display_name: str = ""
    wrapped: dict[str, Any] = field(default_factory=dict)
    """The config as W&B keeps it: `{"lr": {"value": 0.1}, "_wandb": ...}`."""
    summary: dict[str, Any] = field(default_factory=dict)
    group: str | None = None
    job_type: str | None = None
    tags: list[str] = field(default_factory=list)
    notes: str | None = None
    description: str | None = None
    commit: str | None = None
    sweep: str | None = None
    state: str = "running"
    """`pending`, `running`, `finished`, `failed`, `crashed` or `killed`."""
    exit_code: int | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    stop: bool = False
    """Whether someone asked for it to stop."""
    lines: dict[str, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))
    """The file stream: lines by file and offset, so that what is sent twice is there once."""
    created_at: str = field(default_factory=now)
    heartbeat_at: str = field(default_factory=now)

    @property
    def id(self) -> str:
        return identity("Run", self.name, self.project, self.entity)

    @property
    def key(self) -> Key:
        return self.entity, self.project, self.name

    @property
    def config(self) -> dict[str, Any]:
        """The config as it was given to `wandb.init`."""
        return {
            key: held["value"] if isinstance(held, dict) and "value" in held else held
            for key, held in self.wrapped.items()
            if key != "_wandb"
        }

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream(HISTORY)]

    @property
    def output(self) -> list[str]:
        return self.stream(OUTPUT)

    def stream(self, file: str) -> list[str]:
        """The lines of one file of the file stream, in order."""
        return [line for _, line in sorted(self.lines[file].items())]


@dataclass
class Sweep:
    """A sweep: its config, where it stands, and the runs it has handed out."""

    entity: str
    project: str
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    """The config as YAML, as it came."""
    state: str = "RUNNING"
    """`RUNNING`, `PAUSED`, `FINISHED`, `STOPPED` or `CANCELED`."""
    started: list[str] = field(default_factory=list)
    """The names of the runs that agents were told to start, in order."""
    queue: deque[str] = field(default_factory=deque)
    """The names of the runs that a scheduler has in line."""
    description: str | None = None
    display_name: str | None = None
    controller: str | None = None
    scheduler: str | None = None
    created_at: str = field(default_factory=now)

    def __post_init__(self) -> None:
        self.random = random.Random(self.name)

    @property
    def id(self) -> str:
        return identity("Sweep", self.name, self.project, self.entity)


@dataclass
class Agent:
    """A process that runs what a sweep tells it to."""

    id: str
    host: str
    sweep: Sweep
    given: list[str] = field(default_factory=list)
    """The names of the runs that it was told to start."""


@dataclass
class Artifact:
    """A version of an artifact, and its files with their bytes."""

    entity: str
    project: str
    name: str
    type: str
    version: int
    digest: str
    id: str
    run: str | None = None
    aliases: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    manifest: dict[str, bytes] = field(default_factory=dict)
    metadata: str | None = None
    description: str | None = None
    algorithm: str | None = None
    state: str = "PENDING"
    used_by: list[str] = field(default_factory=list)
    created_at: str = field(default_factory=now)


@dataclass
class View:
    """A saved workspace (type `project-view`) or report (`runs`, `runs/draft`)."""

    id: str
    entity: str
    project: str
    name: str = ""
    display_name: str = ""
    type: str = ""
    description: str = ""
    spec: dict[str, Any] = field(default_factory=dict)
    created_at: str = field(default_factory=now)
