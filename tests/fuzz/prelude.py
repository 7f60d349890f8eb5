"""Functions that every fuzz program uses: inputs, parts of the twins, outcomes and their
comparison. This text is printed at the start of each reproducer.
"""

from __future__ import annotations

import math
import sys

import torch

import opaq

DEVICE = "cpu"


class Refused(Exception):
    """Raised by a twin for a call that opaq may refuse, or whose result is undefined."""


def fill(seed, shape, dtype=torch.float32):
    """A row-major tensor of small integers, so that every order of additions gives the same
    bits."""
    count = 1
    for size in shape:
        count *= size
    return ((torch.arange(count) * 7 + seed * 5) % 11 - 5).to(dtype).reshape(shape).to(DEVICE)


def rev(tensor):
    """The elements in reversed row-major order."""
    return tensor.flip(tuple(range(tensor.dim())))


def put(target, value):
    """Writes `value`, which is complete before the first element is written."""
    target.copy_(value if isinstance(value, torch.Tensor) else torch.full_like(target, value))


def aligned(tensor, size):
    return tensor.data_ptr() % size == 0


def defined(value):
    return value is not None


def cond(predicate, on_true, on_false, operands):
    """torch.cond if a compiler traces it; in eager, where torch.cond would start a compiler,
    Python's `if`.
    """
    if torch.compiler.is_compiling():
        return torch.cond(predicate, on_true, on_false, operands)
    return on_true(*operands) if predicate else on_false(*operands)


def span(tensor):
    """(the first byte of a tensor, the byte after its last)."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return tensor.data_ptr(), tensor.data_ptr() + (
        last + 1
    ) * tensor.element_size() if tensor.numel() else tensor.data_ptr()


def same_view(a, b):
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()


def alike(first, *others):
    """Refuses tensors of different shapes or dtypes: gradients of the fuzz's ops have the shape and
    dtype of the first argument, whichever argument they are for.
    """
    for other in others:
        if other is not None and (other.shape != first.shape or other.dtype != first.dtype):
            raise Refused("shape or dtype")


def choose(implementations, tensors, written, reference=False, record=None, picks=None):
    """Which implementation eager runs, and its arguments: (position, tensors by name, function to
    call after the launch).

    implementations: (condition as a function, names of the arguments that must be row-major). One
    that takes the arguments as they are comes before one for which some are copied, and that before
    the reference; a written argument that was copied is copied back. record: a list to which
    ((name of the caller, strides of its arguments), result of `pick`, which written ones share a
    copy) is appended. picks: if given, the results of `pick` to use, call by call.
    """
    position, copied = picks.pop(0) if picks else pick(implementations, tensors, reference)
    for name in copied & set(written):
        for other, tensor in tensors.items():
            alone = (
                tensor is None
                or other == name
                or (other in copied and same_view(tensor, tensors[name]))
            )
            if (
                not alone
                and span(tensor)[0] < span(tensors[name])[1]
                and span(tensors[name])[0] < span(tensor)[1]
            ):
                raise Refused("a written argument that is copied overlaps another")
    for tensor in [tensors[name] for name in written if tensors[name] is not None]:
        extent = (span(tensor)[1] - span(tensor)[0]) // tensor.element_size()
        if (
            torch.arange(extent).as_strided(tensor.shape, tensor.stride()).unique().numel()
            != tensor.numel()
        ):
            raise Refused("a written argument overlaps itself")
    shared = {
        name: next(
            other
            for other in tensors
            if other in copied and same_view(tensors[other], tensors[name])
        )
        for name in tensors
        if name in copied
    }
    if record is not None:
        strides = {name: tensor.stride() for name, tensor in tensors.items() if tensor is not None}
        caller = sys._getframe(1).f_code.co_name
        record.append(((caller, strides), (position, copied), shared if written else {}))
    return position, *place(tensors, written, shared)


def pick(implementations, tensors, reference):
    """(position, names of the arguments that are copied), from what a compiler can trace alone."""
    alike(*tensors.values())
    if next(iter(tensors.values())).dim() == 0:
        raise Refused("no dimensions")
    fitting = [(i, names) for i, (fits, names) in enumerate(implementations) if fits()]
    strided = {
        name
        for name, tensor in tensors.items()
        if tensor is not None and not tensor.is_contiguous()
    }
    best = next(
        (item for item in fitting if not strided & set(item[1])), fitting[0] if fitting else None
    )
    if best is None and not reference:
        raise Refused("no implementation fits")
    best = best or (len(implementations), ())
    return best[0], strided & set(best[1])


def place(tensors, written, shared):
    """(the arguments of a launch, a function to call after it). shared: for each copied argument,
    the one whose copy it uses.
    """
    placed = dict(tensors)
    for name in tensors:
        if name in shared:
            placed[name] = (
                tensors[name].contiguous() if shared[name] == name else placed[shared[name]]
            )

    def carry_back():
        for name in written:
            if name in shared:
                tensors[name].copy_(placed[name])

    return placed, carry_back


class Outcome:
    """The outcome of a run: results, storages of the inputs, gradients; or the error."""

    def __init__(self, results=(), inputs=(), gradients=(), error=None):
        self.error = error
        places = [tensor.untyped_storage().data_ptr() for tensor in inputs]
        self.tensors = {}
        for i, result in enumerate(results):
            place = result.untyped_storage().data_ptr()
            shared = places.index(place) if place in places and result.numel() else None
            self.tensors[f"result {i}"] = (result.detach().clone(), layout(result, shared), shared)
        for i, tensor in enumerate(inputs):
            storage = tensor.untyped_storage()
            whole = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(
                storage, 0, (storage.nbytes() // tensor.element_size(),)
            )
            self.tensors[f"storage of input {i}"] = (whole.clone(), None, None)
        for i, gradient in enumerate(gradients):
            self.tensors[f"gradient {i}"] = (gradient.detach().clone(), None, None)


def layout(tensor, shared):
    """The strides to compare. PyTorch does not always keep those of a result with gaps between its
    elements, if it is not a view of an input.
    """
    order = sorted(
        (stride, size) for size, stride in zip(tensor.shape, tensor.stride()) if size > 1
    )
    dense = all(
        stride == math.prod(size for _, size in order[:i]) for i, (stride, _) in enumerate(order)
    )
    if tensor.numel() == 0 or (shared is None and not dense):
        return None
    return [(size, stride) for size, stride in zip(tensor.shape, tensor.stride()) if size > 1]


def difference(expected, got):
    """The first difference of two outcomes, as a sentence; "" for none."""
    if expected.error or got.error:
        return "" if expected.error and got.error else f"raised: {expected.error or got.error!r}"
    if expected.tensors.keys() != got.tensors.keys():
        return f"has {', '.join(got.tensors)}; expected {', '.join(expected.tensors)}"
    for name, (value, strides, shared) in expected.tensors.items():
        other, other_strides, other_shared = got.tensors[name]
        if value.dtype != other.dtype or value.shape != other.shape:
            return (
                f"{name} is {other.dtype} {tuple(other.shape)}; expected {value.dtype} "
                f"{tuple(value.shape)}"
            )
        if not torch.equal(value, other):
            return f"{name} is\n{other}\nexpected\n{value}"
        if strides is not None and strides != other_strides:
            return f"{name} has (size, stride) {other_strides}; expected {strides}"
        if shared != other_shared:
            return f"{name} shares memory with input {other_shared}; expected {shared}"
    return ""


def run(function, inputs, gradients=False):
    """Runs a program on fresh inputs; never raises."""
    try:
        if gradients:
            inputs = [
                tensor.detach().requires_grad_(tensor.is_floating_point()) for tensor in inputs
            ]
        results = function(*inputs)
        results = [results] if isinstance(results, torch.Tensor) else list(results)
        found = []
        if gradients:
            terms = [
                (r * fill(i, r.shape, r.dtype)).sum()
                for i, r in enumerate(results)
                if r.requires_grad
            ]
            leaves = [tensor for tensor in inputs if tensor.requires_grad]
            found = (
                torch.autograd.grad(sum(terms), leaves, allow_unused=True)
                if terms
                else [None] * len(leaves)
            )
            found = [
                torch.zeros_like(leaf) if gradient is None else gradient
                for leaf, gradient in zip(leaves, found)
            ]
        return Outcome(results, inputs, found)
    except Exception as error:  # noqa: BLE001  (every error is an outcome)
        return Outcome(error=error)


def compiled(form, function, inputs, folder="/tmp"):
    """The program in a compiled form; `inputs` are for a package, which is made from them."""
    torch._dynamo.reset()
    if form == "package":

        class Model(torch.nn.Module):
            def forward(self, *args):
                return function(*args)

        with torch.no_grad():
            exported = torch.export.export(Model(), tuple(inputs))
            return torch._inductor.aoti_load_package(opaq.package(exported, f"{folder}/fuzz.pt2"))
    return torch.compile(
        function, fullgraph=not function.__name__.startswith("twin"), **FORMS[form]
    )


FORMS = {
    "stock": {},
    "backend": {"backend": "opaq"},
    "dynamic": {"dynamic": True},
    "cpp_wrapper": {"options": {"cpp_wrapper": True}},
    "dynamic cpp_wrapper": {"dynamic": True, "options": {"cpp_wrapper": True}},
}
