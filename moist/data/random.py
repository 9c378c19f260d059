"""A run's random streams: each is named by its parts, and drawing from one disturbs no other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, *parts: object) -> int:
    """The seed of one of a run's random streams, named by its parts: 63 bits of SHA-256."""
    digest = hashlib.sha256(json.dumps([seed, *map(str, parts)]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *parts: object) -> torch.Generator:
    """A CPU generator of the stream that the parts name."""
    return torch.Generator().manual_seed(derive(seed, *parts))


@contextmanager
def seeded(seed: int, *parts: object) -> Iterator[None]:
    """Draw torch's random numbers from a stream of their own; leave the global ones untouched."""
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(range(torch.cuda.device_count()) if started else ()):
        torch.manual_seed(derive(seed, *parts))
        yield
