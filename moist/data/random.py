"""The random streams of a run: each has a name, and drawing from one does not affect another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, *parts: object) -> int:
    """Return the seed of the stream with a name of these parts: 63 bits of SHA-256."""
    digest = hashlib.sha256(json.dumps([seed, *map(str, parts)]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *parts: object) -> torch.Generator:
    """Return a CPU generator for the stream with a name of these parts."""
    return torch.Generator().manual_seed(derive(seed, *parts))


@contextmanager
def seeded(seed: int, *parts: object) -> Iterator[None]:
    """Draw torch's random numbers from a named stream; leave the global ones untouched."""
    initialized = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(range(torch.cuda.device_count()) if initialized else ()):
        torch.manual_seed(derive(seed, *parts))
        yield
