"""A store that several machines share: stage outputs and checkpoints behind a URL.

    URL/moist.json                            the format; written first
        objects/ab/ab12../NAME-CHECKSUM.json, NAME-CHECKSUM.safetensors
                           manifest.json      written last: without it there is no object
        partial/KEY/step-N-CHECKSUM.safetensors
                    newest.json               names the newest checkpoint; written last

Files carry a checksum in their names, so that machines which compute the same key at once replace
none of each other's, and what a manifest names stays whole. Only JSON and safetensors are read,
and nothing is used before it is verified.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from fsspec.config import conf
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from moist import disk
from moist.env import SECONDS
from moist.errors import ConfigError, MoistError, StoreError, first_line, masked_word
from moist.store.checkpoint import NAME
from moist.store.objects import MANIFEST, Damaged, Manifest, ObjectStore, parsed

T = TypeVar("T")

FORMAT, NEWEST = "moist.json", "newest.json"
CONTENT = b'{"moist store": 1}'
FILE = re.compile(r"(?!manifest)\w+\.(json|safetensors)")
"""Names of the files that an object may have."""
PAUSE = 60.0
"""Seconds for which a store that could not be reached is not tried again."""
CHUNK = 1 << 24
PACKAGES = {"s3": "moist[s3]", "s3a": "moist[s3]", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs"}
"""What to install for a protocol."""
CONFIG = {"connect_timeout": 10, "read_timeout": 30, "retries": {"max_attempts": 1}}
OPTIONS: dict[str, dict[str, Any]] = {one: {"config_kwargs": CONFIG} for one in ("s3", "s3a")}
"""Options of a protocol's client that the user has not set: s3fs repeats requests itself."""


class Unreachable(StoreError):
    """A shared store that can't be read or written now; the message says which and why."""


def remote_of(url: str) -> Remote:
    """Return this process's connection to a shared store. Raises ConfigError for a bad URL."""
    return _remote(url, os.getpid())


@cache
def _remote(url: str, _process: int) -> Remote:
    """Connect once a process: clients do not survive a fork."""
    return Remote(url)


def connected(
    url: str | None, write: bool = True, warn: Callable[[str], None] | None = None
) -> Remote | None:
    """Open a shared store and check that it can be used; None without a URL.

    With `write` a new one is created. Raises Unreachable, or only warns if `warn` is given.
    """
    if url is None:
        return None
    remote = remote_of(url)
    try:
        remote.check(write)
    except Unreachable as error:
        if warn is None:
            raise
        remote.paused(error, warn)
    return remote


@contextmanager
def checkpoints_shared(
    home: Path, remote: Remote | None, warn: Callable[[str], None]
) -> Iterator[None]:
    """Copy a home's checkpoints to the shared store when a signal ends this process.

    They are those of workers that were killed, written while the context was open.
    """
    began = time.time()
    try:
        yield
    except KeyboardInterrupt:
        if remote is not None:
            for folder in (home / "partial").glob("*"):
                if folder.stat().st_mtime >= began:
                    remote.attempt(partial(remote.push_checkpoint, folder.name, folder), warn)
        raise


class Remote:
    """The objects and checkpoints of the store at a URL. Methods raise Unreachable."""

    def __init__(self, url: str) -> None:
        self.shown = masked_word(url)
        self._known: dict[str, Manifest] = {}
        self._sent: dict[str, str] = {}
        """Names of the last checkpoints that were pushed or pulled here, by key."""
        self._paused_until = 0.0
        self._warned = set[str]()
        protocol, _, rest = url.partition("://")
        if protocol in PACKAGES and "@" in rest.partition("/")[0]:
            raise ConfigError(
                f"`--store {protocol}://...` has credentials: a URL of {protocol} takes none",
                "set them as its client reads them, as AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY",
            )
        try:
            options = (
                {} if "config_kwargs" in conf.get(protocol, {}) else OPTIONS.get(protocol, {})
            )
            self.fs, self.root = url_to_fs(url, use_listings_cache=False, **options)
        except ImportError:
            raise ConfigError(
                f"`--store {self.shown}` needs a package that is not installed",
                f"`pip install '{PACKAGES.get(protocol, 'fsspec[' + protocol + ']')}'`",
            ) from None
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"`--store {self.shown}` is not a URL of a store: {first_line(error)}",
                "for example s3://BUCKET/moist, gs://BUCKET/moist or a shared folder",
            ) from None

    def attempt(self, action: Callable[[], T], warn: Callable[[str], None]) -> T | None:
        """Return what an action on this store gives; None, with a warning, if it is unreachable.

        Then the store is left alone for a minute, so that an outage delays nothing else.
        """
        if time.monotonic() < self._paused_until:
            return None
        try:
            return action()
        except Unreachable as error:
            self.paused(error, warn)
            return None

    def paused(self, error: Unreachable, warn: Callable[[str], None]) -> None:
        """Leave the store alone for a minute; warn of an error once."""
        self._paused_until = time.monotonic() + PAUSE
        if (text := str(error.args[0])) not in self._warned:
            self._warned.add(text)
            warn(f"{text}; going on without it: what is computed stays in the home folder")

    def check(self, write: bool) -> None:
        """Raise Unreachable unless the store can be read, and with `write` created or used."""
        found = self._read(FORMAT)
        if found is None and write:
            if self._folder is not None:
                with self._reaching():
                    self._folder.mkdir(exist_ok=True)  # a mount that is missing is no new store
            self._write(FORMAT, CONTENT)
        elif found not in (None, CONTENT):
            raise StoreError(
                f"`{self.shown}` is not a store of this version of moist: its `{FORMAT}` differs",
                "name another folder or prefix",
            )

    def manifest(self, key: str) -> Manifest | None:
        """Read an object's manifest; None if there is none. Raises Damaged."""
        if key not in self._known:
            data = self._read(f"{_object(key)}/{MANIFEST}")
            if data is None:
                return None
            manifest = parsed(key, data)
            if odd := [name for name in manifest.files if not FILE.fullmatch(name)]:
                raise Damaged(f"{MANIFEST}: it names a file `{odd[0]}`")
            self._known[key] = manifest
        return self._known[key]

    def pull(self, objects: ObjectStore, key: str) -> Manifest | None:
        """Copy an object to a home, verified; return None if there is none. Needs the key's lock.

        Raises Damaged, and copies nothing, unless every byte is as it was stored.
        """
        manifest = self.manifest(key)
        if manifest is None:
            return None

        def fill(folder: Path) -> None:
            for name, file in manifest.files.items():
                self._fetch(_file(key, name, file.sha256), folder / name, file.bytes)

        try:
            objects.adopt(manifest, fill)
        except Damaged:
            self._known.pop(key)
            raise
        return manifest

    def share(self, objects: ObjectStore, key: str) -> None:
        """Copy an object of a home here, unless there is one whose manifest is intact."""
        with suppress(Damaged):  # it is replaced
            if self.manifest(key) is not None:
                return
        self.push(objects, key)

    def push(self, objects: ObjectStore, key: str) -> None:
        """Copy an object of a home here, in place of one that is there."""
        manifest = objects.manifest(key)
        if manifest is None:  # deleted by another process since
            return
        for name, file in manifest.files.items():
            self._write(_file(key, name, file.sha256), objects.folder(key) / name)
        self._write(f"{_object(key)}/{MANIFEST}", manifest.to_bytes())
        self._known[key] = manifest

    def pull_checkpoint(self, key: str, folder: Path) -> bool:
        """Copy the newest checkpoint of a stage to a folder unless that has it or a newer one.

        Returns whether it was copied. A damaged one is left, to be replaced by the next.
        """
        found = _pointer(self._read(f"{_partial(key)}/{NEWEST}"))
        if found is None:
            return False
        step, name, seconds, size = found
        self._sent[key] = name
        if step <= _newest(folder)[0]:
            return False
        with disk.writing(folder), disk.scratch(folder) as tmp:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                self._fetch(f"{_partial(key)}/{name}", tmp, size)
            except Damaged:
                return False
            if disk.sha256(tmp)[:16] != name.removesuffix(".safetensors")[-16:]:
                return False
            os.rename(tmp, folder / name)
            (folder / SECONDS).write_text(repr(seconds))
        return True

    def push_checkpoint(self, key: str, folder: Path) -> None:
        """Copy the newest checkpoint of a stage here; delete the one that was copied before."""
        name = _newest(folder)[1]
        before = self._sent.get(key)
        if not name or name == before:
            return
        try:
            seconds = float((folder / SECONDS).read_text())
        except (OSError, ValueError):  # only a recorded time depends on it
            seconds = 0.0
        path = folder / name
        about = {"file": name, "seconds": seconds, "bytes": path.stat().st_size}
        self._write(f"{_partial(key)}/{name}", path)
        self._write(f"{_partial(key)}/{NEWEST}", json.dumps(about).encode())
        self._sent[key] = name
        if before:
            self._delete(f"{_partial(key)}/{before}")

    def drop_checkpoint(self, key: str) -> None:
        """Delete the checkpoint of a finished stage, if one was copied from or to here."""
        if name := self._sent.pop(key, None):
            self._delete(f"{_partial(key)}/{NEWEST}")
            self._delete(f"{_partial(key)}/{name}")

    @property
    def client(self) -> str:
        """Return the module of the store's client, which may take seconds to import."""
        return str(type(self.fs).__module__)

    @property
    def _folder(self) -> Path | None:
        """Return the store's folder if it is one of this machine's file systems."""
        return Path(self.root) if isinstance(self.fs, LocalFileSystem) else None

    def _read(self, path: str) -> bytes | None:
        """Read a small file; None if it is missing."""
        with self._reaching():
            try:
                data: bytes = self.fs.cat_file(f"{self.root}/{path}")
                return data
            except FileNotFoundError:
                return None

    def _fetch(self, path: str, target: Path, size: int) -> None:
        """Copy a file of `size` bytes to this machine. Raises Damaged if it is missing or longer.

        The errors of this machine's disk are OSErrors.
        """
        name = target.name
        with self._reaching():
            try:
                source: Any = self.fs.open(f"{self.root}/{path}", "rb")
            except FileNotFoundError:
                raise Damaged(f"{name}: missing") from None
        with source, target.open("wb") as out:
            while True:
                with self._reaching():
                    chunk = source.read(CHUNK)
                if not chunk:
                    return
                if out.tell() + len(chunk) > size:
                    raise Damaged(f"{name}: more than the {size} bytes that were stored")
                out.write(chunk)

    def _write(self, path: str, content: bytes | Path) -> None:
        """Write a file, such that a reader finds it whole or not at all."""
        folder = self._folder
        with self._reaching():
            if folder is not None:
                target = folder / path
                folder.stat()  # if it is gone, its file system is: do not create it elsewhere
                target.parent.mkdir(parents=True, exist_ok=True)
                with disk.scratch(target.parent) as tmp:
                    if isinstance(content, Path):
                        shutil.copyfile(content, tmp)
                    else:
                        tmp.write_bytes(content)
                    disk.install(tmp, target)
            elif isinstance(content, Path):
                self.fs.put_file(str(content), f"{self.root}/{path}")
            else:
                self.fs.pipe_file(f"{self.root}/{path}", content)

    def _delete(self, path: str) -> None:
        with self._reaching(), suppress(FileNotFoundError):
            self.fs.rm_file(f"{self.root}/{path}")

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Turn all errors of a client into Unreachable: those of S3 and others share no class."""
        try:
            yield
        except MoistError:
            raise
        except Exception as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            raise Unreachable(
                f"can't reach the store `{self.shown}`: {reason}",
                "is the server up, the bucket or folder there, and are you allowed to use it?",
            ) from error


def _object(key: str) -> str:
    return f"objects/{key[:2]}/{key}"


def _partial(key: str) -> str:
    return f"partial/{key}"


def _file(key: str, name: str, checksum: str) -> str:
    stem, _, suffix = name.rpartition(".")
    return f"{_object(key)}/{stem}-{checksum[:16]}.{suffix}"


def _newest(folder: Path) -> tuple[int, str]:
    """Return the step and name of the newest checkpoint in a folder; -1 and no name if none."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    found = [(int(match[1]), match[0]) for name in names if (match := NAME.fullmatch(name))]
    return max(found, default=(-1, ""))


def _pointer(data: bytes | None) -> tuple[int, str, float, int] | None:
    """Parse which checkpoint is the newest: step, name, seconds, bytes; None if unreadable."""
    try:
        about = json.loads(data or b"")
        match = NAME.fullmatch(about["file"])
        return (
            (int(match[1]), match[0], float(about["seconds"]), int(about["bytes"]))
            if match
            else None
        )
    except (ValueError, KeyError, TypeError):
        return None
