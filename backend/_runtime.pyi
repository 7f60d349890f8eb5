"""The Python interface of the C++ runtime: declarations, launches, and information about ops, nodes
and kernels.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

class Error(RuntimeError): ...  # base of all that opaq raises
class DeclarationError(Error, ValueError): ...  # a schema, rule, expression or option is wrong
class CompileError(Error): ...  # source does not compile or does not fit its argument list
class LaunchError(Error): ...  # this call's arguments are wrong
class ContractError(LaunchError): ...
class DriverError(Error): ...  # CUDA reported an error; attribute `sticky`
class CaptureError(Error): ...  # something must load while a stream is captured
class MissingError(Error): ...  # a library or device is not there

# ---- set-up (called by backend/__init__.py) ------------------------------------------------------

def configure(
    *,
    library_dirs: Sequence[str],
    cuda_include_dirs: Sequence[str],
    torch_include_dirs: Sequence[str],
) -> None: ...
def bind_torch(
    **objects: Any,
) -> None: ...  # torch.Tensor, Parameter, dtypes, allocation: see runtime/python/bind.cpp

# ---- declarations --------------------------------------------------------------------------------

class ArgInfo(TypedDict):
    name: str
    torch_type: str  # "Tensor", "SymInt", "float", "int[]", ...
    list: bool  # whether each of its items is an argument of the op's forms; not of an int[]
    optional: bool
    mutated: bool
    keyword_only: bool
    default: str | None  # schema text, None when required
    default_value: Any  # what the text stands for

class OutputInfo(TypedDict):
    # For fake tensors: Python expressions over the arguments, as in Requirement.python.
    name: str
    shape: list[str]  # items; one that gives several sizes begins with "*"
    strides: list[str]  # [] when contiguous
    dtype: str
    partial: bool  # implementations may leave elements unwritten
    over: str  # the argument that it may be written over, or ""
    device: str
    # (dimension, negative from the end; name of the count that it has after a launch): `shape` has
    # the bound of the count there
    counted: list[tuple[int, str]]

class Requirement(TypedDict):
    text: str  # as declared: "aligned(x, 16)"
    python: str  # calls of the functions of lowering/functions.py or lowering/symbolic.py
    cpp: str  # C++17 after cpp_prelude("expressions")
    reads_data: list[str]  # tensors whose address it reads, as aligned(x, 16) does

class TemplateArg(TypedDict):  # an expression in braces in an entry: rms_norm<{x.dtype}>
    text: str
    python: str  # as in Requirement

class ScratchInfo(TypedDict):
    name: str
    shape: list[str]  # Python; "*" in front of an item that is a list of sizes
    dtype: str  # Python
    zeros: bool
    once: bool
    random: str  # "philox", "exponential" or ""

class ImplementationInfo(TypedDict):
    name: str
    device: str  # "cuda" | "cpu"
    # "source" | "binary" | "library" | "tvm_ffi" | "python"; for users, not to be compared in code
    kind: str
    article: str  # the kind in messages: "a Python function"
    native: bool  # launched by the runtime; else Python calls it
    kernel: bool  # device code; else a function on the host
    priority: int
    requires: list[Requirement]
    # arguments that must be contiguous: no expression of this implementation reads their strides
    needs_contiguous: list[str]
    entry: str  # of all steps, separated by commas
    template_args: list[TemplateArg]  # of all steps
    scratch: list[ScratchInfo]
    steps: int
    hash: str

class OpInfo(TypedDict):
    name: str  # "mylib::rms_norm"
    schema: str  # canonical
    args: list[ArgInfo]
    outputs: list[OutputInfo]
    results: list[OutputInfo]  # of a launch: the outputs, and the counts that are read after it
    lists: list[tuple[str, int]]  # of a form (lowering/lists.py): names and lengths of its lists
    implementations: list[ImplementationInfo]  # highest priority first
    has_reference: bool
    hash: str  # of the declaration: generated code refuses an op with another

def declare(
    schema: str, outputs: Sequence[dict[str, str]], replace: bool
) -> str: ...  # returns "ns::name"; items have OutputText's fields
def implement(
    op: str, implementation: dict[str, Any], replace: bool, effects: str
) -> str: ...  # ImplementationText's fields; returns its hash
def define(op: str) -> None: ...  # registers the op with PyTorch's dispatcher, once
def set_reference(
    op: str, fallback: Callable[..., None]
) -> None: ...  # fallback(*args, *outputs): fills the outputs
def set_python_function(
    op: str, implementation: str, function: Callable[..., None]
) -> None: ...  # function(*args, *outputs): fills the outputs
def python_kernel(
    op: str, implementation: str
) -> tuple[str, str]: ...  # name and schema of the dispatcher's op that calls that function
def reference_kernel(op: str) -> tuple[str, str]: ...  # the same of its reference
def note_python_error(
    error: BaseException,
) -> None: ...  # the exception of this thread's Python function, which its C++ caller raises again
def extend_hash(op: str, key: str, content: str) -> None: ...
def describe(op: str) -> OpInfo: ...

class LibraryOp(TypedDict):
    """An op that a shared library has declared in C++; texts are "" where nothing was given."""

    name: str
    library: str  # its path
    place: str  # "rms_norm.cpp:12"
    effects: str
    tags: list[str]
    backward: str
    saves: str
    reference: str

def library_ops() -> list[LibraryOp]: ...
def library_failures() -> list[str]: ...  # messages of declarations that libraries got wrong, once
def on_library(adopt: Callable[[], None]) -> None: ...  # soon, and when a library has declared ops

# The name of the op's form for lists of these lengths, which is made if need be. Without lengths,
# that of the form which stands for the others; of an op without lists, its own.
def form(op: str, lengths: Sequence[int]) -> str: ...

# What launches try before other implementations, by one size of theirs: ((argument, dimension, -1
# for an int), [(up to this size, implementation)], implementation for larger ones, or "").
MeasuredSizes: TypeAlias = tuple[tuple[str, int], Sequence[tuple[int, str]], str]

# ---- launching -----------------------------------------------------------------------------------

SCRATCH_ALIGNMENT: int  # bytes; of each scratch tensor in its workspace

def launcher(
    op: str,
    hash: str,
    device: str,
    node: str,
    graph: str,
    timed: bool = False,
    implementation: str = "",
    chosen: str = "at launch",
    check: bool = False,
    source: str = "",
    workspace: bool = False,
    measured: MeasuredSizes | None = None,
) -> Callable[..., None]:
    """A launch object for one node of a generated wrapper. device: "cuda:0", "cpu".

    On CUDA call(*args, *outputs, stream), on CPU call(*args, *outputs), in schema order. workspace:
    a tensor for scratch memory comes after the outputs. timed: measure calls, except those that
    compile or load something. chosen: "compiled": `implementation`
    runs at every launch; "at launch": each launch chooses; "verified": each launch chooses, and it
    is an error if it chooses another. check: compare each launch with the op's declaration;
    ContractError names the line `source` of user code. measured: where each launch chooses. Raises
    LaunchError when the op's hash is not
    `hash`."""

class NodeChoiceHandle: ...  # the whole answer, for cpp_node

class LaunchChoice(TypedDict):
    implementation: str
    conditions: list[str]  # evaluated at each launch: "aligned(x, 16)", "x.is_contiguous()"
    copied: list[str]  # arguments that the launch copies where they are not row-major

class NodeChoice(TypedDict):
    launches: list[LaunchChoice]  # in the order tried, up to the first that always fits
    always_fits: bool  # whether the last one does
    placed_row_major: list[str]  # arguments that the graph must pass row-major
    placed_copies: list[str]  # those of them that the graph copies for this
    skipped: list[str]  # "cuda:vec4: aligned(x, 16) does not hold"
    handle: NodeChoiceHandle

def choose(
    op: str,
    device_type: str,
    requirements: Mapping[str, Sequence[bool | None]],
    row_major: Sequence[bool | None],
    packaged: bool = False,
    measured: MeasuredSizes = (("", -1), (), ""),
) -> NodeChoice:
    """Which implementations may serve a node of a compiled graph. requirements: for each
    implementation by name, whether each of its requirements holds; None: known only at the launch.
    row_major: whether each argument and result is row-major; None likewise. packaged: the node goes
    into a package, so that no Python function may serve it. measured: what is tried before the
    others."""

class Problem(TypedDict):
    """What a measured choice is for."""

    key: str  # hex
    text: str
    fits: list[str]  # the implementations that are launched and fit, in the order tried
    fastest: str  # as set_fastest was told; ""

def problem(op: str, args: Sequence[FakeArgument]) -> Problem: ...
def set_fastest(op: str, by_problem: Mapping[str, str]) -> None: ...
def cuda_driver() -> str: ...  # the driver's version of CUDA, "13.0"; "" where there is none
def cublaslt_version() -> str: ...  # opens the library; "" where there is none
def prefer(op: str, names: Sequence[str]) -> None: ...
def watch(op: str, entries: list[list[int]]) -> None:
    """Takes the addresses of the dispatcher's table entries for this op (`kernel_entries` in
    lowering/compat). They hold opaq's kernels now; as soon as one changes, calls go through the
    dispatcher. With an empty list they always do."""

def watcher(
    op: str, device: str
) -> Callable[[], bool]: ...  # kernel_is_ours for one op and device, faster
def kernel_is_ours(op: str, device: str) -> bool:
    """Whether a call of the op on this device ("cpu", "cuda:0") still reaches the kernel that was
    registered at `watch`.
    """

def call_alone(
    overload: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], check: bool
) -> Any:
    """overload(*args, **kwargs) with the contract check on or off, whatever OPAQ_CHECK is."""

def compare_tensors(got: Any, expected: Any, bits: bool) -> int | None:
    """The number, in row-major order, of the first element that differs. If none does: -1: same
    bits, strides and alignment; -2: same bits; -3: floats within the tolerance for another order of
    arithmetic (never with `bits`). -4: sizes or dtypes differ. None: the values cannot be read here
    (on a GPU, or with the negative or conjugate bit set)."""

def eager(op: str, overload: Callable[..., Any]) -> Callable[..., Any]:
    """call(*args, **kwargs) -> outputs. Plain tensors are launched directly; anything else goes to
    `overload` (the dispatcher).
    """

# A base class whose instances do not become methods when they are attributes of a class.
class Unbound: ...

# An argument without memory: a tensor as (dtype name, sizes, strides, device "cuda:0", alignment of
# its address in bytes), a scalar as itself.
FakeArgument = tuple[str, Sequence[int], Sequence[int], str, int] | int | float | bool | str | None

class Resources(TypedDict):
    # Of a kernel, with the functions that it calls; in bytes, except `registers`; None: unknown.
    registers: int | None  # per thread
    shared: int | None  # per block, static
    stack: int | None  # per thread; recursive functions need more
    spill_stores: int | None  # per thread: registers that are kept in memory for lack of registers
    spill_loads: int | None

def cubin_resources(content: bytes, symbol: bytes) -> Resources:
    """Of a kernel, by its symbol. All None for what is no whole 64-bit cubin: PTX, a fatbin, a
    damaged file."""

def image_set(images: Sequence[tuple[str, str, bytes]]) -> bytes:
    """One code of several images: (target, file or "", cubin, PTX or LTO-IR, or link_inputs)."""

def link_inputs(inputs: Sequence[tuple[str, bytes]]) -> bytes:
    """One code of what is linked together: (file or "", content)."""

def expression(op: str, text: str, args: Sequence[FakeArgument]) -> dict[str, Any]:
    """Any expression over the op's arguments and results: its type, its text in Python and C++
    (`python`, `cpp`), and its value for these arguments or the error of evaluating it.
    """

def plan(op: str, args: Sequence[FakeArgument]) -> dict[str, Any]: ...

# implementation, reasons (text), workspace_bytes; entry, grid, block, cluster, shared, empty of its
# first step; steps: the same of each

def compile(
    op: str, args: Sequence[FakeArgument], arch: str, implementation: str = ""
) -> dict[str, Any]:
    ...
    # implementation, entry, bytes, seconds, from_cache, log, resources: Resources | None of its
    # first step; steps: the same of each

class Occupancy(TypedDict):  # an estimate, for one SM
    blocks: int  # that it holds at once
    warps: int  # of these
    most_warps: int  # that it could hold
    limit: str  # "warps" | "blocks" | "registers" | "shared memory": why there are no more blocks

class CheckedCode(TypedDict):
    arch: str  # "" for host code, and for a binary if none was asked for
    problem: str  # "": none was found
    parameters: list[str]  # types of the kernel's parameters, as far as they are known
    resources: Resources | None
    occupancy: Occupancy | None
    bytes: int
    seconds: float
    from_cache: bool
    compiler: str  # "NVRTC" or "nvcc"; "" for host code and binaries
    log: str

class LaunchCheck(TypedDict):
    why_not: str  # a requirement that the example does not meet: checked as if there were none
    refused: list[str]  # "sm_80: arch(x) >= 90 does not hold": not compiled for
    entry: str
    problem: str  # of the launch rule
    assumed: list[str]  # without an example: "x.dtype = float32"
    unchecked: list[str]  # without an example: what depends on the arguments
    launch: dict[str, Any] | None  # entry, grid, block, cluster, shared, empty
    code: list[CheckedCode]

def check_code(
    op: str, implementation: str, args: Sequence[FakeArgument] | None, archs: Sequence[str]
) -> list[LaunchCheck]:
    """Compiles each step of an implementation (not of a Python function) for each arch, checks the
    signature, and tells what it takes. args: None if there is no example. Problems of the user's
    code are texts."""

class Sources(TypedDict):  # of an op's implementations: source text, headers, options, compilers
    digest: str
    unknown: str  # why the headers are not known before compiling; else ""
    changed: bool  # whether an implementation will be compiled again

def refresh_sources(
    op: str,
) -> Sources: ...  # kernels whose headers have changed are compiled again when next used
def warmup(
    op: str, args: Sequence[Any]
) -> None: ...  # compiles and loads what these arguments need

# ---- C++ wrappers --------------------------------------------------------------------------------

class CppNode: ...  # a node's implementations, compiled ahead

class CppFile(TypedDict):  # code of an implementation, which goes with the wrapper as a file
    arch: str  # "sm_90a", "compute_90" for PTX, "" for host code and for what the user brought
    suffix: str  # of the file's name: ".sm_90a.cubin", ".host"
    bytes: bytes | None  # None: a library that stays at `path`
    path: str
    resources: Resources | None  # None: no kernel that was compiled here, or PTX

class CppFunction(TypedDict):
    parameters: list[tuple[str, str]]  # arguments and results, each with its type in the schema
    name: str  # equal definitions have equal names
    prelude: list[str]  # the parts of cpp_prelude() that it needs, in order
    definition: str
    manifest_entry: str  # JSON

def cpp_node(
    op: str,
    choice: NodeChoiceHandle,
    args: Sequence[FakeArgument],
    device: str,
    archs: Sequence[str],
    ptx: bool,
    package: bool,
    timed: bool = False,
    profiled: bool = False,
) -> CppNode:
    """Compiles the implementations that may serve a node. Template values are computed from `args`,
    and must be the same at every launch. archs: what CUDA source is compiled for; empty: the
    device's own. ptx: PTX of the lowest of them, too. package: libraries are packed, and calls are
    neither counted nor timed. timed: calls are. profiled: launches are events of PyTorch's
    profiler."""

def cpp_code(node: CppNode) -> list[list[CppFile]]: ...  # of each implementation
def cpp_function(
    node: CppNode, files: Sequence[Sequence[tuple[str, str]]], never_empty: Sequence[str]
) -> CppFunction:
    """The function that launches the node. files: as in cpp_code, for each the name by which C++
    finds it, and its SHA-256; "" for a library that stays where it is. never_empty: arguments and
    results that have elements at every call."""

def cpp_graph(label: str) -> str: ...  # what the report reads of the graph
def cpp_counters(
    node: str, op: str, device: str, implementations: Sequence[str], reason: str, timed: bool
) -> str: ...  # the definition of a node's counters, opaq_<node>, and timers, opaq_timers_<node>
def event_name(op: str) -> str: ...  # of its launches in profiles: "opaq::mylib::rms_norm"
def cpp_string(text: str) -> str: ...  # a string literal
def python_identifier(name: str) -> str: ...  # by which printed expressions call an argument
def cpp_prelude(part: str) -> str: ...  # runtime/wrapper/include/wrapper/prelude.h lists them
def device_arch(index: int) -> str: ...  # "sm_90a". MissingError: there is no such device

# name: as expressions write it, "shared_memory"; arch: of a device in place of that one, or "".
# LaunchError: not known of the arch; MissingError: there is no such device
def device_fact(name: str, index: int, arch: str) -> int: ...

# ---- facts ---------------------------------------------------------------------------------------

def implementation_stats() -> list[dict[str, Any]]:
    ...
    # op, implementation, device, calls, skipped_empty, timed_calls, host_seconds, compile_seconds,
    # compiled, disk_hits, compiler, spill_bytes and image_bytes (None: unknown)

def node_stats() -> list[dict[str, Any]]:
    ...
    # of launch objects: graph, node, op, device, implementation (last used), calls, timed_calls,
    # host_seconds

class Timed(TypedDict):
    calls: int  # that were timed
    host_seconds: float  # of those, together

class WrapperNode(TypedDict):  # of a C++ wrapper that is loaded in this process
    graph: str
    node: str
    op: str
    device: str
    reason: str  # why not an earlier implementation, and what each launch checks
    served: dict[str, int]  # calls by implementation, in the order in which a launch tries them
    calls: int  # includes calls with empty results, which launch nothing
    timed: dict[str, Timed]  # by implementation; {} without the option `profile`

def wrapper_nodes() -> list[WrapperNode]: ...  # in order of loading
def graph_name(
    label: str,
) -> str: ...  # unique in this process: "model__0_inference_0 (2)" when the label is taken

# driver, nvrtc, nvjitlink, cublaslt, nvcc, cache, cxx: found, path, version, why_not
def doctor() -> dict[str, Any]: ...
def settings() -> dict[str, Any]: ...
