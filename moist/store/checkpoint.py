"""Values as files: artifacts in their folder, and checkpoints of a stage that has not finished.

A checkpoint is one safetensors file; the JSON part of the state lies in the file's metadata. Its
name carries a checksum of the content, so that a damaged one is never continued from.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from moist import disk
from moist.env import SECONDS
from moist.errors import StoreError, first_line
from moist.results import report
from moist.store.artifacts import NotFinite, pack, unpack
from moist.store.objects import Damaged, Manifest, ObjectStore

JSON, TENSORS = "artifact.json", "tensors.safetensors"
NAME = re.compile(r"step-(\d+)-([0-9a-f]{16})\.safetensors")

RECORDS = {
    name: value
    for name, value in vars(report).items()
    if isinstance(value, type) and issubclass(value, report.Record)
}


def save(folder: Path | None, state: Any, step: int) -> None:
    """Store a state of tensors, JSON values, rows and dicts of these, in place of older ones.

    Lists come back as tuples. Stores nothing if `folder` is None. Raises StoreError when the
    disk can't be written to; the previous checkpoint is still there then.
    """
    if folder is None:
        return
    tree, tensors = pack(state)
    with disk.writing(folder), disk.scratch(folder) as tmp:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(tmp, tensors, {"tree": json.dumps(tree)})
        name = f"step-{step:06d}-{disk.sha256(tmp)[:16]}.safetensors"
        disk.install(tmp, folder / name)
    for path in folder.iterdir():
        if path.name not in {name, SECONDS}:
            path.unlink()


def load(folder: Path | None, warn: Callable[[str], None]) -> tuple[int, Any] | None:
    """Return the step and state of the newest intact checkpoint; None if there is none.

    Deletes damaged ones, with a warning for each.
    """
    if folder is None or not folder.is_dir():
        return None
    found = [match for path in folder.iterdir() if (match := NAME.fullmatch(path.name))]
    for match in sorted(found, key=lambda match: int(match[1]), reverse=True):
        path = folder / match[0]
        if disk.sha256(path)[:16] == match[2]:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}
                return int(match[1]), unpack(json.loads(file.metadata()["tree"]), tensors, {})
        warn(f"checkpoint `{path}` is damaged; continuing without it")
        path.unlink()
    return None


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors as safetensors; those that share memory (views, tied weights) each in full."""
    seen: set[int] = set()
    separate: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        address = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    save_file(separate, path, metadata)


def write_artifact(folder: Path, value: Any) -> None:
    """Write an artifact's two files. Raises TypeError for values that can't be read back."""
    tree, tensors = pack(value)
    try:
        unpack(tree, tensors, RECORDS)
    except KeyError as error:
        raise TypeError(f"{error} is not an artifact") from None
    (folder / JSON).write_text(json.dumps(tree))
    write_tensors(folder / TENSORS, tensors)
    # safetensors creates files that only their owner can read
    shutil.copymode(folder / JSON, folder / TENSORS)


def verified(objects: ObjectStore, key: str) -> Manifest | None:
    """Verify an object's bytes, and that its numbers are finite, as earlier versions did not.

    Returns its manifest, or None if nothing is stored. Raises Damaged.
    """
    manifest = objects.check(key)
    if manifest is not None:
        try:
            folder = objects.folder(key)
            pack([json.loads((folder / JSON).read_text()), load_file(folder / TENSORS)])
        except NotFinite as error:
            raise Damaged(str(error)) from None
    return manifest


def read_artifact(folder: Path) -> Any:
    """Read the artifact in a folder; its tensors are memory-mapped, and read when used."""
    tree = json.loads((folder / JSON).read_text())
    tensors = load_file(folder / TENSORS)
    try:
        return unpack(tree, tensors, RECORDS)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"`{folder}` was written by another version of moist: {first_line(error)}",
            "`moist cache clear` deletes it, to be computed again",
        ) from error
