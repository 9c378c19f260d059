"""A digest of raw files by name and content, remembered as long as the files stay untouched."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from moist.disk import write_atomically, writing
from moist.errors import DataError


@dataclass(frozen=True)
class File:
    """A raw file by its path below the root, and what changes when its content does."""

    name: str
    stat: tuple[int, int, int]

    @classmethod
    def of(cls, name: str, stat: os.stat_result) -> File:
        # The change time also sees a file replaced under its old modification time.
        return cls(name, (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))


def fingerprint(root: Path, files: list[File], signature: str, home: Path) -> str:
    """A digest of names and contents, read again only when the files' `signature` has changed."""
    place = sha(os.fsencode(root.resolve()))
    memo = home / "data" / "fingerprints" / f"{place}.json"
    content = _recall(memo, signature)
    if content is None:
        content = _digest(root, files)
        _remember(memo, signature, content)
    return content


def signed(files: list[File]) -> str:
    """A digest of names, sizes and times: what changes when a file is touched."""
    lines = sorted(f"{file.name} {file.stat}" for file in files)
    return sha("\n".join(lines).encode(errors="surrogateescape"))


def _digest(root: Path, files: list[File]) -> str:
    total = hashlib.sha256()
    for name in sorted(file.name for file in files):
        total.update(os.fsencode(f"{name}\n{sha(read(root / name))}\n"))
    return total.hexdigest()


def _recall(memo: Path, signature: str) -> str | None:
    """What was remembered for these files, unless it is absent, of other files or damaged."""
    try:
        found = json.loads(memo.read_bytes())
        content = str(found["content"])
        intact = found["check"] == sha((signature + content).encode())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return content if intact else None


def _remember(memo: Path, signature: str, content: str) -> None:
    check = sha((signature + content).encode())
    with writing(memo.parent):
        memo.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(memo, json.dumps({"content": content, "check": check}).encode())


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"can't read `{path}`: {error.strerror}") from None


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def stated(name: str, entry: os.DirEntry[str] | Path) -> File:
    try:
        return File.of(name, entry.stat())
    except OSError as error:
        raise DataError(f"can't read `{os.fspath(entry)}`: {error.strerror}") from None
