"""Threads: many that declare an op or call it for the first time at the same time, and threads that
still run when the process ends.
"""

from __future__ import annotations

import pytest
from programs import Places, places, run, wait_for  # noqa: F401


def test_many_threads_call_an_op_for_the_first_time(places: Places) -> None:
    output = run(
        places,
        """
        ops = [plain(f"f{i}", i) for i in range(3)]
        barrier = threading.Barrier(8); failures = []
        def work(n):
            barrier.wait()
            for i in range(30):
                if ops[(n + i) % 3](x).tolist() != [1.0 + (n + i) % 3] * 3: failures.append((n, i))
        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        made = [item for item in _runtime.implementation_stats() if item["op"].startswith("life::")]
        print(failures, sorted(item["compiled"] for item in made))
    """,
    )
    assert output.splitlines()[-1] == "[] [1, 1, 1]", output


DECLARATIONS = {
    "op": """
def declare(i):
    op = opaq.op(f"life::d{i}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
    head = "void f(const float* x, float* y, long n) "
    body = "{ for (long i = 0; i < n; ++i) y[i] = x[i] + 1; }"
    op.cpu(source=head + body, entry="f", args="x, y, x.numel()",
           requires="x.dim() == 1")
    op.reference(lambda x: x + 1)
    op.backward(lambda ctx, grad: grad)
    assert len(op.info["implementations"]) == 1
    assert op(torch.ones(1, 3)).tolist() == [[2.0] * 3]  # by the reference, through the dispatcher
    y = torch.ones(1, 3, requires_grad=True)
    getattr(torch.ops.life, f"d{i}")(y).sum().backward()
    assert y.grad.tolist() == [[1.0] * 3]
    return op
""",
    "replaced op": """
def declare(i):
    op = opaq.op("life::d(Tensor x) -> (Tensor y)", outputs=opaq.like("x"), replace=True)
    op.reference(lambda x: x + 1)
    return op
""",
    "custom_op": """
def declare(i):
    @opaq.custom_op(f"life::d{i}", mutates_args=())
    def f(x: torch.Tensor) -> torch.Tensor: return x + 1
    return f
""",
}


@pytest.mark.parametrize("kind", DECLARATIONS)
def test_threads_that_declare_the_same_op_at_once(places: Places, kind: str) -> None:
    output = run(
        places,
        DECLARATIONS[kind]
        + """
def slowly(function):  # as on a busy machine: other threads run in the middle of a declaration
    def slow(*args, **kwargs):
        time.sleep(0.002)
        return function(*args, **kwargs)
    return slow
for module, name in [(torch.library, "register_fake"), (torch.library, "register_autograd"),
    (torch.library.Library, "define")]:
    setattr(module, name, slowly(getattr(module, name)))
sys.setswitchinterval(1e-5)
barrier = threading.Barrier(4); failures = []; made = [[] for _ in range(4)]
def work(n):
    for i in range(20):
        barrier.wait()
        try: made[n].append(declare(i))
        except Exception as error: failures.append(f"{i}: {type(error).__name__}: {error}")
threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(failures)
print([op for op in made[0] if op(torch.ones(2)).tolist() != [2.0, 2.0]])
""",
    )
    assert output.splitlines()[-2:] == ["[]", "[]"], output


def test_a_child_forked_while_threads_declare(places: Places) -> None:
    """In the child, every op is either complete or not declared, and it can declare more."""
    output = run(
        places,
        """
        stop = []
        made = [0]
        def work(n):
            while not stop:
                plain(f"f{made[0]}"); made[0] += n == 0
        threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
        for thread in threads: thread.start()
        children = []
        for i in range(25):
            pid = os.fork()
            if pid == 0:
                signal.alarm(60)  # a hang is an end by SIGALRM
                for name in (f"f{made[0]}",
                    f"f{made[0] + 1}"): assert plain(name)(x).tolist() == [2.0] * 3
                os._exit(0)
            children.append(pid)
            time.sleep(0.003)
        stop.append(1)
        for thread in threads: thread.join()
        print("statuses", {os.waitpid(pid, 0)[1] for pid in children})
    """,
    )
    assert output.splitlines()[-1] == "statuses {0}", output


@pytest.mark.parametrize("end", ["", "sys.exit(0)", "raise SystemExit"])
def test_daemon_threads_that_compile_while_the_interpreter_ends(places: Places, end: str) -> None:
    """Python up to 3.13 ends a thread that then asks for the GIL by unwinding its stack, which
    aborted the process ("terminate called"). No thread calls torch here, where this still happens.
    """
    output = run(
        places,
        f"""
        ops = [[plain(f"{{name}}{{i}}", i) for i in range(100)] for name in "ab"]
        def compile(ops):
            for op in ops: op.warmup(x)
        for some in ops: threading.Thread(target=compile, args=(some,), daemon=True).start()
        time.sleep(0.5)
        print("end", flush=True)
        {end}
    """,
    )
    assert output.splitlines() == ["end"], output
    assert wait_for(lambda: places.left_behind() == []), places.left_behind()
