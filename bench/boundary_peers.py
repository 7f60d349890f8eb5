"""The contestants of `opaq bench boundary`: ways to add the same kernel to PyTorch, as their
documentation shows them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .boundary_kernel import ENTRY, HERE, Absent, Kernel, compiler, library

Op = Callable[..., torch.Tensor]
_numbers = itertools.count()  # an op of PyTorch exists once in a process


@dataclass(frozen=True)
class Peer:
    """make: of a kernel a function of tensors; raises Absent. compiled: whether torch.compile takes
    it. in_cpp: whether C++ wrappers and packages call it without Python."""

    title: str
    make: Callable[[Kernel], Op]
    compiled: bool = False
    in_cpp: bool = False


def needs_cuda(make: Callable[[Kernel], Op]) -> Callable[[Kernel], Op]:
    @functools.wraps(make)
    def checked(kernel: Kernel) -> Op:
        if kernel.device != "cuda":
            raise Absent("needs a GPU")
        return make(kernel)

    return checked


def imported(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Absent(f"not installed: {package}") from error


def of_opaq(kernel: Kernel) -> Op:
    import opaq

    name = f"bench_boundary_opaq::{ENTRY}{kernel.tensors}"
    op = opaq.op(name + kernel.schema, outputs=opaq.like("t0"), replace=True)
    args = f"{', '.join(kernel.names)}, out, t0.numel()"
    if kernel.device == "cpu":
        compiler()
        op.cpu(source=kernel.cpu_source, entry=ENTRY, args=args)
    else:
        grid = "ceil_div(t0.numel(), 256)"
        op.cuda(source=kernel.cuda_source, entry=ENTRY, grid=grid, block=256, args=args)
    return op


def of_python(kernel: Kernel) -> Op:
    """What ops in Python call: the kernel through ctypes, on CUDA as torch.cuda does it."""
    if kernel.device == "cpu":
        function = kernel.cpu_function

        def call(*tensors: torch.Tensor) -> torch.Tensor:
            out = torch.empty_like(tensors[0])
            function(*(tensor.data_ptr() for tensor in tensors), out.data_ptr(), out.numel())
            return out

        return call
    launch = kernel.cuda_kernel

    def call_on_cuda(*tensors: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(tensors[0])
        n = out.numel()
        launch(grid=((n + 255) // 256, 1, 1), block=(256, 1, 1), args=(*tensors, out, n))
        return out

    return call_on_cuda


def of_custom_op(kernel: Kernel) -> Op:
    op = torch.library.custom_op(
        f"bench_boundary_python::{ENTRY}{next(_numbers)}",
        of_python(kernel),
        mutates_args=(),
        schema=kernel.schema,
    )
    op.register_fake(lambda *tensors: torch.empty_like(tensors[0]))
    return op


def of_library_impl(kernel: Kernel) -> Op:
    name = f"{ENTRY}{next(_numbers)}"
    ops = torch.library.Library("bench_boundary_impl", "FRAGMENT")
    ops.define(name + kernel.schema, tags=(torch.Tag.pt2_compliant_tag,))
    ops.impl(name, of_python(kernel), kernel.device.upper())
    fake = lambda *tensors: torch.empty_like(tensors[0])
    torch.library.register_fake(f"bench_boundary_impl::{name}", fake, lib=ops)
    _kept.append(ops)
    return getattr(torch.ops.bench_boundary_impl, name).default


_kept: list[torch.library.Library] = []  # with a Library go its ops


@functools.cache
def cpp_module(tensors: int, device: str) -> Any:
    """boundary_op.cpp as a module."""
    from torch.utils import cpp_extension

    compiler()
    if not cpp_extension.is_ninja_available():
        raise Absent("not installed: ninja")
    folders, links = [HERE], []
    if device == "cuda":
        from opaq import _runtime

        folders += _runtime.doctor()["nvrtc"]["include_dirs"]
        folders += [os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "include")]
        links = ["-lc10_cuda"]
    with open(os.path.join(HERE, "boundary_op.cpp"), encoding="utf-8") as stream:
        module = cpp_extension.load_inline(
            f"opaq_bench_boundary_{device}_{tensors}",
            [stream.read()],
            extra_include_paths=[folder for folder in folders if os.path.isdir(folder)],
            extra_cflags=["-O2", f"-DTENSORS={tensors}", f"-DON_CUDA={int(device == 'cuda')}"],
            extra_ldflags=links,
            no_implicit_headers=True,
        )
    fake = lambda *tensors: torch.empty_like(tensors[0])
    torch.library.register_fake(f"bench_boundary_cpp::{ENTRY}{tensors}", fake)
    return module


def of_cpp(kernel: Kernel) -> Op:
    cpp_module(kernel.tensors, kernel.device).set_kernel(*kernel.addresses)
    return getattr(torch.ops.bench_boundary_cpp, f"{ENTRY}{kernel.tensors}").default


TRITON = """import torch, triton
import triton.language as tl

@triton.jit
def kernel(TENSORS, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
LOADS
    tl.store(out + at, VALUE, mask=inside)

@torch.library.triton_op("bench_boundary_triton::NAME", mutates_args={})
def op(SIGNATURE) -> torch.Tensor:
    out = torch.empty_like(t0)
    n = out.numel()
    torch.library.wrap_triton(kernel)[(triton.cdiv(n, 256),)](TENSORS, out, n, BLOCK=256)
    return out
"""


@needs_cuda
def of_triton(kernel: Kernel) -> Op:
    """Of a file: Triton reads the source of its functions."""
    imported("triton", "triton")
    texts = {
        "TENSORS": ", ".join(kernel.names),
        "LOADS": "\n".join(f"    {t} = tl.load({t} + at, mask=inside)" for t in kernel.names),
        "VALUE": kernel.expression,
        "NAME": f"{ENTRY}{next(_numbers)}",
        "SIGNATURE": ", ".join(f"{t}: torch.Tensor" for t in kernel.names),
    }
    source = TRITON
    for name, text in texts.items():
        source = source.replace(name, text)
    folder = tempfile.TemporaryDirectory(prefix="opaq_bench_")
    path = os.path.join(folder.name, "boundary_triton.py")
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(source)
    spec = importlib.util.spec_from_file_location("boundary_triton", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.folder = folder  # removed with the module
    _triton.append(module)
    return module.op


_triton: list[Any] = []


@needs_cuda
def of_cupy(kernel: Kernel) -> Op:
    cupy = imported("cupy", "CuPy")
    numpy = imported("numpy", "NumPy")
    raw = cupy.RawKernel(kernel.cuda_source, ENTRY)

    def call(*tensors: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(tensors[0])
        n = out.numel()
        pointers = [tensor.data_ptr() for tensor in tensors]
        with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
            raw(((n + 255) // 256,), (256,), (*pointers, out.data_ptr(), numpy.int32(n)))
        return out

    return call


class _Stream:
    """The current stream, as cuda.core takes those of others."""

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, torch.cuda.current_stream().cuda_stream


@needs_cuda
def of_cuda_core(kernel: Kernel) -> Op:
    core = imported("cuda.core", "cuda-core")
    if not hasattr(core, "Program"):  # before 0.5
        core = imported("cuda.core.experimental", "cuda-core")
    numpy = imported("numpy", "NumPy")
    device = core.Device(torch.cuda.current_device())
    device.set_current()
    options = core.ProgramOptions(std="c++17", arch=f"sm_{device.arch}")
    program = core.Program(kernel.cuda_source, code_type="c++", options=options)
    function = program.compile("cubin").get_kernel(ENTRY)
    grid = (kernel.operands()[0].numel() + 255) // 256
    config = core.LaunchConfig(grid=grid, block=256)

    def call(*tensors: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(tensors[0])
        pointers = [tensor.data_ptr() for tensor in tensors]
        stream = device.create_stream(_Stream())
        n = numpy.int32(out.numel())
        core.launch(stream, config, function, *pointers, out.data_ptr(), n)
        return out

    return call


def of_tvm_ffi(kernel: Kernel) -> Op:
    tvm_ffi = imported("tvm_ffi", "apache-tvm-ffi")
    found = os.path.dirname(tvm_ffi.__file__)
    options = [f"-DTENSORS={kernel.tensors}", f"-I{found}/include", f"-L{found}/lib", "-ltvm_ffi"]
    path = library(["boundary_tvm_ffi.cpp"], options)
    try:
        module = tvm_ffi.load_module(path)
    finally:
        shutil.rmtree(os.path.dirname(path))
    module["set_kernel"](*kernel.addresses)
    function = module[ENTRY]

    def call(*tensors: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(tensors[0])
        function(*tensors, out)
        return out

    return call


CPP = "cpp"
PEERS = {
    "opaq": Peer("opaq", of_opaq, compiled=True, in_cpp=True),
    CPP: Peer("C++ TORCH_LIBRARY", of_cpp, compiled=True, in_cpp=True),
    "triton_op": Peer("triton_op", of_triton, compiled=True, in_cpp=True),
    "custom_op": Peer("torch.library.custom_op", of_custom_op, compiled=True),
    "library_impl": Peer("Library.impl", of_library_impl, compiled=True),
    "tvm_ffi": Peer("TVM-FFI", of_tvm_ffi),
    "cupy": Peer("CuPy RawKernel", of_cupy),
    "cuda_core": Peer("cuda.core", of_cuda_core),
    "compile_kernel": Peer("torch.cuda._compile_kernel", needs_cuda(of_python)),
}
