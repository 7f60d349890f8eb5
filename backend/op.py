"""`opaq.op`: an opaque operator, declared once."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from . import _runtime, autograd, code_check, lowering, rules, validate
from . import steps as steps_
from .arguments import Argument, argument_list
from .callable_base import CallableBase
from .example_arguments import example_argument, fake_argument
from .fake import make_fake
from .lowering import lists
from .lowering.compat import pytorch
from .python_function import define as define_python
from .reference import define_reference
from .rules import Output
from .signature import signature_of
from .steps import Philox, Step, Zeros
from .tvm_ffi import load_tvm_ffi
from .validate import Binary, File

_Function = TypeVar("_Function", bound=Callable[..., Any])

_ops: dict[str, Op] = {}

# Held while an op is made or changed, since several threads may declare the same one, and held
# during fork(), so that a child process never gets an op that is half made. Whoever holds it must
# not run user code or reset the compiler: these may wait for a thread that waits for this lock.
declaring = threading.RLock()
os.register_at_fork(
    before=declaring.acquire, after_in_parent=declaring.release, after_in_child=declaring.release
)


def op(
    schema: str,
    *,
    outputs: Output | Mapping[str, Output] | None = None,
    effects: str | None = None,
    replace: bool = False,
) -> Op:
    """Declares an opaque operator.

    schema: PyTorch's grammar with a namespace,
        "mylib::rms_norm(Tensor x, Tensor weight, float eps=1e-6) -> (Tensor y)".
        `Tensor(a!) cache` is written to. Every result is a Tensor; a single unnamed one is called
        `out`, several `out0`, `out1`, ...
    outputs: how each result is made from the arguments: opaq.like("x"), or
        opaq.tensor("x.shape[:-1]", dtype="float32"); a dict by name when there are several; nothing
        for `-> ()`.
    effects: what a call does beside computing its results from its arguments. Without it, equal
        calls may be merged into one, and a call whose result is not used may be dropped.
        "random": it draws random numbers with PyTorch's generators, as an implementation with
        opaq.philox() does, or a Python function with torch.rand. Calls are never merged; activation
        checkpoints draw the same numbers again.
        "ordered": it reads or changes other state which is not among its arguments (a counter, a
        file). Compiled graphs make each of its calls once and in order, as eager does, and do not
        repeat them for the backward pass. Not for an op that writes to arguments; state in a tensor
        is better declared as an argument, `Tensor(a!) state`.
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
    with declaring:
        name = _runtime.declare(schema, texts, validate.flag(where, "replace", replace))
        known = _ops.get(name)
        if effects == "ordered":
            _refuse_effects_of_writes(_runtime.describe(name))
        if known is None:
            known = Op(name)
            known._set_effects(effects)
            _ops[name] = known
        elif replace:
            known._redeclared()
            known._set_effects(effects)
        elif known.effects != effects:
            raise _runtime.DeclarationError(
                f"{name} is declared with effects={known.effects!r}; got {effects!r}. Give the "
                "same, or replace=True"
            )
    if replace:
        known._forget_graphs()
    return known


def _refuse_effects_of_writes(info: _runtime.OpInfo) -> None:
    written = [f"`{arg['name']}`" for arg in info["args"] if arg["mutated"]]
    if written:
        raise _runtime.DeclarationError(
            f'{info["name"]}: effects="ordered" is not for an op that writes to arguments '
            f"({', '.join(written)}): PyTorch keeps only ops without written "
            "arguments in order. Declare the state as a written argument too, `Tensor(a!) "
            "state`, and leave effects out"
        )


class Op(CallableBase):
    """An opaque operator; made by `opaq.op`. Call it as a function, under torch.compile or not.

    It derives from functools.partial, without bound arguments, for two reasons: a call enters the
    C++ runtime with no Python frame between, and torch.compile, which replaces a partial by its
    `func`, finds the op of PyTorch's dispatcher there. Compiled code can therefore call an op, but
    not read its other attributes.
    """

    __slots__ = ("func",)  # hides that of functools.partial, which is the runtime's function
    _known_before: bool  # whether somebody else had registered kernels for an op of this name

    def __new__(cls, name: str) -> Op:
        known_before = pytorch.is_known(name)
        _runtime.define(name)
        overload = lowering.overload_of(name)
        made = super().__new__(cls, _runtime.eager(name, overload))
        made.func = made.overload = overload
        made._known_before = known_before
        return made

    def __init__(self, name: str) -> None:
        self.name = name
        self.info = _runtime.describe(name)
        self.effects: str | None = None
        torch.library.register_fake(name, lambda *args, **kwargs: _ops[name]._fake(*args, **kwargs))
        if any(arg["mutated"] for arg in self.info["args"]):
            pytorch.count_mutations(
                self.overload, [i for i, arg in enumerate(self.info["args"]) if arg["mutated"]]
            )
        pytorch.register_autograd(self.overload, lambda: _ops[name].gradient)
        lowering.formulas[name] = lambda: _ops[name].gradient
        if not self._known_before:
            _runtime.watch(name, pytorch.kernel_entries(name))
        self._redeclared()

    def _redeclared(self) -> None:
        """Resets everything to a new declaration, which has no implementations yet."""
        _runtime.define(self.name)
        self.gradient = autograd.Gradient(self.name, self.overload)
        self._reference: Callable[..., Any] | None = None
        self._fake = make_fake(_runtime.describe(self.name))
        # by the name of the op, or of its form if it takes lists of tensors
        self.examples: dict[str, list[list[_runtime.FakeArgument]]] = {}
        self._describe()

    def _set_effects(self, effects: str | None) -> None:
        if (effects == "ordered") != (self.effects == "ordered"):
            pytorch.set_ordered(self.overload, effects == "ordered")
        if (effects == "random") != (self.effects == "random"):
            pytorch.set_random(self.overload, effects == "random")
        if effects:
            _runtime.extend_hash(self.name, "effects", effects)
        self.effects = effects

    # ---- implementations -------------------------------------------------------------------------

    def cuda(
        self,
        *,
        source: str | File | None = None,
        binary: Binary | Mapping[str, Binary] | None = None,
        entry: str = "",
        args: str | Sequence[str | Argument] = "",
        grid: object = rules.NOT_GIVEN,
        block: object = rules.NOT_GIVEN,
        cluster: object = "",
        shared: object = "0",
        scratch: Mapping[str, Output | Zeros | Philox] | None = None,
        steps: Sequence[Step] = (),
        requires: str | Sequence[str] = (),
        options: Sequence[str] = (),
        include_dirs: Sequence[str] = (),
        compiler: str = "auto",
        priority: int = 0,
        name: str = "cuda",
        cooperative: bool = False,
        programmatic: bool = False,
    ) -> Op:
        """Adds a CUDA implementation. Returns the op. Raises opaq.DeclarationError; source is
        compiled when it is first needed, which may raise opaq.CompileError.

        source: CUDA C++ text, or opaq.file(path); compiled for the current device.
        binary: a cubin, fatbin or PTX instead, as bytes or opaq.file(path); or several by target,
            {"sm_80": ..., "sm_90a": ..., "compute_80": ...} (PTX), of which each device gets the
            best. One that fits no device is opaq.MissingError at the first launch there.
            LTO-IR, alone or in a fatbin, is linked for the current device by nvJitLink. A list is
            linked together, for a kernel that calls functions of a device library.
        entry: the __global__ function; template arguments may hold expressions in braces:
            "rms_norm<{x.dtype}, {x.size(-1)}>".
        args: the kernel's argument list, expressions over arguments and results; of a tensor, its
            address is passed. Checked against the kernel's signature when it is compiled. A list
            may hold opaq.cast(...), opaq.struct(...) and opaq.tensor_map(...) too.
        grid, block, cluster: up to three expressions each. A grid or block that is not given is 1,
            with a warning: a kernel is rarely meant to run as one block, or as one thread.
        shared: bytes of dynamic shared memory.
        scratch: memory that the implementation needs while it runs, by name: opaq.tensor(...) for
            uninitialised memory, opaq.zeros(...) for zeros, opaq.philox() for a seed and an offset
            of random numbers. `args`, grid, block, cluster and shared may refer to the names.
            Compiled graphs plan it with their other buffers.
        steps: for several launches, one after the other: a list of opaq.step(...), each with entry,
            args, grid and so on, in the place of those here.
        requires: conditions on the arguments; if one is false, the next implementation is tried. An
            argument is passed row-major, and copied first if it is not, unless an expression given
            here reads its strides.
        options, include_dirs: further options of the compiler, or of nvJitLink, and folders of
            headers.
        compiler: "nvrtc", fast and without a host compiler; "nvcc", for a file as its author wrote
            it, with torch's or other host headers, host functions and launchers; "auto": NVRTC, and
            nvcc for what NVRTC refuses. opaq.report() says which one served.
        priority: implementations with a higher one are tried first.
        name: of this implementation, in reports and errors.
        cooperative: a cooperative launch: all blocks run at once, so that the grid can synchronize.
        programmatic: programmatic dependent launch: the kernel may start before the kernel in front
            of it in the stream has ended.
        """
        where = f"{self.name}: .cuda(...)"
        step_fields = steps_.step_texts(where, steps)
        code, path, kind = steps_.code(where, source, binary, step_fields)
        return self._implement(
            where=where,
            name=name,
            device="cuda",
            entry=entry,
            args=args,
            requires=requires,
            priority=priority,
            kind=kind,
            code=code,
            file=path,
            scratch=steps_.scratch_texts(where, scratch),
            steps=step_fields,
            grid=rules.launch_size(where, "grid", grid, steps),
            block=rules.launch_size(where, "block", block, steps),
            cluster=validate.expressions(where, "cluster", cluster),
            shared=validate.expressions(where, "shared", shared),
            options=validate.texts(where, "options", options),
            include_dirs=validate.folders(where, "include_dirs", include_dirs),
            compiler=validate.text(where, "compiler", compiler),
            cooperative=validate.flag(where, "cooperative", cooperative),
            programmatic=validate.flag(where, "programmatic", programmatic),
        )

    def cpu(
        self,
        *,
        source: str | File | None = None,
        entry: str = "",
        args: str | Sequence[str | Argument] = "",
        scratch: Mapping[str, Output | Zeros | Philox] | None = None,
        steps: Sequence[Step] = (),
        requires: str | Sequence[str] = (),
        options: Sequence[str] = (),
        include_dirs: Sequence[str] = (),
        priority: int = 0,
        name: str = "cpu",
    ) -> Op:
        """Adds a CPU implementation: a C++20 function of pointers and scalars that returns void,
        compiled by the system's C++ compiler. Returns the op. Raises opaq.DeclarationError; source
        is compiled when it is first needed, which may raise opaq.CompileError.

        entry: the function, with template arguments as for .cuda(...).
        options, include_dirs: further options of the compiler, and folders of headers.
        source, args, scratch, steps, requires, priority, name: as for .cuda(...).
        """
        where = f"{self.name}: .cpu(...)"
        step_fields = steps_.step_texts(where, steps)
        code, path, kind = steps_.code(where, source, None, step_fields)
        return self._implement(
            where=where,
            name=name,
            device="cpu",
            entry=entry,
            args=args,
            requires=requires,
            priority=priority,
            kind=kind,
            code=code,
            file=path,
            scratch=steps_.scratch_texts(where, scratch),
            steps=step_fields,
            options=validate.texts(where, "options", options),
            include_dirs=validate.folders(where, "include_dirs", include_dirs),
        )

    def library(
        self,
        path: str | os.PathLike[str],
        *,
        symbol: str,
        args: str | Sequence[str | Argument],
        device: str,
        signature: str = "",
        scratch: Mapping[str, Output | Zeros | Philox] | None = None,
        requires: str | Sequence[str] = (),
        priority: int = 0,
        name: str = "library",
    ) -> Op:
        """Adds a C function of a shared library.

        path: the library. The loader searches for a name without a folder, such as "libk.so";
            `opaq.file("libk.so")` is in the folder of the calling module. The library is opened at
            the first call, never closed, and copied into packages.
        symbol: the name of the function, which is declared extern "C", exported, and returns
            nothing. As in an `entry`, expressions may be in braces: "scale_{x.dtype}".
        args: the function's argument list, expressions over arguments and results; of a tensor, its
            address is passed.
        device: "cpu" or "cuda". On CUDA, the function gets the CUDA stream as its last argument,
            and the tensors' device is current. It must launch on that stream and not wait for it.
        signature: types of the function's parameters, the stream included,
            "void(const float*, float*, int64_t)". Numbers are converted to them, and a number that
            does not fit or a tensor of another dtype is an error. Without a signature, an int is
            passed as int64_t and a float as double, unless there is a cast: "int32(n)".
        scratch, requires, priority, name: as for `cuda`, and so is the treatment of strides.

        Raises DeclarationError; calls raise MissingError if the library cannot be opened.
        """
        where = f"{self.name}: .library(...)"
        if not validate.text(where, "symbol", symbol).strip():
            validate.refuse(where, "symbol", symbol, "the name of the function that is called")
        return self._implement(
            where=where,
            name=name,
            device=validate.device_type(where, device),
            entry=symbol,
            args=args,
            requires=requires,
            priority=priority,
            kind="library",
            code=validate.library(where, path),
            scratch=steps_.scratch_texts(where, scratch),
            signature=validate.text(where, "signature", signature),
        )

    def tvm_ffi(
        self,
        module: str | os.PathLike[str],
        function: str,
        *,
        args: str | Sequence[str | Argument],
        device: str,
        scratch: Mapping[str, Output | Zeros | Philox] | None = None,
        requires: str | Sequence[str] = (),
        priority: int = 0,
        name: str = "tvm_ffi",
    ) -> Op:
        """Adds a function that a shared library exports through TVM-FFI, by
        TVM_FFI_DLL_EXPORT_TYPED_FUNC or a compiler that uses TVM-FFI.

        module: path of the library, which is opened, kept and packaged as that of `library`;
            tvm_ffi.cpp.build(...) returns it. It needs libtvm_ffi.so: opaq loads that of the
            package apache-tvm-ffi if it is installed.
        function: the name with which it was exported. As in an `entry`, expressions may be in
            braces: "scale_{x.dtype}".
        args: the function's argument list, expressions over arguments and results. A tensor is
            passed whole, as a tvm::ffi::TensorView, an absent one as None; ints, floats and bools
            as themselves. The function checks them itself. It returns nothing: it writes the
            results that it is given.
        device: "cpu" or "cuda". On CUDA the function finds the stream by TVMFFIEnvGetStream, and
            the tensors' device is current.
        scratch, requires, priority, name: as for `cuda`, and so is the treatment of strides.

        Raises DeclarationError; calls raise MissingError if the library cannot be opened, and
        LaunchError with the function's own error.
        """
        where = f"{self.name}: .tvm_ffi(...)"
        if not validate.text(where, "function", function).strip():
            validate.refuse(
                where, "function", function, "the name with which the function is exported"
            )
        if type(module).__module__.partition(".")[0] == "tvm_ffi":
            validate.refuse(
                where,
                "module",
                module,
                "the path of the module's library, which tvm_ffi.cpp.build(...) returns",
            )
        code = validate.library(where, module, "module")
        load_tvm_ffi()
        return self._implement(
            where=where,
            name=name,
            device=validate.device_type(where, device),
            entry=function,
            args=args,
            requires=requires,
            priority=priority,
            kind="tvm_ffi",
            code=code,
            scratch=steps_.scratch_texts(where, scratch),
        )

    def python(
        self,
        function: Callable[..., None],
        *,
        device: str,
        requires: str | Sequence[str] = (),
        priority: int = 0,
        name: str = "python",
    ) -> Op:
        """Adds a Python function, such as one that launches kernels of another compiler.

        function: called as function(*arguments, *results) with the op's arguments in schema order,
            and then its results, new tensors that it must write; it returns None. It is never
            traced into, and runs without autograd: `backward` declares the gradient. Its arguments
            have the strides of the call. On CUDA it must launch on the current stream.
        device: "cuda" or "cpu", where the op's tensors are.
        requires, priority, name: as for `cuda`.

        Eager calls and C++ wrappers call it through PyTorch's dispatcher; Inductor's Python wrapper
        calls it directly. It cannot go into a package. For a function that returns the results, on
        any device, use `reference`; for an op that is only a Python function, use opaq.custom_op.

        Raises DeclarationError.
        """
        where = f"{self.name}: .python(...)"
        validate.function(
            where,
            "function",
            function,
            "a function that is called with the op's arguments and the results to be filled",
        )
        with declaring:
            define_python(self.info, validate.text(where, "name", name), function)
        return self._implement(
            where=where,
            name=name,
            device=validate.device_type(where, device),
            requires=requires,
            priority=priority,
            kind="python",
        )

    def _implement(
        self,
        *,
        name: object,
        device: str,
        entry: object = "",
        args: object = "",
        requires: object = (),
        priority: object = 0,
        where: str = "",
        **implementation: Any,
    ) -> Op:
        """Adds an implementation. The named parameters, which every kind has, are checked here;
        `implementation` holds those that the caller has checked. Messages begin with `where`, or
        the op's name.
        """
        where = where or self.name
        for scratch in implementation.get("scratch", ()):
            if "philox" in scratch and self.effects is None:
                raise _runtime.DeclarationError(
                    f"{where}: scratch {scratch['name']!r} holds random numbers; declare the op "
                    'with opaq.op(..., effects="random"), so that compiled graphs do not merge its '
                    "calls"
                )
        implementation |= {
            "name": validate.text(where, "name", name),
            "device": device,
            "entry": validate.text(where, "entry", entry),
            "args": argument_list(where, args),
            "requires": validate.conditions(where, "requires", requires),
            "priority": validate.number(where, "priority", priority),
        }
        before = self.info["hash"]
        _runtime.implement(self.name, implementation, False)
        self._describe()
        if (
            self.info["hash"] != before
            or implementation["kind"] == "python"  # the function may be another
            or _runtime.refresh_sources(self.name)["changed"]  # a header was edited
        ):
            self._forget_graphs()
        return self

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
        self._reference = function
        with declaring:
            fallback = define_reference(self.info, function, self._fake)
        _runtime.set_reference(self.name, fallback)
        self._changed()
        return function

    def backward(
        self,
        formula: str | Op | Callable[..., Any] | None,
        *,
        saves: str | None = None,
        setup_context: Callable[..., Any] | None = None,
        written: str | None = None,
    ) -> Op:
        """Declares the gradient. Returns the op. Raises opaq.DeclarationError.

        formula: one of three.
            The name of a backward op, bound by the names in its schema: an argument
            `grad_<result>` is the gradient of that result, any other is an argument or result of
            this op; its results are `grad_<argument>`.
            A function (ctx, *grads), with setup_context(ctx, inputs, output), as for
            torch.library.register_autograd; it returns one gradient for each argument of the
            schema.
            None: no gradient flows through this op.
        saves: with a backward op, the names of the arguments and results that are kept for it; only
            to have them checked.
        written: with a function, the names of the written arguments whose new values are
            differentiated, such as "cache"; by default all of them if the op returns nothing, else
            none. The function gets their gradients after those of the results, and returns, in
            their places, the gradients of the values before the call. A backward op says the same
            by an argument `grad_<written argument>`. Other written arguments (scratch memory,
            statistics) carry no gradient and must not require grad.
        """
        where = f"{self.name}: .backward(...)"
        if isinstance(formula, Op):
            formula = formula.name
        if isinstance(formula, str):
            validate.text(where, "formula", formula)
            if setup_context is not None:
                validate.refuse(
                    where,
                    "setup_context",
                    setup_context,
                    f"none with a backward op, here {formula}; leave it out",
                )
            saves = None if saves is None else validate.names(where, "saves", saves)
        else:
            if formula is not None:
                expected = (
                    "the name of a backward op, the op itself, a function (ctx, "
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
        if isinstance(formula, str):
            self.gradient.set_backward_op(self, formula, saves)
        else:
            self.gradient.set_backward_functions(formula, setup_context, written)
        self._changed()
        return self

    def _changed(self) -> None:
        self._describe()
        self._forget_graphs()

    def _describe(self) -> None:
        with declaring:
            self.info = _runtime.describe(self.name)
            lowering.register(self.name)

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
        form, values = self._form_of(args)
        _runtime.warmup(form, values)

    def explain(self, *args: Any) -> str:
        """Which implementation a call with these arguments (tensors on any device, meta too) would
        run, and why: one line for each implementation.
        """
        form, values = self._form_of(args)
        return _runtime.plan(form, [fake_argument(value) for value in values])["reasons"]

    def example(self, *args: Any) -> Op:
        """Adds an example of a call, for `check` and the command `opaq check`. Returns the op.

        args: all required arguments, in the order of the schema. Of tensors (meta tensors, say),
        dtype, sizes and strides are kept, and they stand for tensors on any device.
        Raises opaq.LaunchError if the op takes no such arguments.
        """
        form, values = self._form_of(args)
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
        form, values = self._form_of(args) if args else (self.name, ())
        example = [example_argument(value) for value in values]
        return code_check.check(self.name, {form: [example]} if args else self.examples, archs)

    def _form_of(self, args: Sequence[Any]) -> tuple[str, Sequence[Any]]:
        """Of a call of an op with lists of tensors: the name of the op's form for it, and that
        form's arguments. Else the op's name and `args`.
        """
        if not lists.has_lists(self.info):
            return self.name, args
        defaults = [arg["default_value"] for arg in self.info["args"][len(args) :]]
        form, values = lists.form_of(self.info, [*args, *defaults])
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


def _declared(name: str) -> Op:
    if name not in _ops:
        raise _runtime.DeclarationError(
            f"{name} was pickled as an op, but is not declared in this process; import the "
            "module that declares it"
        )
    return _ops[name]
