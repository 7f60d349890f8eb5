"""A process may fork at any time; the child can compile, load and launch."""

from __future__ import annotations

import pytest
from programs import Places, needs_nvrtc, places, run  # noqa: F401


@pytest.mark.parametrize("kind", ["cpu", pytest.param("cuda", marks=needs_nvrtc)])
def test_a_child_forked_while_a_thread_compiles(places: Places, kind: str) -> None:
    work = {
        "cpu": "op = slow('f'); work = lambda: op(x)",
        "cuda": "op = slow_cuda('f', 13); work = lambda: compile_cuda(op)",
    }[kind]
    output = run(
        places,
        f"""
        {work}
        thread = threading.Thread(target=work); thread.start()
        time.sleep(0.3)
        pid = os.fork()
        if pid == 0:
            work()
            os.write(1, b"child\\n")
            os._exit(0)
        thread.join()
        print("status", os.waitpid(pid, 0)[1], flush=True)
    """,
    )
    assert "child" in output and "status 0" in output


def test_forks_at_many_moments_of_declaring_compiling_and_launching(places: Places) -> None:
    output = run(
        places,
        """
        shared = [plain(f"s{i}", i) for i in range(4)]
        stop = []
        def busy(number):
            i = 0
            while not stop:
                op = plain(f"t{number}_{i}", i); i += 1
                op.explain(x); _runtime.node_stats(); _runtime.implementation_stats(); opaq.report()
                if i % 50 == 0: shared[number % 4](x)
        threads = [threading.Thread(target=busy, args=(n,)) for n in range(3)]
        for thread in threads: thread.start()
        children = []
        for i in range(40):
            pid = os.fork()
            if pid == 0:
                signal.alarm(60)  # a hang is an end by SIGALRM
                op = shared[i % 4]
                assert op(x).tolist() == [1.0 + i % 4] * 3
                plain("child").explain(x); opaq.report()
                os._exit(0)
            children.append(pid)
            time.sleep(0.003)
        stop.append(1)
        for thread in threads: thread.join()
        print("statuses", {os.waitpid(pid, 0)[1] for pid in children})
    """,
    )
    assert "statuses {0}" in output


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_of_multiprocessing(places: Places, method: str, tmp_path) -> None:  # noqa: ANN001
    module = tmp_path / "worker_module.py"
    module.write_text(
        "import torch, opaq\n"
        "op = opaq.op('life::w(Tensor x) -> (Tensor y)', outputs=opaq.like('x'))\n"
        "op.cpu(source='void f(const float* x, float* y, long n) { for (long i = 0; i < n; "
        "++i) y[i] = 2 * x[i]; }', entry='f', args='x, y, x.numel()')\n"
        "def work(n): return op(torch.full((2,), float(n))).tolist()\n"
    )
    output = run(
        places,
        f"""
        if __name__ == "__main__":
            import multiprocessing, worker_module
            worker_module.work(0)
            with multiprocessing.get_context(
                {method!r}).Pool(2) as pool: print(pool.map(worker_module.work, [1, 2, 3]))
    """,
        environment={"PYTHONPATH": str(tmp_path)},
    )
    assert "[[2.0, 2.0], [4.0, 4.0], [6.0, 6.0]]" in output
