"""A program that `forked` starts finds what it finds in a process that Python starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import forked
import pytest

PROGRAM = """
import atexit, json, os, sys, threading
import torch
assert "opaq" not in sys.modules and not torch.cuda.is_initialized()
atexit.register(print, "at exit")
main = sys.modules["__main__"]
print(json.dumps([sys.argv, sys.path, os.getcwd(), dict(os.environ), __name__,
    sorted(name for name in vars(main) if name[0] != "_"),
    threading.active_count(), sorted(os.listdir("/proc/self/fd")), os.getpid() == os.getsid(0),
    sys.stdin.read(), getattr(main, "__file__", None)]))
print("error", file=sys.stderr)
sys.exit(7)
"""


@pytest.mark.parametrize("way", ["-c", "-m", "file"])
@pytest.mark.parametrize("session", [False, True])
def test_it_finds_what_it_finds_elsewhere(tmp_path: Path, way: str, session: bool) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    start = {"-c": ["-c", PROGRAM], "-m": ["-m", "program"], "file": [tmp_path / "program.py"]}
    paths = f"{tmp_path}{os.pathsep}/nowhere"
    environment = {**forked.inherited(os.environ), "OPAQ_SOME": "x", "PYTHONPATH": paths}
    command = [sys.executable, *map(str, start[way]), "one", "--two"]
    common = dict(
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=session,
    )
    process = forked.start(command, **common)
    found = (*process.communicate(60), process.returncode)
    known = subprocess.run(command, check=False, stdin=0, **common)
    assert found == (known.stdout, known.stderr, known.returncode)
    assert found[2] == 7


def test_what_inductor_left_in_this_process_is_not_passed_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR", "4096")
    program = "import os; print(*[name for name in os.environ if name[:6] == '_TORCH'])"
    done = forked.run([sys.executable, "-c", program], check=True)
    assert done.stdout == "\n"


def test_a_variable_that_an_import_may_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    forked.run([sys.executable, "-c", ""], check=True)
    monkeypatch.setenv("TORCH_SOMETHING", "1")
    with pytest.raises(AssertionError, match="start it by subprocess.*'TORCH_SOMETHING'"):
        forked.run([sys.executable, "-c", ""], check=True)


def test_it_is_ended_by_a_signal_and_a_timeout_is_an_error() -> None:
    command = [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"]
    process = forked.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(0.1)
    os.kill(process.pid, signal.SIGTERM)
    assert process.communicate(20) == ("", None)
    assert process.wait() == -signal.SIGTERM
    with pytest.raises(subprocess.CalledProcessError, match="exit status 3"):
        forked.run([sys.executable, "-c", "raise SystemExit(3)"], check=True)


def test_an_error_has_its_line() -> None:
    command = [sys.executable, "-c", "import torch\n1 / 0"]
    done = forked.run(command)
    assert done.returncode == 1
    assert done.stderr.endswith(
        '  File "<string>", line 2, in <module>\nZeroDivisionError: division by zero\n'
    )
