"""The implementations of an op: CUDA, C++, functions of libraries, Python functions."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from . import _runtime, lowering, rules, validate
from . import steps as steps_
from .arguments import Argument, argument_list
from .declaring import declaring
from .python_function import define as define_python
from .steps import Scratch, Step
from .tvm_ffi import load_tvm_ffi
from .validate import Binary, File

_Self = TypeVar("_Self", bound="Implementations")


def _algorithms(where: str, count: int) -> dict[str, list[int]] | None:
    if not 1 <= validate.number(where, "algorithms", count) <= 32:
        validate.refuse(where, "algorithms", count, "1 to 32")
    return None if count == 1 else {"algorithm": list(range(count))}


class Implementations:
    """The methods of `opaq.Op` that add an implementation."""

    __slots__ = ()

    name: str
    info: _runtime.OpInfo
    effects: str | None

    def _describe(self) -> None:
        """Reads `info` anew."""
        raise NotImplementedError

    def _forget_graphs(self) -> None:
        """Has graphs that call the op compiled again."""
        raise NotImplementedError

    def cuda(
        self: _Self,
        *,
        source: str | File | None = None,
        binary: Binary | Mapping[str, Binary] | None = None,
        entry: str = "",
        args: str | Sequence[str | Argument] = "",
        grid: object = rules.NOT_GIVEN,
        block: object = rules.NOT_GIVEN,
        cluster: object = "",
        shared: object = "0",
        scratch: Mapping[str, Scratch] | None = None,
        steps: Sequence[Step] = (),
        requires: str | Sequence[str] = (),
        options: Sequence[str] = (),
        include_dirs: Sequence[str] = (),
        compiler: str = "auto",
        priority: int = 0,
        name: str = "cuda",
        cooperative: bool = False,
        programmatic: bool = False,
        tune: Mapping[str, Sequence[int]] | None = None,
    ) -> _Self:
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
            of random numbers, opaq.exponential(...) for the numbers themselves. `args`,
            grid, block, cluster and shared may refer to the names. Compiled graphs plan it with
            their other buffers.
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
            tune=tune,
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
        self: _Self,
        *,
        source: str | File | None = None,
        entry: str = "",
        args: str | Sequence[str | Argument] = "",
        scratch: Mapping[str, Scratch] | None = None,
        steps: Sequence[Step] = (),
        requires: str | Sequence[str] = (),
        options: Sequence[str] = (),
        include_dirs: Sequence[str] = (),
        priority: int = 0,
        name: str = "cpu",
    ) -> _Self:
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
        self: _Self,
        path: str | os.PathLike[str],
        *,
        symbol: str,
        args: str | Sequence[str | Argument],
        device: str,
        signature: str = "",
        scratch: Mapping[str, Scratch] | None = None,
        requires: str | Sequence[str] = (),
        priority: int = 0,
        name: str = "library",
    ) -> _Self:
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
        self: _Self,
        module: str | os.PathLike[str],
        function: str,
        *,
        args: str | Sequence[str | Argument],
        device: str,
        scratch: Mapping[str, Scratch] | None = None,
        requires: str | Sequence[str] = (),
        priority: int = 0,
        name: str = "tvm_ffi",
    ) -> _Self:
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

    def cublaslt(
        self: _Self,
        *,
        a: str,
        b: str,
        d: str,
        c: str = "",
        bias: str = "",
        epilogue: str = "",
        aux: str = "",
        alpha: object = "",
        beta: object = "",
        a_scale: str = "",
        b_scale: str = "",
        d_scale: str = "",
        d_out_scale: str = "",
        amax: str = "",
        a_scale_mode: str = "",
        b_scale_mode: str = "",
        d_out_scale_mode: str = "",
        compute: str = "",
        fast_accum: bool = False,
        workspace: object = "",
        algorithms: int = 1,
        requires: str | Sequence[str] = (),
        priority: int = 0,
        name: str = "cublaslt",
    ) -> _Self:
        """Adds a matrix product by cuBLASLt, d = epilogue(alpha a b + beta c + bias), on CUDA.

        a, b, d: names of tensors, (..., M, K), (..., K, N) and (..., M, N). a and b may be views,
            x.t(), x.flatten(0, -2) and x.flatten(0, -2).t(), whose last two dimensions are swapped,
            and of which all but the last are rows. One of the last two strides of a and b is 1;
            transposed views cost nothing. With one matrix b, all dimensions of a before the last
            are its rows. d is a
            result or a written argument. float16, bfloat16, float32, float64, int8 (to int32 or
            float32), and float8 where K is contiguous in both.
        c: (..., M, N), added; alpha, beta: numbers or expressions, 1 by default.
        bias: (N), added to each row; an optional tensor that is absent is left out.
        epilogue: "relu" or "gelu" (the tanh form), applied last. "relu_backward" or
            "gelu_backward": the product is multiplied by the activation's derivative; then `bias`
            is written, with the sums of d over its rows. "sum_a", "sum_b": `bias` is written with
            the sums of a (M) or b (N) over K.
        aux: what a backward epilogue needs: for gelu what the activation was applied to, (..., M,
            N); for relu a bit for each element, uint8, (..., M, 16 * ceil_div(N, 128)). Written by
            the forward epilogues where it is given.
        a_scale, b_scale: float32 factors of float8 tensors, by default one number for each;
            a_scale_mode, b_scale_mode: "row" (one for each row of a, column of b), "vec128" and
            "block128" (one for 128 values along K, for 128 x 128), "vec32", "vec16" (MX blocks, of
            float8_e8m0fnu or float8_e4m3fn).
        d_scale: the float32 factor by which a float8 d is multiplied. d_out_scale: written with
            the scales of a block-scaled d, in d_out_scale_mode. amax: written with the largest
            absolute value of d.
        compute: "tf32", "float16", "bfloat16": what float32 tensors may be rounded to; the default
            is float32, float64 or int32, as the tensors are. fast_accum: float8 sums of less
            precision.
        workspace: bytes of memory, planned as `scratch` is, that algorithms may use; 32 MiB.
        algorithms: of how many that the library names, best first, opaq.tune may choose: each is
            an implementation of its own, "cublaslt:algorithm=1"; 1 to 32.
        requires, priority, name: as for `cuda`. Tensors that cuBLASLt cannot take as they lie, and
            an empty K, are left to the op's next implementation or its reference.

        An algorithm is asked for once for equal sizes, strides, dtypes and alignments. The library
        is the one that PyTorch has loaded (12 or 13). Raises DeclarationError; calls raise
        LaunchError where cuBLASLt has no algorithm, and MissingError where it is not there.
        """
        where = f"{self.name}: .cublaslt(...)"
        given = {
            key: validate.text(where, key, value)
            for key, value in {
                "a": a,
                "b": b,
                "c": c,
                "d": d,
                "bias": bias,
                "aux": aux,
                "a_scale": a_scale,
                "b_scale": b_scale,
                "d_scale": d_scale,
                "d_out_scale": d_out_scale,
                "amax": amax,
                "epilogue": epilogue,
                "compute": compute,
                "a_scale_mode": a_scale_mode,
                "b_scale_mode": b_scale_mode,
                "d_out_scale_mode": d_out_scale_mode,
            }.items()
        }
        for key, value in {"alpha": alpha, "beta": beta}.items():
            given[key] = (
                repr(value) if isinstance(value, float) else validate.expressions(where, key, value)
            )
        given["workspace"] = validate.expressions(where, "workspace", workspace)
        given["fast_accum"] = "1" if validate.flag(where, "fast_accum", fast_accum) else ""
        return self._implement(
            where=where,
            name=name,
            device="cuda",
            requires=requires,
            priority=priority,
            kind="cublaslt",
            tune=_algorithms(where, algorithms),
            roles={key: value for key, value in given.items() if value},
        )

    def python(
        self: _Self,
        function: Callable[..., None],
        *,
        device: str,
        requires: str | Sequence[str] = (),
        priority: int = 0,
        name: str = "python",
    ) -> _Self:
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

    def _note_accumulated(self, implementation: Mapping[str, Any]) -> Callable[[], None]:
        """Checks whether an implementation reads the argument that the op adds to its result; one
        that silently leaves it out would give another sum in compiled graphs alone. The result
        notes which it is, once the implementation is declared.
        """
        accumulated = lowering.accumulating.get(self.name)
        if accumulated is None:
            return lambda: None
        argument, device = accumulated.argument, implementation["device"]
        read = [
            implementation["args"],
            *(step["args"] for step in implementation.get("steps", ())),
            *implementation.get("roles", {}).values(),
        ]
        if implementation["kind"] == "python" or re.search(rf"\b{argument}\b", f"{read}"):
            return lambda: accumulated.reading.add(device)
        if any(
            re.fullmatch(rf"not defined\( *{argument} *\)", each)
            for each in implementation["requires"]
        ):
            return lambda: accumulated.ignoring.add(device)
        raise _runtime.DeclarationError(
            f"{implementation['where']}: implementation {implementation['name']!r} does not "
            f"read `{argument}`, which the op is declared to add to its result; name it in "
            f'args, or give requires="not defined({argument})"'
        )

    def _implement(
        self: _Self,
        *,
        name: object,
        device: str,
        entry: object = "",
        args: object = "",
        requires: object = (),
        priority: object = 0,
        where: str = "",
        replace: bool = False,
        tune: Mapping[str, Sequence[int]] | None = None,
        **implementation: Any,
    ) -> _Self:
        """Adds an implementation. The named parameters, which every kind has, are checked here;
        `implementation` holds those that the caller has checked. Messages begin with `where`, or
        the op's name. replace: also one that differs from an earlier one of this name. tune: adds
        one for each combination of these values.
        """
        where = where or self.name
        implementation |= {
            "where": where,
            "name": validate.text(where, "name", name),
            "device": device,
            "entry": validate.text(where, "entry", entry),
            "args": argument_list(where, args),
            "requires": validate.conditions(where, "requires", requires),
            "priority": validate.number(where, "priority", priority),
        }
        note = self._note_accumulated(implementation)
        before = self.info["hash"]
        for values in validate.combinations(where, tune):
            of_values = ",".join(f"{key}={value}" for key, value in values.items())
            named = f"{implementation['name']}:{of_values}" if values else implementation["name"]
            each = {**implementation, "name": named, "values": values}
            _runtime.implement(self.name, each, replace, self.effects or "")
        note()
        self._describe()
        if (
            self.info["hash"] != before
            or implementation["kind"] == "python"  # the function may be another
            or _runtime.refresh_sources(self.name)["changed"]  # a header was edited
        ):
            self._forget_graphs()
        return self
