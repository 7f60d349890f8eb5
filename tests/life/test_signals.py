"""Signals, and exits of the process, during a compilation: Ctrl-C acts at once, no files are left
behind, and the next call compiles again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from programs import PRELUDE, Places, compilers, finish, needs_nvrtc, places, run, start, wait_for  # noqa: F401

INTERRUPT = """
def interrupted_after(seconds, work):
    threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    try:
        work()
    except KeyboardInterrupt:
        took = time.monotonic() - start
        assert took < seconds + 2, took
        print("interrupted", flush=True)
    else:
        print("not interrupted", flush=True)
ticks = [0]
def tick():
    while True: ticks[0] += 1; time.sleep(0.01)
threading.Thread(target=tick, daemon=True).start()
"""


@pytest.mark.parametrize("way", ["eager", "dispatcher", "launch object"])
def test_ctrl_c_while_a_cpp_compiler_runs(places: Places, way: str) -> None:
    call = {
        "eager": "work = lambda: op(x)",
        "dispatcher": "y = x.clone().requires_grad_(); op.backward(lambda ctx, g: g); work = "
        "lambda: op(y)",  # requires grad: the call goes through the dispatcher
        "launch object": "y = x.clone(); launch = _runtime.launcher(op.name, op.info['hash'], "
        "'cpu', 'op0', 'graph'); work = lambda: launch(x, y) or y",
    }[way]
    output = run(
        places,
        INTERRUPT
        + f"""
op = slow("f", 15)
{call}
interrupted_after(0.3, work)
assert ticks[0] > 5, "the GIL was held"
print(work().tolist())
""",
    )
    assert output.splitlines() == ["interrupted", "[2.0, 2.0, 2.0]"], output
    assert places.left_behind() == []


@needs_nvrtc
def test_ctrl_c_while_nvrtc_runs(places: Places) -> None:
    output = run(
        places,
        INTERRUPT
        + """
op = slow_cuda("f", 22)
interrupted_after(0.3, lambda: compile_cuda(op))
assert ticks[0] > 5, "the GIL was held"
print(compile_cuda(slow_cuda("g", 3))["entry"])
""",
    )
    assert output.splitlines() == ["interrupted", "f"], output


@needs_nvrtc
@pytest.mark.parametrize("archs", [["sm_90a"], ["sm_80", "sm_90a", "sm_100a"]])
def test_ctrl_c_ends_a_check(places: Places, archs: list[str]) -> None:
    output = run(
        places,
        INTERRUPT
        + f"""
op = slow_cuda("f", 22)
interrupted_after(0.3, lambda: op.check(arch={archs}))
assert ticks[0] > 5, "the GIL was held"
print(slow_cuda("g", 3).check(arch="sm_90a").ok)
""",
    )
    assert output.splitlines() == ["interrupted", "True"], output
    assert places.left_behind() == []


@needs_nvrtc
@pytest.mark.parametrize("form", ["package", "C++ wrapper"])
def test_ctrl_c_while_a_node_is_compiled_ahead(places: Places, form: str) -> None:
    work = {
        "package": "program = torch.export.export(Model(), (x,))\nwork = lambda: "
        "opaq.package(program, path)",
        "C++ wrapper": "work = lambda: torch.compile(Model(), options={'cpp_wrapper': True})(x)",
    }[form]
    output = run(
        places,
        INTERRUPT
        + f"""
op = slow("f", 16)
class Model(torch.nn.Module):
    def forward(self, x): return op(x)
path = os.environ["TMPDIR"] + "/model.pt2"
{work}
def interrupt():
    global sent
    sent = time.monotonic()
    os.kill(os.getpid(), signal.SIGINT)
def cpp_node_with_interruption(*args):
    threading.Timer(0.3, interrupt).start()
    return cpp_node(*args)
cpp_node, _runtime.cpp_node = _runtime.cpp_node, cpp_node_with_interruption
try: work()
except KeyboardInterrupt: print("interrupted", time.monotonic() - sent < 1)
""",
        inductor=True,
    )
    assert "interrupted True" in output.splitlines(), output


@needs_nvrtc
def test_ctrl_c_ends_the_command(places: Places, tmp_path: Path) -> None:
    program = PRELUDE[PRELUDE.index("import torch, opaq") :] + "slow_cuda('f', 22)\n"
    (tmp_path / "kernels.py").write_text(program)
    process = subprocess.Popen(
        [sys.executable, "-m", "opaq", "check", "kernels.py", "--arch", "sm_80,sm_90a"],
        cwd=tmp_path,
        env=places.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr.readline() == "checking life::f: cuda for sm_80, sm_90a\n"
    time.sleep(0.5)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")
    assert time.monotonic() - start < 2
    assert wait_for(lambda: not compilers(str(places.temporary))), "a compiler runs on"


def test_ctrl_c_while_another_thread_compiles_for_this_one(places: Places) -> None:
    output = run(
        places,
        INTERRUPT
        + """
op = slow("f", 15)
results = []
thread = threading.Thread(target=lambda: results.append(op(x).tolist())); thread.start()
time.sleep(0.2)
interrupted_after(0.2, lambda: op(x))
thread.join()
print(results, op(x).tolist())
""",
    )
    assert output.splitlines() == ["interrupted", "[[2.0, 2.0, 2.0]] [2.0, 2.0, 2.0]"], output


def test_a_handler_of_the_users_own_runs_while_a_compiler_does(places: Places) -> None:
    output = run(
        places,
        """
def handler(number, frame): raise TimeoutError("no time left")
signal.signal(signal.SIGALRM, handler); signal.setitimer(signal.ITIMER_REAL, 0.3)
op = slow("f", 15)
try: op(x)
except TimeoutError as error: print(error)
signal.signal(signal.SIGALRM, lambda *args: print("handled",
    flush=True)); signal.setitimer(signal.ITIMER_REAL, 0.2)
print(slow("g", 14)(x).tolist())
""",
    )
    assert output.splitlines() == ["no time left", "handled", "[2.0, 2.0, 2.0]"], output


@pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL", "exit", "os._exit"])
@pytest.mark.parametrize("kind", ["cpu", pytest.param("cuda", marks=needs_nvrtc)])
def test_the_end_of_the_process_ends_its_compilers_and_their_folders(
    places: Places, end: str, kind: str
) -> None:
    work = {
        "cpu": "op = slow('f', 16); work = lambda: op(x)",
        "cuda": "op = slow_cuda('f', 22); work = lambda: compile_cuda(op)",
    }[kind]
    finale = {"exit": "sys.exit(0)", "os._exit": "os._exit(0)"}.get(end, "thread.join()")
    process = start(
        places,
        f"""
        {work}
        thread = threading.Thread(target=work, daemon=True); thread.start()
        time.sleep(0.5)
        print("compiling", flush=True)
        {finale}
    """,
    )
    assert process.stdout.readline() == "compiling\n"
    if end.startswith("SIG"):
        assert wait_for(lambda: compilers(str(places.temporary))), "no compiler was seen"
        time.sleep(0.1)
        os.kill(process.pid, getattr(signal, end))
        finish(process, code=-getattr(signal, end))
    else:
        finish(process)
    assert wait_for(lambda: not compilers(str(places.temporary))), "a compiler runs on"
    assert wait_for(lambda: places.left_behind() == []), places.left_behind()
