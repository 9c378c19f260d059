"""A worker computes what it can, and defers what others compute and all that depends on it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from forked import Forked

from moist.env import Env, Silent
from moist.errors import StageError, StoreError
from moist.stages import stage
from moist.store import artifacts
from moist.store.calls import Ref
from moist.store.maintenance import clear
from moist.store.nonblocking import Deferred, NonBlockingStore
from moist.store.objects import ObjectStore
from moist.store.plan import Plan
from moist.store.store import Store

TIMEOUT = 120.0
HOLDER = """
import signal, sys
from pathlib import Path
from moist.store.objects import ObjectStore
with ObjectStore(Path(sys.argv[1])).locked(sys.argv[2]):
    print("locked", flush=True)
    signal.pause()
"""
"""A process that holds the lock of a key until it is killed."""

GO, BEGUN = threading.Event(), threading.Event()


@stage(version=1)
def drawn(env: Env, *, seed: int, log: str) -> artifacts.Logits:
    with open(log, "a") as file:
        file.write(f"drawn {seed}\n")
    return artifacts.Logits(torch.full((4,), float(seed)))


@stage(version=1)
def added(
    env: Env, *, some: tuple[artifacts.Logits, ...], log: str, slow: bool = False
) -> artifacts.Logits:
    with open(log, "a") as file:
        file.write(f"added {len(some)}\n")
    if slow:
        BEGUN.set()
        assert GO.wait(TIMEOUT)
    return artifacts.Logits(sum(one.train_VNC for one in some))


class Warnings(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warned(self, message: str) -> None:
        self.warnings.append(message)


def opened(home: Path, kind: type[Store] = NonBlockingStore) -> Store:
    return kind(home, Env(torch.device("cpu"), Warnings()))


def graph(store: Store) -> dict[str, Ref]:
    """a and b are drawn; c needs a, d needs b, e needs c and d."""
    log = str(store.home / "log")
    a, b = (store.call(drawn, seed=seed, log=log) for seed in (1, 2))
    c = store.call(added, some=(a,), log=log)
    d = store.call(added, some=(b, b), log=log)
    e = store.call(added, some=(c, d, c), log=log)
    return {"a": a, "b": b, "c": c, "d": d, "e": e}


def names(store: Store, keys: set[str] | list[str]) -> str:
    by_key = {ref.key: name for name, ref in graph(opened(store.home, Plan)).items()}
    return "".join(sorted(by_key[key] for key in keys))


def computed(store: Store) -> str:
    """Name what it computed, neither reused nor deferred."""
    calls = [one for one in store.calls if not one.reused and one.seconds is not None]
    return names(store, [one.key for one in calls])


@contextmanager
def held(home: Path, key: str) -> Iterator[None]:
    """Have another process hold the lock of a key."""
    with Forked(["-c", HOLDER, home, key]) as process:
        process.until(lambda: process.out == "locked\n")
        yield


@pytest.mark.parametrize(
    ("one", "deferred"), [("a", "ace"), ("b", "bde"), ("c", "ce"), ("e", "e")]
)
def test_what_another_computes_is_deferred_with_all_that_needs_it_and_no_more(
    tmp_path, one, deferred
):
    store = opened(tmp_path)
    with held(tmp_path, graph(opened(tmp_path, Plan))[one].key):
        found = graph(store)
    assert names(store, store.locked) == one and names(store, store.deferred) == deferred
    assert computed(store) == "".join(sorted(set("abcde") - set(deferred)))
    for name in "abcde":
        if name in deferred:
            with pytest.raises(StoreError, match="another process"):
                _ = found[name].value
        else:
            assert isinstance(found[name].value, artifacts.Logits)
    assert store.env.progress.warnings == []


def test_once_it_is_free_the_rest_is_computed_and_nothing_twice(tmp_path):
    with held(tmp_path, graph(opened(tmp_path, Plan))["a"].key):
        first = opened(tmp_path)
        graph(first)
    second, third = opened(tmp_path), opened(tmp_path)
    assert float(graph(second)["e"].value.train_VNC[0]) == 1 + 2 * 2 + 1
    assert (computed(first), computed(second)) == ("bd", "ace")
    graph(third)
    assert computed(third) == "" and third.deferred == set() and third.locked == []
    assert len((tmp_path / "log").read_text().splitlines()) == 5


def test_what_is_stored_is_reused_even_if_another_holds_its_lock(tmp_path):
    keys = {name: ref.key for name, ref in graph(opened(tmp_path)).items()}
    store = opened(tmp_path)
    with held(tmp_path, keys["a"]):
        graph(store)
    assert store.deferred == set() and all(call.reused for call in store.calls)


def test_what_is_cleared_while_another_computes_it_is_deferred(tmp_path):
    store = opened(tmp_path)
    found = graph(store)
    clear(ObjectStore(tmp_path))
    with held(tmp_path, found["c"].key):
        with pytest.raises(Deferred, match="another process") as caught:
            _ = found["c"].value
        assert caught.value.locked == [found["c"].key]
        with pytest.raises(Deferred):
            store.check()
    opened(tmp_path).check()


def test_a_damaged_output_is_computed_again_unless_another_does(tmp_path):
    keys = {name: ref.key for name, ref in graph(opened(tmp_path)).items()}
    (ObjectStore(tmp_path).folder(keys["c"]) / "tensors.safetensors").write_bytes(b"")
    beside, after = opened(tmp_path), opened(tmp_path)
    with held(tmp_path, keys["c"]):
        graph(beside)
    assert names(beside, beside.deferred) == "ce" and computed(beside) == ""
    assert not (tmp_path / "quarantine").exists()
    graph(after)
    assert computed(after) == "c" and after.deferred == set()
    assert len(list((tmp_path / "quarantine").iterdir())) == 1


def test_two_workers_at_once_share_the_work_and_never_wait(tmp_path):
    """The first is in a stage that ends once the second has computed all that it can."""
    GO.clear(), BEGUN.clear()
    log = str(tmp_path / "log")

    def slow(store: Store) -> Ref:
        a = store.call(drawn, seed=1, log=log)
        return store.call(added, some=(a,), log=log, slow=True)

    first, second = opened(tmp_path), opened(tmp_path)
    thread = threading.Thread(target=slow, args=(first,))
    thread.start()
    assert BEGUN.wait(TIMEOUT)
    of_it = second.call(added, some=(slow(second),), log=log)
    other = second.call(drawn, seed=5, log=log)
    assert second.deferred == {*second.locked, of_it.key} and len(second.locked) == 1
    assert float(other.value.train_VNC[0]) == 5
    GO.set()
    thread.join(TIMEOUT)
    third = opened(tmp_path)
    value = third.call(added, some=(slow(third),), log=log).value
    assert float(value.train_VNC[0]) == 1 and third.deferred == set()
    lines = ["drawn 1", "added 1", "drawn 5", "added 1"]
    assert (tmp_path / "log").read_text().splitlines() == lines


def test_a_failure_is_raised_and_leaves_the_key_free(tmp_path):
    @stage(version=1)
    def failing(env: Env, *, seed: int) -> artifacts.Logits:
        raise StageError("no luck")

    for _ in range(2):
        with pytest.raises(StageError, match="no luck"):
            opened(tmp_path).call(failing, seed=1)
