"""Python programs in processes of their own that have torch imported already: `run` and `start`
take what `subprocess.run` and `subprocess.Popen` do.

To import torch takes 1.6 seconds of processor time, and Inductor 3 more. Here a server imports
them once and forks a process for each program. It has not imported opaq, has started no thread,
and has not used CUDA. A program that is about what an import does, or about variables that torch
reads then, is started by `subprocess`.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import dataclasses
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Mapping, Sequence
from typing import IO, Any

INDUCTOR = "torch._inductor.compile_fx"
# How the names begin of variables that are read when they are needed, not when torch or Inductor is
# imported. No others may differ from those with which a server was started.
LATE = ("OPAQ_", "PYTEST_", "TMPDIR", "HOME", "XDG_CACHE_HOME", "PYTHONPATH")
LATE += ("TORCHINDUCTOR_CACHE_DIR", "MASTER_", "WORLD_SIZE", "RANK", "LOCAL_")
LATE += ("TUNING_CACHE", "SHARDING_CACHE")
# How those begin that Inductor leaves in a process that compiles: addresses in its memory.
LEFT = "_TORCHINDUCTOR_"


@dataclasses.dataclass
class Process:
    """Like subprocess.Popen. The process is not a child of this one, but its group and its signals
    are those of any other."""

    args: Sequence[str]
    pid: int
    stdout: IO[str] | None
    stderr: IO[str] | None
    _ending: IO[str]
    returncode: int | None = None

    def communicate(self, timeout: float | None = None) -> tuple[str | None, str | None]:
        """Raises subprocess.TimeoutExpired, and can be called again then."""
        if not hasattr(self, "_reading"):
            pool = concurrent.futures.ThreadPoolExecutor(2)
            streams = (self.stdout, self.stderr)
            self._reading = [stream and pool.submit(stream.read) for stream in streams]
            pool.shutdown(wait=False)
        reading = [each for each in self._reading if each]
        if concurrent.futures.wait(reading, timeout).not_done:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(timeout)
        out, err = (each and each.result() for each in self._reading)
        return out, err

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._ending], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = int(self._ending.readline())
            self._ending.close()
        return self.returncode

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)


def run(
    command: Sequence[object],
    *,
    check: bool = False,
    timeout: float | None = None,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """With what the program prints."""
    process = start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    try:
        out, err = process.communicate(timeout)
    except BaseException:
        process.kill()
        raise
    done = subprocess.CompletedProcess(process.args, process.wait(), out, err)
    if check:
        done.check_returncode()
    return done


def start(
    command: Sequence[object],
    *,
    env: Mapping[str, str] | None = None,
    cwd: object = None,
    stdout: int | None = None,
    stderr: int | None = None,
    text: bool = True,
    start_new_session: bool = False,
    inductor: bool = False,
) -> Process:
    """`command` is [sys.executable, then "-c" and code, "-m" and a module, or a file, then
    arguments]. With `inductor`, that is imported too."""
    words = [str(word) for word in command]
    assert words[0] == sys.executable and (words[1] in ("-c", "-m") or words[1][0] != "-"), words
    assert text, "bytes are not implemented"
    environment = inherited(os.environ if env is None else env)
    request = {
        "command": words,
        "environment": environment,
        "folder": os.path.abspath(str(cwd or ".")),
        "new_session": start_new_session,
    }
    given, to_close = {}, []
    for number, wanted in ((1, stdout), (2, stderr)):
        if wanted == subprocess.PIPE:
            reading, writing = os.pipe()
            given[number] = (writing, open(reading, encoding="utf-8"))  # noqa: SIM115
        elif wanted == subprocess.DEVNULL:
            given[number] = (os.open(os.devnull, os.O_WRONLY), None)
        else:
            given[number] = (given[1][0] if wanted == subprocess.STDOUT else number, None)
        to_close += [given[number][0]] * (wanted in (subprocess.PIPE, subprocess.DEVNULL))
    reading, writing = os.pipe()
    ending = open(reading, encoding="ascii")  # noqa: SIM115
    server, requests, known = _server(INDUCTOR if inductor else "torch")
    changed = {name for name, _ in _early(environment).items() ^ known.items()}
    assert not changed, f"start it by subprocess, or add to LATE what is read late: {changed}"
    descriptors = [0, given[1][0], given[2][0], writing]
    socket.send_fds(requests, [json.dumps(request).encode()], descriptors)
    for each in [*to_close, writing]:
        os.close(each)
    pid = ending.readline()
    assert pid, f"the server has ended: {server.stderr and server.stderr.read()}"
    return Process(words, int(pid), given[1][1], given[2][1], ending)


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what is about this process alone."""
    return {name: value for name, value in environment.items() if not name.startswith(LEFT)}


def _early(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(LATE)}


@functools.cache
def _server(imported: str) -> tuple[subprocess.Popen[str], socket.socket, dict[str, str]]:
    """A server that ends when this process does, where it takes requests, its variables."""
    environment = _early(inherited(os.environ))
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, __file__, imported, str(there.fileno())],
        env=environment | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        pass_fds=[there.fileno()],
        # Python treats files, which can seek, in another way.
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    there.close()

    def end() -> None:
        here.close()
        process.wait()

    atexit.register(end)
    return process, here, environment


# ---- in the server -------------------------------------------------------------------------------


def _serve(requests: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Forks for each request; returns it in the process that runs its program."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 1 << 20, 4)
        if not message:
            os._exit(0)
        _forget_ended()
        if os.fork() == 0:
            # This one waits for the program. Python's own `wait` would need its parent.
            requests.close()
            pid = os.fork()
            if pid == 0:
                os.close(descriptors.pop())
                return json.loads(message), descriptors
            for each in descriptors[:3]:
                os.close(each)
            with open(descriptors[3], "w") as ending:
                print(pid, file=ending, flush=True)
                print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=ending, flush=True)
            os._exit(0)
        for each in descriptors:
            os.close(each)


def _forget_ended() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _added() -> list[str]:
    return [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]


def _program(request: dict[str, Any], descriptors: list[int], paths: list[str]) -> Any:
    """Makes this process what a new one would be; returns its code, and the module it runs in."""
    if request["new_session"]:
        os.setsid()
    for number, each in enumerate(descriptors):
        os.dup2(each, number)
        os.close(each)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    _, what, *arguments = request["command"]
    sys.orig_argv = request["command"]
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    if what == "-c":
        code, first, sys.argv = (
            compile(arguments[0], "<string>", "exec", dont_inherit=True),
            "",
            ["-c"],
        )
        sys.argv += arguments[1:]
    elif what == "-m":
        code, first, sys.argv = None, os.getcwd(), arguments
    else:
        first, sys.argv = os.path.dirname(os.path.realpath(what)), [what, *arguments]
        module.__file__ = os.path.abspath(what)
        with open(what, "rb") as file:
            code = compile(file.read(), what, "exec", dont_inherit=True)
    sys.path[:] = [first, *_added(), *paths]
    sys.path_importer_cache.clear()
    return code, module


if __name__ == "__main__":
    importlib.import_module(sys.argv[1])
    if sys.argv[1] == INDUCTOR:
        # Otherwise, each program with an empty folder of Inductor's compiles and loads files with
        # vector instructions, which takes 2 seconds.
        importlib.import_module("torch._inductor.cpu_vec_isa").valid_vec_isa_list()
    assert threading.active_count() == 1, threading.enumerate()
    _paths = sys.path[1 + len(_added()) :]
    # A collection in a program would copy the memory of what is imported. (What is never collected
    # is called a leak by nanobind, which triton uses, at the end of a program with Inductor.)
    gc.freeze()
    _code, _module = _program(*_serve(socket.socket(fileno=int(sys.argv[2]))), _paths)
    if _code is None:
        import runpy

        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        exec(_code, vars(_module))
