"""Signals, and exits of the process, during a compilation: Ctrl-C acts at once, no files are left
behind, and the next call compiles again.
"""

from __future__ import annotations

import os
import signal
import time

import pytest
from programs import Places, compilers, finish, needs_nvrtc, places, run, start, wait_for  # noqa: F401

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
