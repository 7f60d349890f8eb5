"""The contract check: it finds each kind of violation and names op, node, argument and line of user
code; right programs pass.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import forked
import pytest
import torch

import opaq
from opaq import _runtime
from opaq.lowering import generated

CHECK = {"check": "contract"}

SOURCE = """
#include <cstdint>
void twice(float* y, const float* x, int64_t n) { for (int64_t i = 0; i < n; ++i) y[i] = 2 * x[i]; }
void scribbles(float* y, float* x, int64_t n) { for (int64_t i = 0; i < n; ++i) y[i] = 2 * x[i];
    x[1] = 7; }
void stops_early(float* y, const float* x, int64_t n) { for (int64_t i = 0; i < n - 1;
    ++i) y[i] = 2 * x[i]; }
void runs_over(float* y, const float* x, int64_t n) { for (int64_t i = 0; i <= n; ++i) y[i] = 2; }
void starts_before(float* y, const float* x, int64_t n) { for (int64_t i = -1; i < n; ++i) y[i] = 2;
    }
void doubles(float* x, int64_t n) { for (int64_t i = 0; i < n; ++i) x[i] *= 2; }
void doubles_one_more(float* x, int64_t n) { for (int64_t i = 0; i <= n; ++i) x[i] *= 2; }
void reversed(const float* x, float* z, int64_t n) { for (int64_t i = 0; i < n;
    ++i) z[i] = x[n - 1 - i]; }
void bytes(int8_t* y, const int8_t* x, int64_t n) { for (int64_t i = 0; i < n; ++i) y[i] = x[i]; }
void bytes_but_one(int8_t* y, const int8_t* x, int64_t n) { for (int64_t i = 0; i < n;
    ++i) if (i != 2) y[i] = x[i]; }
"""


def made(unique: str, entry: str, **options: Any) -> opaq.Op:
    """An op y = entry(x)."""
    partial = options.pop("partial", False)
    op = opaq.op(f"{unique}(Tensor x) -> (Tensor y)", outputs=opaq.like("x", partial=partial))
    op.cpu(source=SOURCE, entry=entry, args="y, x, x.numel()", **options)
    return op


def written(unique: str, entry: str) -> opaq.Op:
    op = opaq.op(f"{unique}(Tensor(a!) x) -> ()")
    op.cpu(source=SOURCE, entry=entry, args="x, x.numel()")
    return op


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    torch.compiler.reset()
    return torch.compile(function, backend="opaq", options={**CHECK, **options})


def violation(function: Callable[..., Any], *args: Any) -> str:
    with pytest.raises(opaq.ContractError) as caught:
        compiled(function)(*args)
    assert isinstance(caught.value, opaq.LaunchError)
    return str(caught.value)


def test_a_write_to_an_argument_that_is_not_declared(unique: str) -> None:
    op = made(unique, "scribbles")
    text = violation(lambda x: op(x + 1), torch.ones(2, 3))
    assert f"{unique} (node op" in text and "test_contract.py:" in text
    assert (
        "argument `x` is not declared as written, but implementation `cpu` changed it: x[0, 1] "
        "had the bytes 00 00 00 40, and has 00 00 e0 40" in text
    )
    assert "declare it `Tensor(a!) x` in the schema, or correct the kernel" in text


def test_a_write_beside_a_view(unique: str) -> None:
    op = written(unique, "doubles_one_more")
    base = torch.ones(8)

    def program(base: torch.Tensor) -> None:
        op(base[2:5])

    text = violation(program, base)
    assert (
        "wrote beside argument `x`, in the tensor that it is a view of: 14 bytes from its "
        "first element was 80, and is 00" in text
    )


def test_an_output_that_is_not_wholly_written(unique: str) -> None:
    op = made(unique, "stops_early")
    text = violation(lambda x: op(x), torch.ones(2, 3))
    assert (
        "left an element of result `y` (6 elements) unwritten, the first at y[1, 2]; write "
        "them, or declare the output with partial=True" in text
    )


def test_an_output_declared_as_partial(unique: str) -> None:
    op = made(unique, "stops_early", partial=True)
    assert compiled(lambda x: op(x))(torch.ones(3))[:2].tolist() == [2, 2]


@pytest.mark.parametrize(
    ("entry", "place"),
    [
        ("runs_over", "0 bytes past its last element"),
        ("starts_before", "bytes before its first element"),
    ],
)
def test_a_write_outside_an_output(unique: str, entry: str, place: str) -> None:
    op = made(unique, entry)
    text = violation(lambda x: op(x), torch.ones(64))
    assert "implementation `cpu` wrote outside result `y`, " in text and place in text


def launch_object(op: opaq.Op, **options: Any) -> Callable[..., None]:
    graph = generated.Graph("planted")
    return graph.launch(
        op.name,
        op.info["hash"],
        device="cpu",
        node="op7",
        implementation="cpu",
        check=True,
        source="model.py:3",
        **options,
    )


def test_a_result_in_another_layout_than_its_rule_says(unique: str) -> None:
    launch = launch_object(made(unique, "twice"))
    with pytest.raises(opaq.ContractError) as caught:
        launch(torch.ones(4), torch.empty(5), laid_out=(None, None))
    text = str(caught.value)
    assert text.startswith(f"{unique} (node op7 of planted") and "from model.py:3)" in text
    assert (
        "result `y` is float32 (5,) with strides (1,) on cpu; its output rule says float32 "
        "(4,) with strides (1,) on cpu" in text
    )


def test_an_argument_in_another_layout_than_the_graph_was_compiled_for(unique: str) -> None:
    launch = launch_object(made(unique, "twice"))
    with pytest.raises(
        opaq.ContractError,
        match=r"`x` is torch.float32 \(4,\) with strides \(1,\); the graph was compiled for "
        r"torch.float64 \(4,\)",
    ):
        launch(torch.ones(4), torch.empty(4), laid_out=(((4,), (1,), torch.float64), None))


def test_a_result_in_the_memory_of_an_argument(unique: str) -> None:
    launch, x = launch_object(made(unique, "twice")), torch.ones(8)
    with pytest.raises(
        opaq.ContractError,
        match="result `y` shares memory with argument `x`; a result must have memory of its own",
    ):
        launch(x[:4], x[2:6], laid_out=(None, None))


def test_a_requirement_that_does_not_hold_at_the_launch(unique: str) -> None:
    launch = launch_object(made(unique, "twice", requires="x.size(0) % 4 == 0"), chosen="verified")
    launch(torch.ones(4), torch.empty(4), laid_out=(None, None))
    with pytest.raises(opaq.ContractError) as caught:
        launch(torch.ones(5), torch.empty(5), laid_out=(None, None))
    text = str(caught.value)
    assert (
        "implementation `cpu` was chosen when the graph was compiled, but it does not fit at "
        "the launch"
        in text
        and "x.size(0) % 4 == 0 does not hold" in text
    )


def test_a_dropped_copy(unique: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op = opaq.op(f"{unique}(Tensor x, Tensor(a!) z) -> ()")
    op.cpu(source=SOURCE, entry="reversed", args="x, z, x.numel()")

    def program(x: torch.Tensor) -> torch.Tensor:
        z = x + 1
        op(z.clone(), z)
        return z

    x = torch.arange(5.0)
    assert torch.equal(compiled(program)(x), program(x))
    without_mending(monkeypatch)
    text = violation(program, x)
    assert f"{unique} (node op" in text and "in program" in text
    assert (
        "argument `z` after the call is " in text
        and "that the op gives when it is run by itself on what the traced graph gives it" in text
    )


def test_a_value_that_is_read_after_it_was_overwritten(
    unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    op = opaq.op(f"{unique}(Tensor x, Tensor(a!) z) -> ()")
    op.cpu(source=SOURCE, entry="reversed", args="x, z, x.numel()")
    read = made(unique + "_read", "twice")

    def program(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = x + 1
        old = z.clone()
        op(x, z)
        return read(old), z

    x = torch.arange(5.0)
    for got, wanted in zip(compiled(program)(x), program(x)):
        assert torch.equal(got, wanted)


def test_an_input_that_is_overwritten_for_want_of_a_copy(
    unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubles, read = written(f"{unique}_doubles", "doubles"), made(f"{unique}_read", "twice")

    def program(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = x.clone()
        doubles(z)
        return z, read(x)

    x = torch.arange(5.0)
    for got, wanted in zip(compiled(program)(x), program(x)):
        assert torch.equal(got, wanted)
    without_mending(monkeypatch)
    drops_clones(monkeypatch)
    text = violation(program, x)
    assert (
        "_read (node op" in text
        and "argument `x` is 2.0 at [1], and not the 1.0 that the traced graph gives it" in text
    )


def drops_clones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plants a fault that no torch has: after the traced graph is kept, every clone in Inductor's
    graph is replaced by its original.
    """
    from opaq.lowering.contract import traced

    original = traced.keep

    def keep(graph: torch.fx.Graph, registered: Any) -> Any:
        mark = original(graph, registered)

        def drop() -> None:
            if mark is not None:
                mark()
            for node in list(graph.nodes):
                if node.target is torch.ops.aten.clone.default:
                    node.replace_all_uses_with(node.args[0])
                    graph.erase_node(node)

        return drop

    monkeypatch.setattr(traced, "keep", keep)


def without_mending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns off the code of opaq that restores copies which Inductor removes."""
    from opaq.lowering import copies, place

    monkeypatch.setattr(copies, "restore_sharing", lambda *_: None)
    monkeypatch.setattr(place, "_same_memory", lambda *_: False)
    monkeypatch.setattr(place, "keep_old_values", lambda *_: None)


def test_a_function_that_writes_to_another_argument_than_it_says(unique: str) -> None:
    @opaq.custom_op(unique, mutates_args=())
    def bad(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        x[1] = 7
        return y

    bad.register_fake(torch.empty_like)
    text = violation(lambda x: bad(x + 1), torch.ones(3))
    assert (
        "argument `x` is not declared as written, but the function changed it: x[1] was 2.0, "
        "and is 7.0; name it in mutates_args" in text
    )


def test_a_function_that_writes_to_a_tensor_of_a_list(unique: str) -> None:
    def adds(xs: list[torch.Tensor], to: list[torch.Tensor]) -> None:
        for x, y in zip(xs, to):
            y.add_(x)

    def program(x: torch.Tensor) -> list[torch.Tensor]:
        to = [x.sin(), x.cos()]
        op([x + 1, x + 2], to)
        return to

    x = torch.randn(5)
    op = opaq.custom_op(unique, adds, mutates_args=("to",))
    for got, wanted in zip(compiled(program)(x), program(x)):
        torch.testing.assert_close(got, wanted)

    def scribbles(xs: list[torch.Tensor], to: list[torch.Tensor]) -> None:
        xs[1].zero_()

    op = opaq.custom_op(f"{unique}_bad", scribbles, mutates_args=("to",))
    assert (
        "argument `xs[1]` is not declared as written, but the function changed it: xs[1][0] "
        "was 3.0, and is 0.0" in violation(program, torch.ones(2))
    )


# ---- right programs pass -------------------------------------------------------------------------


def test_values_that_look_like_unwritten_memory(unique: str) -> None:
    op = opaq.op(f"{unique}(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
    op.cpu(source=SOURCE, entry="bytes", args="y, x, x.numel()")
    x = torch.arange(-128, 128, dtype=torch.int8)
    assert torch.equal(compiled(lambda x: op(x))(x), x)
    bad = opaq.op(f"{unique}_bad(Tensor x) -> (Tensor y)", outputs=opaq.like("x"))
    bad.cpu(source=SOURCE, entry="bytes_but_one", args="y, x, x.numel()")
    assert "left an element of result `y` (256 elements) unwritten, the first at y[2]" in violation(
        lambda x: bad(x), x
    )


def test_right_programs(unique: str) -> None:
    twice, doubles = made(f"{unique}_twice", "twice"), written(f"{unique}_doubles", "doubles")
    twice.backward(lambda ctx, grad: twice(grad))

    def views(x: torch.Tensor) -> torch.Tensor:
        y = x.t().contiguous()
        doubles(y[1:])
        return twice(y).sum(0) + y[0, 0]

    def allocated(x: torch.Tensor) -> torch.Tensor:
        y = torch.empty_like(x)
        y.copy_(x)
        doubles(y)
        return y

    def written_input(x: torch.Tensor) -> torch.Tensor:
        doubles(x)
        return x + twice(x)

    def drawn(x: torch.Tensor) -> torch.Tensor:
        return twice(torch.nn.functional.dropout(x, 0.5)).sum()

    for program in (views, allocated, written_input):
        for dynamic in (False, True):
            torch.compiler.reset()
            run = torch.compile(program, backend="opaq", options=CHECK, dynamic=dynamic)
            for rows in (3, 4):
                a = torch.randn(rows, 5)
                b = a.clone()
                torch.testing.assert_close(run(a), program(b))
                assert torch.equal(a, b)
    torch.manual_seed(0)
    compiled(drawn)(torch.ones(64))

    a = torch.randn(6, requires_grad=True)
    compiled(lambda x: twice(x.sin()))(a).sum().backward()
    torch.testing.assert_close(a.grad, 2 * a.detach().cos())


def test_other_arithmetic_of_compiled_code_does_not_add_up(unique: str) -> None:
    twice, doubles = made(f"{unique}_twice", "twice"), written(f"{unique}_doubles", "doubles")

    def program(x: torch.Tensor) -> torch.Tensor:
        for _ in range(4):
            y = twice((x * 1.1 + 0.3).sin())
            doubles(y)
            x = y * x
        return twice(x)

    torch.manual_seed(2)
    x = torch.randn(33, 7)
    # far from eager: a small difference grows from sine to sine
    unchecked = torch.compile(program, backend="opaq")(x)
    assert torch.equal(compiled(program)(x), unchecked)


def test_functions_that_draw_random_numbers(unique: str) -> None:
    @opaq.custom_op(unique, mutates_args=())
    def noisy(x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)

    noisy.register_fake(torch.empty_like)
    run, x = compiled(lambda x: noisy(noisy(x))), torch.zeros(5)
    torch.manual_seed(7)
    got, state = run(x), torch.get_rng_state()
    torch.manual_seed(7)
    assert torch.equal(got, torch.rand(5) + torch.rand(5)) and torch.equal(
        state, torch.get_rng_state()
    )


def test_calls_that_are_launched_in_another_order_than_they_were_traced(
    unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opaq.lowering.contract import traced
    from opaq.lowering.contract.replay import Replay

    twice, doubles = made(f"{unique}_twice", "twice"), written(f"{unique}_doubles", "doubles")

    def program(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = x + 1
        first = twice(y)
        doubles(y)
        return first, y

    before = set(traced.kept)
    x = torch.ones(3)
    compiled(program)(x)
    (number,) = set(traced.kept) - before
    run = Replay(traced.kept[number], [x])
    later = run.take(1)
    assert later is not None and later["x"].tolist() == [2, 2, 2]
    doubles(later["x"])  # the run by itself writes to it
    run.give(1, later, ())
    earlier = run.take(0)
    assert earlier is not None and earlier["x"].tolist() == [2, 2, 2] and run.done
    run.give(0, earlier, (twice(earlier["x"]),))
    assert run.take(0) is None


def test_nothing_lasts_of_the_replay(unique: str) -> None:
    twice = made(unique, "twice")
    torch.manual_seed(3)
    state = torch.get_rng_state()
    x = torch.ones(4)
    compiled(lambda x: twice(x.add_(1)))(x)
    assert x.tolist() == [2.0] * 4 and torch.equal(torch.get_rng_state(), state)


# ---- the option and the variable -----------------------------------------------------------------


def test_the_option_takes_contract_or_nothing(unique: str) -> None:
    with pytest.raises(
        opaq.DeclarationError,
        match='option "check" of backend="opaq": got \'contracts\'; expected "" or "contract"',
    ):
        opaq.options.split({"check": "contracts"}, [])


def test_forms_without_the_check_refuse_it(unique: str) -> None:
    op = made(unique, "twice")
    with pytest.raises(
        Exception, match="the contract check looks at launches of Inductor's Python wrapper"
    ):
        compiled(lambda x: op(x), cpp_wrapper=True)(torch.ones(3))


def test_off_nothing_is_printed(unique: str) -> None:
    from torch._inductor.utils import run_and_get_code

    op = made(unique, "twice")
    torch.compiler.reset()
    _, (code, *_) = run_and_get_code(torch.compile(lambda x: op(x), backend="opaq"), torch.ones(3))
    assert "check" not in code and "laid_out" not in code and "replay" not in code
    assert isinstance(_runtime.launcher(op.name, op.info["hash"], "cpu", "op0", "g"), type(len))


def test_the_variable_checks_eager_calls_and_stock_compilation(tmp_path: Any) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent('''
        import torch, opaq
        SOURCE = """@SOURCE@"""
        def made(name, entry, schema="(Tensor x) -> (Tensor y)", args="y, x, x.numel()"):
            op = opaq.op("contract_env::" + name + schema,
                **({} if "-> ()" in schema else {"outputs": opaq.like("x")}))
            op.cpu(source=SOURCE, entry=entry, args=args)
            return op
        bad, early, over = made("bad", "scribbles"), made("early", "stops_early"), made("over",
            "runs_over")
        good = made("good", "twice")
        beside = made("beside", "doubles_one_more", "(Tensor(a!) x) -> ()", "x, x.numel()")
        def lying(x):
            x.zero_()
            return x + 1
        lying = opaq.custom_op("contract_env::lying", lying, mutates_args=(),
            schema="(Tensor x) -> Tensor")
        def tell(name, call):
            try:
                call()
                print(name, "passes")
            except opaq.ContractError as error:
                print(name, str(error).replace("\\n", " "))
        x = torch.ones(4)
        tell("direct:", lambda: bad(torch.ones(4)))
        tell("ops:", lambda: torch.ops.contract_env.bad(torch.ones(4)))
        tell("early:", lambda: early(x))
        tell("over:", lambda: over(x))
        tell("beside:", lambda: beside(torch.ones(6)[1:3]))
        tell("function:", lambda: lying(torch.ones(4)))
        tell("good:", lambda: (good(x), torch.ops.contract_env.good(x)))
        tell("stock:", lambda: torch.compile(lambda x: bad(x + 1))(x))
        tell("stock good:", lambda: torch.compile(lambda x: good(x + 1))(x))
        ''').replace("@SOURCE@", SOURCE)
    )
    done = forked.run(
        [sys.executable, str(program)],
        env={**os.environ, "OPAQ_CHECK": "contract"},
        timeout=300,
        inductor=True,
    )
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert (
        f"(called at {program}:" in lines["direct"]
        and "argument `x` is not declared as written" in lines["direct"]
    )
    assert (
        f"(called at {program}:" in lines["ops"]
        and "argument `x` is not declared as written" in lines["ops"]
    )
    assert (
        "unwritten, the first at y[3]" in lines["early"]
        and "wrote outside result `y`" in lines["over"]
    )
    assert (
        "wrote beside argument `x`" in lines["beside"]
        and "name it in mutates_args" in lines["function"]
    )
    assert lines["good"] == lines["stock good"] == "passes"
    assert "(node op" in lines["stock"] and "program.py:" in lines["stock"]


def test_the_variable_takes_contract_or_nothing() -> None:
    done = forked.run(
        [sys.executable, "-c", "import opaq"],
        env={**os.environ, "OPAQ_CHECK": "yes"},
        timeout=120,
    )
    assert (
        done.returncode != 0
        and "OPAQ_CHECK='yes' is no kind of check; expected \"contract\", or nothing for none"
        in done.stderr
    )
