"""Memory that calls and declarations keep. With OPAQ_LIFE=long: 10^6 calls, 1,000 declarations;
`pytest -s` prints the figures.

A declaration with a CPU implementation keeps 38.9 KB (1,000 of them, x86-64, torch 2.11 and 2.15):
about 12 KB for the schema in torch's dispatcher and its Python handle, 2 KB for a kernel, 2 KB for
the fake implementation, 16 KB for the autograd kernel in torch (every op has one), and 3 KB for
opaq's implementation. torch.library.custom_op keeps 35.9 KB for the same op with fake and gradient.
A declaration that replaces another keeps 3.6 KB for the earlier one, which may be in use.
"""

from __future__ import annotations

import pytest
from programs import LONG, Places, places, run  # noqa: F401

MEASURE = """
import gc
def resident():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
"""


@pytest.mark.parametrize("way", ["eager", "dispatcher", "launch object", "compiled graph"])
def test_calls_keep_nothing(places: Places, way: str) -> None:
    count = 1_000_000 if LONG else 100_000
    call = {
        "eager": "call = lambda: op(x)",
        "dispatcher": "call = lambda: torch.ops.life.f(x)",
        "launch object": "y = x.clone(); launch = _runtime.launcher(op.name, op.info['hash'], "
        "'cpu', 'op0', 'graph'); call = lambda: launch(x, y)",
        "compiled graph": "call = (lambda compiled: lambda: compiled(x))(torch.compile(lambda "
        "x: op(x), fullgraph=True))",
    }[way]
    output = run(
        places,
        MEASURE
        + f"""
op = plain("f")
{call}
for _ in range(10_000): call()
before = resident()
for _ in range({count}): call()
print((resident() - before) // 1024)
""",
        inductor=way == "compiled graph",
        timeout=300,
    )
    assert int(output.splitlines()[0]) < 1024, f"{output} KB"


def test_declarations_keep_little_and_no_more_the_more_there_are(places: Places) -> None:
    count = 1000 if LONG else 300
    output = run(
        places,
        MEASURE
        + f"""
for i in range(50): plain(f"warm{{i}}")
before = resident()
for i in range({count}): plain(f"f{{i}}")
middle = resident()
for i in range({count}):
    op = opaq.op("life::f0(Tensor x) -> (Tensor y)", outputs=opaq.like("x"), replace=True)
    op.cpu(source="void f(float* y) {{}}", entry="f", args="y")
after = resident()
def stock(i):
    @torch.library.custom_op(f"life::s{{i}}", mutates_args=())
    def f(x: torch.Tensor) -> torch.Tensor: return x.clone()
    f.register_fake(lambda x: torch.empty_like(x))
    f.register_autograd(lambda ctx, grad: grad)
for i in range(50): stock(f"warm{{i}}")
stock_before = resident()
for i in range({count}): stock(i)
print((middle - before) / {count} / 1024, (after - middle) / {count} / 1024,
    (resident() - stock_before) / {count} / 1024)
""",
        timeout=300,
    )
    declared, again, stock = map(float, output.split())
    print(
        f"{declared:.1f} KB a declaration, {stock:.1f} KB in stock PyTorch, {again:.1f} KB one "
        "in the place of another"
    )
    assert declared < 1.3 * stock and again < 8
