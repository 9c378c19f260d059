"""A digest of raw files by name and content, cached as long as the files are not touched."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from stat import S_ISREG

from moist.disk import write_atomically, writing
from moist.errors import DataError


@dataclass(frozen=True)
class File:
    """A raw file: its path below the root, and its size and times (ns), which show changes."""

    name: str
    stat: tuple[int, int, int]


@dataclass(frozen=True)
class Content:
    """A digest of names and contents; `copies` has, by name, the first file of equal content."""

    key: str
    copies: dict[str, str]


def fingerprint(
    root: Path, files: list[File], signature: str, home: Path, write: bool = True
) -> Content:
    """Digest names and contents; read files only if their `signature` has changed.

    It is cached in the home folder; with `write=False` a new one is for this process alone.
    """
    folder = digest(os.fsencode(root.resolve()))
    cache = home / "data" / "fingerprints" / f"{folder}.json"
    content = _cached(cache, signature)
    if content is None:
        content = _content(root, tuple(sorted(file.name for file in files)), signature)
        if write:
            _store(cache, signature, content)
    return content


@lru_cache(maxsize=8)
def _content(root: Path, names: tuple[str, ...], signature: str) -> Content:
    """Read and digest files, once a process for each `signature` of them."""
    total, first, copies = hashlib.sha256(), dict[str, str](), dict[str, str]()
    for name in names:
        one = digest(read(root / name))
        total.update(os.fsencode(f"{name}\n{one}\n"))
        if (original := first.setdefault(one, name)) != name:
            copies[name] = original
    return Content(total.hexdigest(), copies)


def signature_of(files: list[File]) -> str:
    """Return a digest of names, sizes and times, which changes when a file is touched."""
    lines = sorted(f"{file.name} {file.stat}" for file in files)
    return digest("\n".join(lines).encode(errors="surrogateescape"))


def _cached(cache: Path, signature: str) -> Content | None:
    """Return the cached digest; None if it is missing, damaged, or of other files."""
    try:
        found = json.loads(cache.read_bytes())
        content = Content(found["content"], found["copies"])
        intact = found["check"] == _check(signature, content)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return content if intact else None


def _store(cache: Path, signature: str, content: Content) -> None:
    found = {"content": content.key, "copies": content.copies}
    text = json.dumps({**found, "check": _check(signature, content)})
    with writing(cache.parent):
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cache, text.encode())


def _check(signature: str, content: Content) -> str:
    return digest(json.dumps([signature, content.key, content.copies]).encode())


def read(path: Path) -> bytes:
    """Read a raw file. Raises DataError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"can't read `{path}`: {error.strerror}") from None


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def stat(name: str, entry: os.DirEntry[str] | Path) -> File:
    """Describe a raw file. Raises DataError."""
    try:
        found = entry.stat()
    except OSError as error:
        raise DataError(f"can't read `{os.fspath(entry)}`: {error.strerror}") from None
    if not S_ISREG(found.st_mode):  # reading a pipe would wait for ever
        raise DataError(f"`{os.fspath(entry)}` is no regular file", "remove it")
    # The change time also sees a file replaced under its old modification time.
    return File(name, (found.st_size, found.st_mtime_ns, found.st_ctime_ns))
