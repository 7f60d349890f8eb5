"""`opaq.op`: an opaque operator, declared once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from . import _runtime, autograd, code_check, lowering, rules, validate
from . import sharding as sharding_
from .callable_base import CallableBase
from .declaring import declaring
from .example_arguments import example_argument, fake_argument
from .fake import make_fake, make_largest
from .lowering import counts, lists
from .lowering.compat import pytorch
from .reference import Returning, define_reference
from .registrations import Registrations
from .rules import Output
from .sharding import Sharding
from .signature import signature_of

_Function = TypeVar("_Function", bound=Callable[..., Any])

_ops: dict[str, Op] = {}


def op(
    schema: str,
    *,
    outputs: Output | Mapping[str, Output] | None = None,
    effects: str | None = None,
    tags: torch.Tag | Sequence[torch.Tag] = (),
    sharding: Sharding = None,
    accumulates: str | None = None,
    replace: bool = False,
) -> Op:
    """Declares an opaque operator.

    schema: PyTorch's grammar with a namespace,
        "mylib::rms_norm(Tensor x, Tensor weight, float eps=1e-6) -> (Tensor y)".
        "mylib::f.two(...)", an overload, is another op than "mylib::f(...)". `Tensor(a!) cache` is
        written to. Every result is a Tensor; a single unnamed one is called `out`, several `out0`,
        `out1`, ...
    outputs: how each result is made from the arguments: opaq.like("x"), or
        opaq.tensor("x.shape[:-1]", dtype="float32"); a dict by name when there are several; nothing
        for `-> ()`.
    effects: what a call does beside computing its results from its arguments. Without it, equal
        calls may be merged into one, and a call whose result is not used may be dropped.
        "random": it draws random numbers with PyTorch's generators, as an implementation with
        opaq.philox() or opaq.exponential(...) does, or a Python function with torch.rand. Calls are
        never merged; activation checkpoints draw the same numbers again.
        "ordered": it reads or changes other state which is not among its arguments (a counter, a
        file). Compiled graphs make each of its calls once and in order, as eager does, and do not
        repeat them for the backward pass. Not for an op that writes to arguments; state in a tensor
        is better declared as an argument, `Tensor(a!) state`.
    tags: of torch.Tag, what else PyTorch should know. cudagraph_unsafe: the op is kept out of CUDA
        graphs. flexible_layout: in compiled graphs, arguments whose strides every implementation
        reads may have longer rows than in eager, as Inductor pads them, instead of being copied.
        pt2_compliant_tag is always there.
    sharding: how the op is computed on DTensors (torch.distributed.tensor), each process on its own
        part. "pointwise": each element of the results depends on those at the same place; so it is
        with tags=torch.Tag.pointwise. "rows": each row (along the last dimension) of the results
        depends on the same row of the tensors with most dimensions, and on all of the others, such
        as weights. Else a function, as for register_sharding of torch.distributed.tensor. Sizes in
        integer arguments must not be those of a split dimension. Without it, the reference tells:
        what provably needs only the parts of its arguments is computed on them, anything else on
        whole tensors; without a reference, a call on DTensors is an error.
    accumulates: the name of an argument, `Tensor? added=None`, that the op adds to its first result
        where it is given: a row-major tensor of the result's shape and dtype. Where a compiled
        graph adds a tensor that it has before the call to that result, which is row-major, too, or
        has gaps between its rows, and uses the result for nothing else, the op gets the tensor, and
        the sum needs no kernel of its own. Gradients are often added so. The sum is rounded once. A
        call that some implementation serves without the tensor must be served with it, too: an
        implementation names it in its argument list, or requires "not defined(added)", beside
        another one for the same device. Not for an op that writes to arguments, or with effects.
    replace: forget an earlier declaration of this name (in a notebook); compiled graphs are
        compiled again. The operator stays the same object, so code that has it uses the new
        declaration. Not needed for an implementation that never compiled, nor for an edited file.

    Repeating a declaration returns the same operator. Raises opaq.DeclarationError, which says what
    was given, what is accepted, and the nearest valid name.
    """
    validate.text("opaq.op(...)", "schema", schema)
    where = schema.partition("(")[0].strip() or "opaq.op(...)"
    if effects not in (None, "ordered", "random"):
        raise _runtime.DeclarationError(
            f'{where}: got effects={effects!r}; expected "random", "ordered", or None for a '
            "function of its arguments"
        )
    texts = rules.output_texts(where, outputs)
    given = validate.tags(where, tags)
    sharding_.checked(where, sharding)
    with declaring:
        name = _runtime.declare(schema, texts, validate.flag(where, "replace", replace))
        known = _ops.get(name)
        if effects == "ordered":
            refuse_effects_of_writes(_runtime.describe(name))
        _refuse_of_counts(name, given, sharding)
        if sharding is not None:
            _refuse_of_writes(
                _runtime.describe(name),
                "sharding",
                f"; {sharding_.ON_LOCAL_TENSORS}",
            )
        if accumulates is not None:
            _check_accumulates(_runtime.describe(name), accumulates, effects)
        if known is None:
            known = Op(name)
            known._set_rules(effects, given, sharding)
            known._set_accumulates(accumulates)
            _ops[name] = known
        elif replace:
            known._redeclared()
            known._set_rules(effects, given, sharding)
            known._set_accumulates(accumulates)
        else:
            for what, had, got in (
                ("effects", known.effects, effects),
                ("tags", known._tags, given),
                ("sharding", known.sharding, sharding),
                ("accumulates", known.accumulates, accumulates),
            ):
                # a function is another one each time that a cell of a notebook runs
                if had != got and not (callable(had) and callable(got)):
                    raise _runtime.DeclarationError(
                        f"{name} is declared with {what}={had!r}; got {got!r}. Give the same, or "
                        "replace=True"
                    )
    if replace:
        known._forget_all_graphs()
    return known


def _refuse_of_writes(info: _runtime.OpInfo, what: str, todo: str) -> None:
    """Raises DeclarationError if the op writes to arguments, which excludes `what`."""
    written = [f"`{arg['name']}`" for arg in info["args"] if arg["mutated"]]
    if written:
        raise _runtime.DeclarationError(
            f"{info['name']}: {what} is not for an op that writes to arguments "
            f"({', '.join(written)}){todo}"
        )


def _refuse_of_counts(name: str, tags: tuple[torch.Tag, ...], sharding: Sharding) -> None:
    """Raises DeclarationError if the op has sizes that only a launch knows, and a rule by which a
    part of its results follows from a part of its arguments.
    """
    rules_ = {
        "tags=torch.Tag.pointwise": torch.Tag.pointwise in tags,
        f"sharding={sharding!r}": isinstance(sharding, str),
    }
    for rule, given in rules_.items():
        if given and counts.are_read(info := _runtime.describe(name)):
            raise _runtime.DeclarationError(
                f"{name}: {rule} is not for an op with the count "
                f"`{counts.names(info)[0]}`: which elements its results have is known only when "
                "it has run; leave it out"
            )


def _check_accumulates(info: _runtime.OpInfo, argument: object, effects: str | None) -> None:
    name = info["name"]
    _refuse_of_writes(info, "accumulates", "; leave it out")
    optional = [
        arg["name"] for arg in info["args"] if arg["torch_type"] == "Tensor" and arg["optional"]
    ]
    if argument not in optional:
        raise _runtime.DeclarationError(
            f"{name}: got accumulates={argument!r}; expected the name of an argument that is a "
            f"tensor or None, such as `Tensor? added=None`"
        )
    if effects:
        raise _runtime.DeclarationError(
            f"{name}: accumulates is not for an op with effects={effects!r}, whose calls stay "
            "where they are; leave one of them out"
        )
    if not info["outputs"] or counts.are_read(info):
        raise _runtime.DeclarationError(
            f"{name}: accumulates={argument!r} is for a first result whose shape follows from the "
            "arguments; leave it out"
        )


def refuse_effects_of_writes(info: _runtime.OpInfo) -> None:
    _refuse_of_writes(
        info,
        'effects="ordered"',
        ": PyTorch keeps only ops without written arguments in order. Declare the state as a "
        "written argument too, `Tensor(a!) state`, and leave effects out",
    )


class Op(CallableBase, Registrations):
    """An opaque operator; made by `opaq.op`. Call it as a function, under torch.compile or not.

    It derives from functools.partial, without bound arguments, for two reasons: a call enters the
    C++ runtime with no Python frame between, and torch.compile, which replaces a partial by its
    `func`, finds the op of PyTorch's dispatcher there. Compiled code can therefore call an op, but
    not read its other attributes.
    """

    __slots__ = ("func",)  # hides that of functools.partial, which is the runtime's function
    _known_before: bool  # whether somebody else had registered kernels for an op of this name

    def __new__(cls, name: str, by_library: bool = False) -> Op:
        # by_library: a library has declared the op in C++, and thereby defined it
        known_before = not by_library and pytorch.is_known(name)
        _runtime.define(name)
        pytorch.know_overloads(name)
        overload = lowering.overload_of(name)
        made = super().__new__(cls, _runtime.eager(name, overload))
        made.func = made.overload = overload
        made._known_before = known_before
        return made

    def __init__(self, name: str, by_library: bool = False) -> None:
        self.name = name
        self.info = _runtime.describe(name)
        self.effects: str | None = None
        self._tags: tuple[torch.Tag, ...] = ()
        self.sharding: Sharding = None
        torch.library.register_fake(name, lambda *args, **kwargs: _ops[name].fake(*args, **kwargs))
        if any(arg["mutated"] for arg in self.info["args"]):
            pytorch.count_mutations(
                self.overload, [i for i, arg in enumerate(self.info["args"]) if arg["mutated"]]
            )
        pytorch.register_autograd(self.overload, lambda: _ops[name].gradient)
        lowering.formulas[name] = lambda: _ops[name].gradient
        lowering.largest_results[name] = lambda: _ops[name].largest
        if not self._known_before:
            _runtime.watch(name, pytorch.kernel_entries(name))
        self._redeclared()

    def _redeclared(self) -> None:
        """Resets everything to a new declaration, which has no implementations yet."""
        _runtime.define(self.name)
        self._forget_registrations()
        self.gradient = autograd.Gradient(self.name, self.overload)
        pytorch.when_dtensor_is_used(self.name, lambda: sharding_.register(self))
        self.reference_function: Callable[..., Any] | None = None
        declared = _runtime.describe(self.name)
        self.largest = make_largest(declared)
        self.fake = make_fake(declared, self.largest)
        # by the name of the op, or of its form if it takes lists of tensors
        self.examples: dict[str, list[list[_runtime.FakeArgument]]] = {}
        self._describe()

    def _set_rules(
        self, effects: str | None, tags: tuple[torch.Tag, ...], sharding: Sharding
    ) -> None:
        if (effects == "ordered") != (self.effects == "ordered"):
            pytorch.set_ordered(self.overload, effects == "ordered")
        implied = (torch.Tag.nondeterministic_seeded,) if effects == "random" else ()
        if counts.are_read(self.info):
            implied += (torch.Tag.cudagraph_unsafe, torch.Tag.dynamic_output_shape)
        pytorch.set_tags(self.overload, (*tags, *implied))
        if effects:
            _runtime.extend_hash(self.name, "effects", effects)
        self.effects, self._tags, self.sharding = effects, tags, sharding
        pytorch.forget_shardings()

    def _set_accumulates(self, argument: str | None) -> None:
        lowering.accumulating.pop(self.name, None)
        if argument:
            _runtime.extend_hash(self.name, "accumulates", argument)
            lowering.accumulating[self.name] = lowering.Accumulated(argument)

    @property
    def accumulates(self) -> str | None:
        """The argument that the op adds to its first result."""
        found = lowering.accumulating.get(self.name)
        return found and found.argument

    def reference(self, function: _Function) -> _Function:
        """Decorator for the op written in PyTorch: a function of the op's arguments that returns
        its results. It runs when no implementation fits, and tests compare with it. A result whose
        shape or dtype differs from the output rule is an opaq.LaunchError.
        """
        validate.function(
            f"{self.name}: .reference(...)",
            "function",
            function,
            "a function of the op's arguments, in PyTorch",
        )
        self.reference_function = function
        with declaring:
            fallback = define_reference(Returning(self.info, function, self.largest), self.info)
        _runtime.set_reference(self.name, fallback)
        self._changed()
        pytorch.forget_shardings()
        return function

    def backward(
        self,
        formula: str | Op | Sequence[str | Op] | Callable[..., Any] | None,
        *,
        saves: str | None = None,
        setup_context: Callable[..., Any] | None = None,
        written: str | None = None,
        non_differentiable: str | None = None,
    ) -> Op:
        """Declares the gradient. Returns the op. Raises opaq.DeclarationError.

        formula: one of three.
            The name of a backward op, bound by the names in its schema: an argument
            `grad_<result>` is the gradient of that result (zeros where the loss does not depend on
            it; None there if it is declared as `Tensor?`), a bool `needs_grad_<argument>` tells
            whether that argument's gradient is needed, any other is an argument or result of this
            op; its results are `grad_<argument>`. Or a list of such ops, which give the gradients
            of different arguments (x, weight, and both, say): each call runs the fewest that give
            what is needed, and keeps only what these read.
            A function (ctx, *grads), with setup_context(ctx, inputs, output), as for
            torch.library.register_autograd; it returns one gradient for each argument of the
            schema. ctx.needs_input_grad tells which are needed.
            None: no gradient flows through this op.
        saves: with a backward op, the names of the arguments and results that are kept for it; only
            to have them checked.
        written: with a function, the names of the written arguments whose new values are
            differentiated, such as "cache"; by default all of them if the op returns nothing, else
            none. The function gets their gradients after those of the results, and returns, in
            their places, the gradients of the values before the call. A backward op says the same
            by an argument `grad_<written argument>`. Other written arguments (scratch memory,
            statistics) carry no gradient and must not require grad.
        non_differentiable: the names of the tensor arguments to which no gradient flows, such as
            "mask". For any other that requires grad, a missing gradient is an error.
        """
        where = f"{self.name}: .backward(...)"
        several = isinstance(formula, (list, tuple)) and len(formula) > 0
        given = formula if several else [formula]
        ops = [each.name if isinstance(each, Op) else each for each in given]
        by_ops = all(isinstance(each, str) for each in ops)
        if non_differentiable is not None:
            non_differentiable = validate.names(where, "non_differentiable", non_differentiable)
        if by_ops:
            for each in ops:
                validate.text(where, "formula", each)
            if setup_context is not None:
                validate.refuse(
                    where,
                    "setup_context",
                    setup_context,
                    f"none with a backward op, here {', '.join(ops)}; leave it out",
                )
            saves = None if saves is None else validate.names(where, "saves", saves)
        else:
            if formula is not None:
                expected = (
                    "the name of a backward op, the op itself, a list of them, a function (ctx, "
                    "*grads), or None for no gradient"
                )
                validate.function(where, "formula", formula, expected)
            if saves is not None:
                validate.refuse(
                    where,
                    "saves",
                    saves,
                    "none with a function, which saves in setup_context; leave it out",
                )
            if setup_context is not None:
                validate.function(
                    where, "setup_context", setup_context, "a function (ctx, inputs, output)"
                )
        if by_ops:
            self.gradient.set_backward_ops(self, ops, saves, non_differentiable)
        else:
            self.gradient.set_backward_functions(
                formula, setup_context, written, non_differentiable
            )
        self._changed()
        return self

    def jvp(self, function: _Function) -> _Function:
        """Decorator for the forward-mode derivative: a function (inputs, tangents, output) that
        returns the tangents of the results, one tensor or a tuple, None where there is none.

        inputs: a tuple of all arguments, in the order of the schema. tangents: a tuple with the
        tangent of each, None for what has none. output: what the op returned. Written in PyTorch,
        with other ops that have derivatives, it serves torch.func.jvp, jacfwd and hessian. Only for
        an op that writes to no argument. Raises opaq.DeclarationError.
        """
        where = f"{self.name}: .jvp(...)"
        expected = "a function (inputs, tangents, output) that returns tangents"
        self.gradient.set_forward(validate.function(where, "function", function, expected))
        self._changed()
        return function

    def register_autograd(
        self,
        backward: Callable[..., Any] | None,
        /,
        *,
        setup_context: Callable[..., Any] | None = None,
        written: str | None = None,
        non_differentiable: str | None = None,
    ) -> None:
        """As `backward` with a function, or with None for "no gradient flows through this op"."""
        self.backward(
            backward,
            setup_context=setup_context,
            written=written,
            non_differentiable=non_differentiable,
        )

    def register_effect(self, effect: Any) -> None:
        """As effects="ordered" of opaq.op for torch.library's EffectType.ORDERED; None takes that
        back.
        """
        effects = "ordered" if pytorch.is_ordered(effect) else None
        if effects:
            refuse_effects_of_writes(self.info)
        if self.effects != "random":
            self._set_rules(effects, self._tags, self.sharding)
        elif effects:
            raise _runtime.DeclarationError(
                f'{self.name}: .register_effect(...): the op is declared with effects="random"; '
                "calls that draw random numbers are never merged, and keep their order"
            )
        self._forget_all_graphs()

    def _changed(self) -> None:
        self._describe()
        self._forget_graphs()

    def _describe(self) -> None:
        with declaring:
            self.info = _runtime.describe(self.name)
            lowering.register(self.name)

    def _forget_all_graphs(self) -> None:
        """Also those from which a call of the op was dropped."""
        if pytorch.tracer_is_loaded():
            torch.compiler.reset()

    def _forget_graphs(self) -> None:
        if pytorch.tracer_is_loaded() and any(
            lists.declared_name(node["op"]) == self.name
            for node in (*_runtime.node_stats(), *_runtime.wrapper_nodes())
        ):
            torch.compiler.reset()  # or compiled graphs would go on using the old declaration

    # ---- use -------------------------------------------------------------------------------------

    def warmup(self, *args: Any) -> None:
        """Compiles and loads what a call with these arguments needs, without running it; to be
        called before a CUDA graph is captured. Raises what the call would raise: opaq.CompileError,
        or opaq.LaunchError if nothing can serve it.
        """
        form, values = self.form_of(args)
        _runtime.warmup(form, values)

    def explain(self, *args: Any) -> str:
        """Which implementation a call with these arguments (tensors on any device, meta too) would
        run, and why: one line for each implementation.
        """
        form, values = self.form_of(args)
        return _runtime.plan(form, [fake_argument(value) for value in values])["reasons"]

    def example(self, *args: Any) -> Op:
        """Adds an example of a call, for `check` and the command `opaq check`. Returns the op.

        args: all required arguments, in the order of the schema. Of tensors (meta tensors, say),
        dtype, sizes and strides are kept, and they stand for tensors on any device.
        Raises opaq.LaunchError if the op takes no such arguments.
        """
        form, values = self.form_of(args)
        example = [example_argument(value) for value in values]
        _runtime.plan(form, example)
        self.examples.setdefault(form, []).append(example)
        return self

    def check(self, *args: Any, arch: str | Sequence[str] = ()) -> code_check.CodeCheck:
        """Checks every implementation without running anything; no GPU is needed. Source is
        compiled, and argument lists are compared with signatures. The result has what the kernels
        take (registers, shared memory, spills), an estimate of their occupancy, and the launch
        sizes. A kernel that does not compile is a problem in it (`ok`, `problems`), no exception.

        args: an example of a call: tensors on any device, meta tensors too, which stand for tensors
            on each implementation's device. Without any, the op's examples (`example`) are used; if
            there are none, what depends on the arguments is left out, and template arguments that
            are dtypes are filled with one that fits.
        arch: what CUDA source is compiled for, such as "sm_90a", or several in a list; by default
            the current GPU's.

        Raises opaq.DeclarationError for `arch`, opaq.LaunchError if the op takes no such arguments.
        """
        archs = code_check.archs_of(f"{self.name}: .check(...)", arch)
        form, values = self.form_of(args) if args else (self.name, ())
        example = [example_argument(value) for value in values]
        return code_check.check(self.name, {form: [example]} if args else self.examples, archs)

    def largest_of_form(self, form: str, args: Sequence[Any]) -> list[torch.Tensor]:
        """The results of a call of the op's form, uninitialised, of the largest sizes that they
        can have.
        """
        info = _runtime.describe(form)
        positional, keywords = lists.as_called(info, args)
        made = make_largest(info)(*positional, **keywords)
        return list(made) if isinstance(made, tuple) else [] if made is None else [made]

    def order_changed(self) -> None:
        """To be called when implementations are tried in another order."""
        self._changed()

    def form_of(self, args: Sequence[Any]) -> tuple[str, Sequence[Any]]:
        """Of a call of an op with lists of tensors: the name of the op's form for it, and that
        form's arguments. Else the op's name and `args`.
        """
        if not lists.has_lists(self.info):
            return self.name, args
        form, values = lists.form_of(self.info, args, {})
        return form["name"], values

    def __repr__(self) -> str:
        return f"<opaq.op {self.info['schema']}>"

    @property
    def __signature__(self) -> inspect.Signature:
        return signature_of(self.info["args"])

    def __reduce__(self) -> tuple[Any, ...]:
        return _declared, (self.name,)  # copies are the op itself


def declared_ops() -> list[Op]:
    """All ops of this process, in the order of their first declaration."""
    return list(_ops.values())


def find_op(name: str) -> Op | None:
    return _ops.get(name)


def op_of_library(name: str, effects: str | None, tags: tuple[torch.Tag, ...]) -> Op:
    """The op that a shared library has declared in C++ and that Python does not know yet."""
    with declaring:
        if effects == "ordered":
            refuse_effects_of_writes(_runtime.describe(name))
        made = Op(name, by_library=True)
        made._set_rules(effects, tags, None)
        return _ops.setdefault(name, made)


def _declared(name: str) -> Op:
    if name not in _ops:
        raise _runtime.DeclarationError(
            f"{name} was pickled as an op, but is not declared in this process; import the "
            "module that declares it"
        )
    return _ops[name]
