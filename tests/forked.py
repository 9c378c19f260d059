"""Python processes that are forked from one that has imported everything.

Most of a tiny run is imports. `Forked(words)` starts what `subprocess.Popen([sys.executable,
*words])` does, five seconds of a core sooner: words, environment, folder, standard streams,
signals and exit code are the process's own, and it leads a session. One server forks for all
workers of a test session. As a script, this file is an interpreter for programs that start
`moist` themselves.

Only the standard library is imported here, so that such a script starts at once.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import importlib
import json
import os
import runpy
import select
import selectors
import shlex
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from multiprocessing import util
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")

MOIST = ("-c", "from moist.__main__ import main; main()")
"""The command line, as words for an interpreter."""
PRELOAD = (
    "moist.cli.main",
    "moist.study.preload",
    "moist.study.workers",
    "torch._dynamo",
    "optuna.storages._rdb.models",
    "sqlalchemy.dialects.sqlite",
    "alembic.config",
    "alembic.context",
    "alembic.script",
    "wandb.cli.cli",
    "wandb.wandb_agent",
    "s3fs",
)
ROUND = 0.2
"""Seconds of each round of a W&B agent, which looks after its runs and waits; its own are 5."""
SERVER = "MOIST_TESTS_SERVER"
"""The environment variable with the path of the server's socket."""
PATIENCE = 240.0
MOST_STREAMS = 16


# the server


class Server:
    """Forks a process for each connection, reports its exit code, and kills it if the connection
    is closed before. Ends with the last of the processes that use it."""

    def __init__(self, address: str) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(address)
        self.listener.listen()
        self.ended, self.wakes = socket.socketpair()
        self.wakes.setblocking(False)
        self.selector = selectors.DefaultSelector()
        self.children: dict[int, socket.socket] = {}
        self.users: list[Any] = [sys.stdin]
        for one in (*self.users, self.listener, self.ended):
            self.selector.register(one, selectors.EVENT_READ)

    def run(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wakes.fileno())
        while self.users:
            for key, _ in self.selector.select():
                if key.fileobj is self.listener:
                    self.accept(self.listener.accept()[0])
                elif key.fileobj is self.ended:
                    self.ended.recv(4096)
                    self.reap()
                else:
                    self.abandon(key.fileobj)

    def accept(self, connection: socket.socket) -> None:
        head, streams, _, _ = socket.recv_fds(connection, 4, MOST_STREAMS)
        (size,) = struct.unpack("!i", head)
        self.selector.register(connection, selectors.EVENT_READ)
        if size:
            self.fork(connection, streams, *json.loads(received(connection, size)))
        else:
            self.users.append(connection)

    def fork(
        self, connection: socket.socket, streams: list[int], words: list[str],
        env: dict[str, str], cwd: str, numbers: list[int], blocked: list[int],
    ) -> None:  # fmt: skip
        pid = os.fork()
        if pid == 0:
            self.leave(connection)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            take_streams(streams, numbers)
            become(words, env, cwd)
        for stream in streams:
            os.close(stream)
        self.children[pid] = connection
        with suppress(OSError):
            connection.sendall(struct.pack("!i", pid))

    def leave(self, connection: socket.socket) -> None:
        """Close, in a child, what belongs to the server."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.selector.close()
        own = (self.listener, self.ended, self.wakes, *self.users[1:])
        for one in (*own, connection, *self.children.values()):
            one.close()

    def abandon(self, connection: Any) -> None:
        self.selector.unregister(connection)
        if connection in self.users:
            self.users.remove(connection)
        for pid, one in self.children.items():
            if one is connection:
                os.kill(pid, signal.SIGKILL)

    def reap(self) -> None:
        for pid in [*self.children]:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                connection = self.children.pop(pid)
                with suppress(KeyError):  # when it was abandoned
                    self.selector.unregister(connection)
                with suppress(OSError), connection:
                    connection.sendall(struct.pack("!i", os.waitstatus_to_exitcode(status)))


def take_streams(streams: Sequence[int], numbers: Sequence[int]) -> None:
    """Give the received streams the numbers that they had; the first three are standard."""
    aside = [fcntl.fcntl(stream, fcntl.F_DUPFD, 200) for stream in streams]
    for stream in streams:
        os.close(stream)
    for stream, number in zip(aside, numbers, strict=True):
        os.dup2(stream, number)
        os.close(stream)
    for one in (sys.stdout, sys.stderr):  # what was imported may have wrapped these
        one.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def become(words: list[str], env: dict[str, str], cwd: str) -> None:
    """Be, in a fork, the interpreter that was started with these words; does not return."""
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    util.spawnv_passfds = spawned  # type: ignore[attr-defined]
    forget_exits()
    code = exit_code(lambda: execute(words))
    with suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def forget_exits() -> None:
    """Leave to the server what it is to do at its exit, as to remove its temporary folders."""
    atexit._clear()
    for one in [*weakref.finalize._registry]:  # type: ignore[attr-defined]
        one.atexit = False
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
    atexit.register(util._exit_function)  # type: ignore[attr-defined]


def exit_code(call: Callable[[], None]) -> int:
    """Return the exit code of an interpreter that executes this."""
    try:
        call()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        return -signal.SIGINT
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def execute(words: list[str]) -> None:
    """Execute `-c CODE ...` or `-m MODULE ...` as `__main__`."""
    kind, what, *rest = words
    sys.argv = [kind, *rest]
    if kind == "-m":
        sys.path.insert(0, os.getcwd())
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.modules["__main__"] = module = ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), module.__dict__)


SPAWN = util.spawnv_passfds


def spawned(path: bytes, args: Sequence[Any], kept: Sequence[int]) -> int:
    """Start an interpreter for multiprocessing: fork it, if it is to fork workers in its turn."""
    if "forkserver" not in args[-1] or (pid := os.fork()):
        return pid if "forkserver" in args[-1] else int(SPAWN(path, args, kept))
    with suppress(BaseException):
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                own = number == signal.SIGINT
                signal.signal(number, signal.default_int_handler if own else signal.SIG_DFL)
        last = 2
        for number in [*sorted(kept), os.sysconf("SC_OPEN_MAX")]:
            os.closerange(last + 1, number)
            last = number
        atexit._clear()
        exec(args[-1], {})
    os._exit(0)


# clients


def received(connection: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        part = connection.recv(count - len(found))
        if not part:
            raise EOFError("the server that forks processes is gone")
        found += part
    return found


def number(connection: socket.socket) -> int:
    return int(struct.unpack("!i", received(connection, 4))[0])


def request(
    words: Sequence[str], env: Mapping[str, str], cwd: str, streams: Sequence[int],
    numbers: Sequence[int] = (0, 1, 2),
) -> socket.socket:  # fmt: skip
    """Have a process forked, where these streams have these numbers.

    The connection first gives the process's number, and at its end its exit code.
    """
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ[SERVER])
    blocked = [*signal.pthread_sigmask(signal.SIG_BLOCK, [])]
    message = json.dumps([list(words), dict(env), cwd, list(numbers), blocked]).encode()
    socket.send_fds(connection, [struct.pack("!i", len(message))], streams)
    connection.sendall(message)
    return connection


@cache
def server() -> tuple[socket.socket, subprocess.Popen[bytes] | None]:
    """Start the server of this test session, unless another worker has; use it until the end."""
    from filelock import FileLock

    process = None
    with FileLock(os.environ[SERVER] + ".lock"):
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(os.environ[SERVER])
        except OSError:
            command = [sys.executable, __file__, os.environ[SERVER]]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            connection.connect(os.environ[SERVER])
    connection.sendall(struct.pack("!i", 0))
    return connection, process


class Forked:
    """A Python process, and what it has written so far; it is killed when this is left or lost."""

    def __init__(
        self, words: Sequence[object], *, env: Mapping[str, str] | None = None,
        cwd: Path | str = ".", stdin: str = "",
    ) -> None:  # fmt: skip
        server()
        self.args = [str(word) for word in words]
        self.returncode: int | None = None
        self.files = [unnamed_file() for _ in range(3)]
        os.pwrite(self.files[0], stdin.encode(), 0)
        where, own = os.path.abspath(cwd), os.environ if env is None else env
        self.connection = request(self.args, own, where, self.files)
        self.pid = number(self.connection)
        self.written = "", ""

    @property
    def out(self) -> str:
        return self.read()[0]

    @property
    def err(self) -> str:
        return self.read()[1]

    def read(self) -> tuple[str, str]:
        """Return what is written on both streams; not by their offsets, which are the writer's."""
        if self.files:
            out, err = (os.pread(one, os.fstat(one).st_size, 0) for one in self.files[1:])
            self.written = out.decode(errors="replace"), err.decode(errors="replace")
        return self.written

    def poll(self, seconds: float = 0.0) -> int | None:
        """Return the exit code, or None if the process does not end within so many seconds."""
        if self.returncode is None and select.select([self.connection], [], [], seconds)[0]:
            self.returncode = number(self.connection)
            self.read()
            self.close()
        return self.returncode

    def wait(self, seconds: float = PATIENCE) -> int:
        """Return the exit code; fail if the process does not end."""
        code = self.poll(seconds)
        assert code is not None, f"it does not end: {self.err}"
        return code

    def until(self, seen: Callable[[], T]) -> T:
        """Wait for what the process does; fail if it ends before."""
        deadline = time.monotonic() + PATIENCE
        while not (found := seen()):
            assert self.poll(0.005) is None and time.monotonic() < deadline, self.err
        return found

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process, if it has not ended, and wait for its end."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def close(self) -> None:
        self.connection.close()
        while self.files:
            os.close(self.files.pop())

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def __del__(self) -> None:
        self.close()


def unnamed_file() -> int:
    found, name = tempfile.mkstemp()
    os.unlink(name)
    return found


def run(words: Sequence[object], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a Python process to its end, as `subprocess.run` would."""
    with Forked(words, **options) as process:
        code = process.wait()
        return subprocess.CompletedProcess(process.args, code, process.out, process.err)


def moist(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return run([*MOIST, *words], **options)


def virtual_environment(folder: Path) -> Path:
    """Make an environment like this one whose commands are forked; return their folder."""
    commands = folder / "bin"
    commands.mkdir(parents=True)
    for name in ("pyvenv.cfg", "lib"):
        (folder / name).symlink_to(Path(sys.prefix) / name)
    forks = f"exec {sys.executable} {__file__}"
    own = f'exec -a "$0" {Path(sys.executable).resolve()} "$@"'
    scripts = {
        "moist": f'{forks} -c {shlex.quote(MOIST[1])} "$@"',
        "wandb": f'{forks} -m wandb "$@"',
        "python": f'[ "$1" = -m ] && {forks} "$@"\n{own}',
    }
    for name, script in scripts.items():
        (commands / name).write_text(f"#!/bin/bash\n{script}\n")
        (commands / name).chmod(0o755)
    return commands


def forks_for(path: bytes, args: Sequence[Any], kept: Sequence[int]) -> int:
    """Start an interpreter for multiprocessing in this process; the server forks what forks."""
    if "forkserver" not in args[-1]:
        return int(SPAWN(path, args, kept))
    server()
    streams = ",".join(map(str, kept))
    script = [os.fsencode(word) for word in (path, __file__, streams, "-c", args[-1])]
    return int(SPAWN(path, script, kept))


def client(words: list[str], more: list[int]) -> None:
    """Be the process that is forked for these words, to whoever started this one."""
    streams = [0, 1, 2, *more]
    connection = request(words, os.environ, os.getcwd(), streams, streams)
    for stream in more:  # the forked process's alone
        os.close(stream)
    pid = number(connection)
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, lambda received, _: os.kill(pid, received))
    code = number(connection)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def main() -> None:
    first, *rest = sys.argv[1:]
    if first.startswith("-"):
        client([first, *rest], [])
    if rest:
        client(rest, [*map(int, first.split(","))])
    for name in PRELOAD:
        importlib.import_module(name)
    sys.modules["wandb.wandb_agent"].Agent.POLL_INTERVAL = ROUND  # type: ignore[attr-defined]
    sys.modules["forked"] = sys.modules["__main__"]  # for what imports it in a fork
    gc.collect()
    gc.freeze()
    Path(sys.argv[1]).unlink(missing_ok=True)  # of one that was killed
    forking = Server(sys.argv[1])
    print("ready", flush=True)
    forking.run()
    for name in (sys.argv[1], f"{sys.argv[1]}.lock"):
        Path(name).unlink(missing_ok=True)
    atexit._run_exitfuncs()
    os._exit(0)  # what is frozen would be reported as leaked


if __name__ == "__main__":
    main()
