"""Ops that take lists of tensors: Tensor[] in the schema. The reference is PyTorch's arithmetic."""

from __future__ import annotations

import pathlib

import pytest
import torch
from fake_cuda import wrapper_source

import opaq
from opaq import lowering

SUM = """
struct Table { const float* from[8]; long size[8]; int count; };
void sum_all(const Table t, float scale, float* out) {
  for (long i = 0; i < t.size[0]; ++i) {
    float sum = 0;
    for (int k = 0; k < t.count; ++k) sum += t.from[k][i];
    out[i] = scale * sum;
  }
}
"""
SGD = """
struct Table { float* p[8]; const float* g[8]; long size[8]; int count; };
void sgd(const Table t, float rate) {
  for (int k = 0; k < t.count; ++k)
    for (long i = 0; i < t.size[k]; ++i) t.p[k][i] -= rate * t.g[k][i];
}
"""


def sum_op(name: str) -> opaq.Op:
    op = opaq.op(
        f"{name}(Tensor[] xs, float scale=1.0) -> Tensor", outputs=opaq.like("xs[0]"), replace=True
    )
    table = opaq.struct(
        "Table", **{"from": "[*xs, ...]"}, size="[*(x.numel() for x in xs), ...]", count="len(xs)"
    )
    return op.cpu(
        source=SUM,
        entry="sum_all",
        args=[table, "scale", "out"],
        requires="all(x.numel() == xs[0].numel() for x in xs)",
    )


def sgd_op(name: str) -> opaq.Op:
    op = opaq.op(f"{name}(Tensor(a!)[] ps, Tensor[] gs, float rate) -> ()", replace=True)
    table = opaq.struct(
        "Table",
        p="[*ps, ...]",
        g="[*gs, ...]",
        size="[*(p.numel() for p, g in zip(ps, gs)), ...]",
        count="len(ps)",
    )
    return op.cpu(source=SGD, entry="sgd", args=[table, "rate"])


def tensors(count: int, size: int = 5) -> list[torch.Tensor]:
    return [torch.randn(size) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_a_call_has_lists_of_any_length(count: int) -> None:
    op = sum_op("tensor_lists::any")
    xs = tensors(count)
    expected = 2.0 * sum(xs)
    torch.testing.assert_close(op(xs, 2.0), expected)
    torch.testing.assert_close(op(tuple(xs), scale=2.0), expected)
    torch.testing.assert_close(torch.ops.tensor_lists.any(xs, 2.0), expected)


@pytest.mark.parametrize("cpp_wrapper", [False, True])
@pytest.mark.parametrize("backend", ["inductor", "opaq"])
def test_compiled(unique: str, backend: str, cpp_wrapper: bool) -> None:
    op, step = sum_op(f"{unique}_sum"), sgd_op(f"{unique}_sgd")

    def f(xs: list[torch.Tensor], ps: list[torch.Tensor]) -> torch.Tensor:
        ys = [x + 1 for x in xs]
        step(ps, [y * 2 for y in ys], 0.5)
        return op(ys, 2.0) * 3

    xs, ps = tensors(3), tensors(3)
    expected = [p - (x + 1) for p, x in zip(ps, xs)]
    with torch._inductor.config.patch(cpp_wrapper=cpp_wrapper):
        result = torch.compile(f, backend=backend, fullgraph=True)(xs, ps)
    torch.testing.assert_close(ps, expected)
    torch.testing.assert_close(result, 6 * sum(x + 1 for x in xs))
    chosen = {node["op"]: node["implementation"] for node in opaq.report().as_dict()["nodes"]}
    assert chosen[f"{unique}_sum[3]"] == chosen[f"{unique}_sgd[3, 3]"] == "cpu"


def test_sizes_may_change(unique: str) -> None:
    op = sum_op(unique)
    compiled = torch.compile(lambda xs: op([x + 1 for x in xs]), dynamic=True, fullgraph=True)
    for size in (4, 7, 33):
        xs = tensors(3, size)
        torch.testing.assert_close(compiled(xs), sum(x + 1 for x in xs))


def test_in_a_package(unique: str, tmp_path: pathlib.Path) -> None:
    op = sum_op(unique)

    class Model(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return op([a + 1, b, a], 2.0) * 2

    example = tuple(tensors(2))
    exported = torch.export.export(Model(), example)
    path = opaq.package(exported, tmp_path / "model.pt2")
    loaded = torch._inductor.aoti_load_package(str(path))
    torch.testing.assert_close(loaded(*example), Model()(*example))


def test_copies_before_writes_are_kept(unique: str) -> None:
    """An item that is written shares no memory with others unless it does in eager."""
    step = sgd_op(unique)

    def f(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        z = x + 1
        step([z, z * 2], [z.clone(), x], 0.5)
        return z, x

    def expected(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        z = x + 1
        return z - 0.5 * z, x

    x = torch.randn(6)
    torch.testing.assert_close(torch.compile(f, fullgraph=True)(x), expected(x))
    torch.testing.assert_close(f(x), expected(x))


def test_items_are_made_row_major(unique: str) -> None:
    op = sum_op(unique)
    table = torch.randn(5, 2)
    f = lambda t: op([t[:, 0], t[:, 1]])
    torch.testing.assert_close(f(table), table.sum(1))
    torch.testing.assert_close(torch.compile(f, fullgraph=True)(table), table.sum(1))


@pytest.mark.parametrize("form", ["eager", "dispatcher", "Python wrapper", "C++ wrapper"])
def test_a_name_after_for_hides_an_argument_of_the_same_name(unique: str, form: str) -> None:
    result = opaq.tensor("4", dtype="float32")
    op = opaq.op(f"{unique}(Tensor[] xs, Tensor x) -> Tensor", outputs=result)
    op.cpu(
        source="""
        struct One { const float* p; long n; };
        struct All { One one[3]; const unsigned* bits[3]; };
        void take(All all, const float* a, const float* b, const float* c, const float* x, float* y)
        { for (int i = 0; i < 3; ++i) y[i] = *all.one[i].p * all.one[i].n + (*all.bits[i] == 0);
          y[3] = 100 * *a + 10 * *b + *c + 1000 * *x; }""",
        entry="take",
        args=[
            opaq.struct(
                one="[struct(p=x, n=x.numel()) for x in xs]",
                bits='[*(cast("const unsigned*", x) for x in xs)]',
            ),
            "*(x for x in xs)",
            "x",
            "out",
        ],
    )
    call = {"eager": op, "dispatcher": op.overload}.get(form) or torch.compile(
        op, fullgraph=True, options={"cpp_wrapper": form == "C++ wrapper"}
    )
    xs = [torch.full((n,), float(n)) for n in (1, 2, 3)]
    result = call([*xs[:2], torch.zeros(1)], torch.tensor(7.0))
    torch.testing.assert_close(result, torch.tensor([1.0, 4.0, 1.0, 7120.0]))


def test_other_sequences_are_taken(unique: str) -> None:
    op = sum_op(unique)
    xs = tensors(3)
    for sequence in (torch.nn.ParameterList(xs), tuple(xs)):
        with torch.no_grad():
            torch.testing.assert_close(op(sequence), sum(xs))


def test_meta_tensors_stay_among_themselves(unique: str) -> None:
    op = sum_op(unique)
    xs = [x.to("meta") for x in tensors(2)]
    assert op(xs).device.type == "meta"
    with pytest.raises(opaq.LaunchError, match="some tensors are on meta and some on cpu"):
        op([xs[0], *tensors(1)])


@pytest.mark.parametrize(
    ("grads", "got"),
    [(lambda g: ([g], None), "1 gradients"), (lambda g: (g, None), "a Tensor")],
)
def test_gradients_of_a_list_have_its_length(unique: str, grads: object, got: str) -> None:
    op = sum_op(unique)
    op.backward(lambda ctx, g: grads(g), setup_context=lambda ctx, inputs, output: None)  # type: ignore[operator]
    with pytest.raises(opaq.DeclarationError) as error:
        op([x.requires_grad_() for x in tensors(3)]).sum().backward()
    assert (
        f"the gradient formula of {unique} returned {got} for the list `xs` of 3 tensors; "
        "expected a list of 3, None where there is no gradient"
    ) in str(error.value)


def test_a_reference_of_a_list_beside_a_tensor(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor[] xs, Tensor w) -> Tensor", outputs=opaq.like("w"))
    op.reference(lambda xs, w: xs[0])
    xs, w = tensors(2), torch.ones(5)
    for call in (op, torch.compile(op, fullgraph=True)):
        y = call(xs, w)
        assert torch.equal(y, xs[0]) and y.data_ptr() != xs[0].data_ptr()


def test_gradients(unique: str) -> None:
    op = sum_op(unique)

    def setup(ctx: object, inputs: tuple, output: torch.Tensor) -> None:
        ctx.count, ctx.scale = len(inputs[0]), inputs[1]  # type: ignore[attr-defined]

    op.backward(lambda ctx, g: ([g * ctx.scale] * ctx.count, None), setup_context=setup)
    for call in (op, torch.compile(op, fullgraph=True)):
        xs = [x.requires_grad_() for x in tensors(3)]
        call(xs, 3.0).sum().backward()
        torch.testing.assert_close([x.grad for x in xs], [torch.full((5,), 3.0)] * 3)


def test_versions_and_leaves_are_checked(unique: str) -> None:
    step = sgd_op(unique)
    ps, gs = tensors(2), tensors(2)
    before = [p._version for p in ps]
    step(ps, gs, 0.1)
    step.overload(ps, gs, 0.1)
    assert [p._version - v for p, v in zip(ps, before)] == [2, 2]
    with pytest.raises(opaq.LaunchError, match="requires grad"):
        step([ps[0], ps[1].requires_grad_()], gs, 0.1)


def test_opcheck(unique: str) -> None:
    torch.library.opcheck(sum_op(f"{unique}_sum"), (tensors(2), 2.0))
    torch.library.opcheck(sgd_op(f"{unique}_sgd"), (tensors(2), tensors(2), 0.5))


def test_a_reference_and_a_python_function_get_the_lists(unique: str) -> None:
    op = opaq.op(
        f"{unique}(Tensor[] xs, int k) -> (Tensor a, Tensor b)",
        outputs={
            "a": opaq.like("xs[-1]"),
            "b": opaq.tensor("sum(x.numel() for x in xs)", dtype="float32"),
        },
    )

    @op.reference
    def _(xs: list[torch.Tensor], k: int) -> tuple[torch.Tensor, torch.Tensor]:
        assert isinstance(xs, list)
        return xs[-1] * k, torch.cat([x.flatten() for x in xs])

    filled = opaq.op(f"{unique}_py(Tensor[] xs, *, int k) -> Tensor", outputs=opaq.like("xs[0]"))

    def fill(xs: list[torch.Tensor], out: torch.Tensor, k: int) -> None:
        out.copy_(sum(xs) * k)

    filled.python(lambda xs, k, out: fill(xs, out, k), device="cpu")
    xs = tensors(3)
    for f in (
        lambda xs: (op([x * 2 for x in xs], 3), filled([x * 2 for x in xs], k=3)),
        torch.compile(
            lambda xs: (op([x * 2 for x in xs], 3), filled([x * 2 for x in xs], k=3)),
            fullgraph=True,
        ),
    ):
        (a, b), c = f(xs)
        torch.testing.assert_close(a, xs[-1] * 6)
        torch.testing.assert_close(b, torch.cat(xs) * 2)
        torch.testing.assert_close(c, sum(xs) * 6)


def test_a_new_declaration_serves_all_lengths(unique: str) -> None:
    op = sum_op(unique)
    xs = tensors(2)
    compiled = torch.compile(lambda xs: op(xs), fullgraph=True)
    torch.testing.assert_close(compiled(xs), op(xs))
    schema = f"{unique}(Tensor[] xs, float scale=1.0) -> Tensor"
    again = opaq.op(schema, outputs=opaq.like("xs[0]"), replace=True)
    again.cpu(
        source="void first(const float* x, float* out, long n)"
        "{ for (long i = 0; i < n; ++i) out[i] = x[i]; }",
        entry="first",
        args="xs[0], out, out.numel()",
    )
    assert again is op
    for call in (op, compiled, torch.ops.opaq_test.__getattr__(unique.split("::")[1])):
        torch.testing.assert_close(call(xs), xs[0])


def test_the_contract_is_checked(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor[] xs) -> Tensor", outputs=opaq.like("xs[0]"))
    op.cpu(
        source="void bad(float* x, float* out, long n)"
        "{ for (long i = 0; i < n; ++i) out[i] = x[i]++; }",
        entry="bad",
        args="xs[1], out, out.numel()",
    )
    compiled = torch.compile(
        lambda xs: op([x + 1 for x in xs]), backend="opaq", options={"check": "contract"}
    )
    with pytest.raises(opaq.ContractError, match="`xs_1`"):
        compiled(tensors(2))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda op: op(torch.ones(2)), opaq.LaunchError, "`xs` is a Tensor; expected a list of"),
        (lambda op: op(None), opaq.LaunchError, "argument `xs` is None; expected a list of"),
        (lambda op: op([]), opaq.LaunchError, "a call with lists of 0 items does not fit"),
        (lambda op: op([1, 2]), opaq.LaunchError, "`xs_0` is a int; expected a torch.Tensor"),
        (
            lambda op: op([torch.ones(2), None]),
            opaq.LaunchError,
            "`xs_1` is None; expected a torch.Tensor",
        ),
        (lambda op: op(tensors(9)), opaq.CompileError, "field `from` is `float const*[8]`; got a "),
        (lambda op: op([torch.ones(2), torch.ones(3)]), opaq.LaunchError, "no implementation"),
        (
            lambda op: op.backward("tensor_lists::wrong"),
            opaq.DeclarationError,
            "a list of tensors, whose items a backward op cannot name; give a function",
        ),
    ],
)
def test_wrong_calls(call: object, error: type, message: str) -> None:
    op = sum_op("tensor_lists::wrong")
    with pytest.raises(error) as raised:
        call(op)  # type: ignore[operator]
    assert message in str(raised.value) and "tensor_lists::wrong" in str(raised.value)


def test_wrong_declarations(unique: str) -> None:
    with pytest.raises(opaq.DeclarationError, match="'xs' is a list; take an item, xs"):
        opaq.op(f"{unique}(Tensor[] xs) -> Tensor", outputs=opaq.like("xs"))
    op = opaq.op(f"{unique}(Tensor[] xs) -> Tensor", outputs=opaq.like("xs[0]"))
    with pytest.raises(opaq.DeclarationError, match="unknown name 'ys'"):
        op.cpu(source="void f(){}", entry="f", args="*(x.numel() for x in xs), ys, out")


def test_it_is_checked_without_a_gpu(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor(a!)[] ps, Tensor[] gs, float rate) -> ()")
    table = opaq.struct("Table", p="ps", g="gs", size="[p.numel() for p in ps]", rate="rate")
    op.cuda(
        source="""
        template <int N> struct Table { float* p[N]; const float* g[N]; long size[N]; float rate; };
        template <int N> __global__ void sgd(const __grid_constant__ Table<N> t) {
          int k = blockIdx.y;
          for (long i = blockIdx.x * blockDim.x + threadIdx.x; i < t.size[k]; i += 256 * gridDim.x)
            t.p[k][i] -= t.rate * t.g[k][i];
        }""",
        entry="sgd<{len(ps)}>",
        grid="max(ceil_div(p.numel(), 256) for p in ps), len(ps)",
        block=256,
        args=[table],
    )
    report = op.check(tensors(3, 1000), tensors(3, 1000), 0.1, arch="sm_90a")
    assert report.ok, report
    lowering.activate()
    shapes = [(1000,)] * 4
    text = wrapper_source(lambda a, b, c, d: op.overload([a, b], [c, d], 0.1), *shapes)
    assert f"{unique}[2, 2]" in text
