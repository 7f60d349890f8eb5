"""What is known of the nodes of graphs of Dynamo, torch.export and torch.fx."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
from torch.fx import Graph, Node

from ..compat import pytorch

_SAME = {
    "truediv": "div",
    "true_divide": "div",
    "divide": "div",
    "multiply": "mul",
    "negative": "neg",
    "subtract": "sub",
    "floor_divide": "floordiv",
    "concat": "cat",
    "concatenate": "cat",
    "split_with_sizes": "split",
    "special_log_softmax": "log_softmax",
    "special_softmax": "softmax",
    "special_expit": "sigmoid",
    "linalg_norm": "norm",
    "linalg_vector_norm": "norm",
    "or_": "or",  # of operator: it writes nothing
    "and_": "and",
    "bitwise_or": "or",
    "bitwise_and": "and",
    "less": "lt",
    "less_equal": "le",
    "greater": "gt",
    "greater_equal": "ge",
}
CASTS = {"to", "float", "half", "bfloat16", "double", "type", "type_as"}
CASTS |= {"convert_element_type"}
VIEWS = {"view", "reshape", "flatten", "unflatten", "transpose", "t", "mT", "permute", "expand"}
VIEWS |= {"squeeze", "unsqueeze", "expand_as", "view_as", "slice", "narrow", "select", "chunk"}
VIEWS |= {"split", "unbind", "movedim", "swapaxes", "alias", "getitem"}
VIEWS |= {"view_as_complex", "view_as_real"}
# Inductor runs them as kernels of their own; what comes before and after is not computed in them.
_PRODUCTS = {"linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum"}
_EXTERN = {*_PRODUCTS, "scaled_dot_product_attention", "conv1d", "conv2d", "conv3d", "scaled_mm"}
_EXTERN |= {"grouped_mm", "sort", "topk", "cumsum", "argsort", "multinomial", "histc"}
# Their results are laid out by the sizes alone; not so those of convolutions, attention and sorts.
_ROW_MAJOR = {"contiguous", *_PRODUCTS}
_OF_STRIDES = {"view", "view_as", "as_strided", "stride", "data_ptr"}
# Random numbers go by the order of memory.
_OF_STRIDES |= {"multinomial", "bernoulli", "exponential", "exponential_"}
# They take no numbers of a random generator.
_NOT_RANDOM = {"empty", "empty_like", "new_empty", "zeros", "zeros_like", "full_like", "arange"}
_NOT_RANDOM |= {"add", "sub", "mul", "div", "neg", "exp", "log", "pow", "sum", "mean", "amax"}
_NOT_RANDOM |= {"lt", "le", "gt", "ge", "eq", "ne", "where", "masked_fill", "scatter", "gather"}
_NOT_RANDOM |= {"scatter_add", "scatter_add_", "pad", "or", "repeat", "isub", "imul", "one_hot"}
_NOT_RANDOM |= {"slice_scatter", "index_put", "softmax", "log_softmax", "argmax", "topk", "sort"}
_NOT_RANDOM |= {"cumsum", "contiguous", "size", "div_", "masked_fill_", "scatter_", "setitem"}
_NOT_RANDOM |= VIEWS | CASTS
# They give a new tensor like another one.
FILLED_LIKE = ("zeros_like", "ones_like", "full_like")
_LIKE = {"empty_like", *FILLED_LIKE}
_LIKE |= {"new_empty", "new_zeros", "new_ones", "new_full"}
# They write to memory, or they change how what comes after them runs.
_IN_PLACE = {"iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior"}
_IN_PLACE |= {"ixor", "ilshift", "irshift", "imatmul", "iconcat", "setitem"}
_WRITING = {"batch_norm", "instance_norm", "embedding_renorm", "setattr", "delitem"} | _IN_PLACE


def value_of(node: Any) -> Any:
    """The example of a node's value that was recorded when the graph was traced."""
    if not isinstance(node, Node):
        return node
    return node.meta["example_value"] if "example_value" in node.meta else node.meta.get("val")


def memory(value: Any) -> Iterator[int]:
    """A number for each tensor in a value, which those have in common that share memory."""
    if isinstance(value, (tuple, list)):
        for each in value:
            yield from memory(each)
    elif isinstance(value, torch.Tensor) and value.layout == torch.strided:
        if (found := pytorch.memory_of(value)) is not None:
            yield found


def memory_of(node: Node) -> set[int]:
    """That of its value."""
    return set(memory(value_of(node)))


def sharing(graph: Graph) -> dict[int, set[Node]]:
    """By `memory`, the nodes that have it in their values."""
    found: dict[int, set[Node]] = {}
    for node in graph.nodes:
        for each in memory(value_of(node)):
            found.setdefault(each, set()).add(node)
    return found


def is_tensor(node: Any) -> bool:
    return isinstance(node, Node) and isinstance(value_of(node), torch.Tensor)


def is_like(node: Any, example: torch.Tensor) -> bool:
    """Whether a value may stand for an example: a floating one of at least 16 bits for a floating
    one, a complex one for a complex one, an integer for an integer. Tensor subclasses may mean
    something else by what is done."""
    if not is_tensor(node) or not pytorch.is_plain(value := value_of(node)):
        return False
    if example.is_floating_point():
        return digits(value.dtype) > 0
    if example.is_complex():
        return value.is_complex()
    return not (value.is_floating_point() or value.is_complex())


def alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether one tensor may stand for the other, but for its values; no, where only a call can
    tell."""
    if (one.dtype, one.device, one.dim()) != (other.dtype, other.device, other.dim()):
        return False
    try:
        return one.shape == other.shape and one.stride() == other.stride()
    except Exception as error:
        if pytorch.is_data_dependent(error):
            return False
        raise


def function_name(node: Node) -> str:
    """ "mul" of torch.mul, operator.mul, Tensor.mul and aten.mul.Tensor; "" of anything else."""
    if node.op == "call_method":
        name = str(node.target)
    else:
        name = pytorch.function_name(node.target) if node.op == "call_function" else ""
    return _SAME.get(name, name)


def op_name(node: Node) -> str:
    """ "aten::mul.Tensor" of a call of the dispatcher's op; "" of anything else."""
    return (pytorch.op_name(node.target) or "") if node.op == "call_function" else ""


def is_opaque(node: Node) -> bool:
    """A custom op, which Inductor runs as it is."""
    return op_name(node).split("::")[0] not in ("", "aten", "prims", "higher_order")


def may_write(node: Node) -> bool:
    """Whether a node may write to memory, or change how what follows runs (autocast, grad mode)."""
    if node.op in ("placeholder", "get_attr", "output"):
        return False
    name = function_name(node)
    if is_opaque(node) or pytorch.is_overload(node.target):
        return not pytorch.has_schema(node.target) or pytorch.writes(node.target)
    if not name or node.kwargs.get("out") is not None:
        return True
    if name in _WRITING or name.startswith("__") and name.strip("_") in _WRITING:  # x.__iadd__(y)
        return True
    if name.endswith("_") and not name.endswith("__"):
        return True
    if name.startswith("_") and not name.startswith("__"):
        return not name.endswith("get_data_attr")  # x.data
    if _argument(node, "max_norm") is not None:  # of an embedding: it scales the rows that it reads
        return True
    return bool(_argument(node, "inplace"))


def writes_to(node: Node, tensors: Collection[Node]) -> bool:
    """Whether a node may write to one of these arguments: x.copy_(y) and x[...] = y only read y."""
    if not may_write(node):
        return False
    name = function_name(node)
    in_place = name in _IN_PLACE or name.endswith("_") and not name.startswith("_")
    if not in_place or name == "set_" or node.kwargs or is_opaque(node):
        return True
    return node.args[0] in tensors


def written_between(first: Node, last: Node) -> bool:
    """Whether memory may be written, or a mode changes, after one node and before another."""
    while (first := first.next) is not last:
        if may_write(first):
            return True
    return False


def may_draw(node: Node) -> bool:
    """Whether a node may take numbers of a random generator."""
    if node.op in ("placeholder", "get_attr", "output"):
        return False
    return function_name(node) not in _NOT_RANDOM


def is_random(node: Node) -> bool:
    """Of the nodes that patterns have: whether it takes numbers of a random generator."""
    return function_name(node) in ("exponential", "multinomial")


def how_many_before(graph: Graph, condition: Callable[[Node], bool]) -> dict[Node, int]:
    """By node, of how many nodes before it the condition holds."""
    count, found = 0, {}
    for node in graph.nodes:
        found[node] = count
        count += condition(node)
    return found


def transformed(graph: Graph) -> set[Node]:
    """What is computed inside torch.func.grad, jvp, vmap, ..."""
    level, found = 0, set()
    for node in graph.nodes:
        level += transforms_entered(node)
        if level:
            found.add(node)
    return found


def transforms_entered(node: Node) -> int:
    """1 where a transform of torch.func (grad, jvp, ...) begins, -1 where one ends, else 0."""
    name = pytorch.function_name(node.target) if node.op == "call_function" else ""
    return name.endswith("increment_nesting") - name.endswith("decrement_nesting")


def _argument(node: Node, name: str) -> Any:
    """Of a call of a Python function, by name; None where it has no such parameter."""
    if name in node.kwargs:
        return node.kwargs[name]
    place = _place_of(node.target, name) if node.op == "call_function" else None
    return node.args[place] if place is not None and place < len(node.args) else None


@functools.cache
def _place_of(function: Callable[..., Any], name: str) -> int | None:
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # a builtin function
        return None
    return names.index(name) if name in names else None


def source_of_cast(node: Any) -> Node | None:
    """What a node converts to another floating dtype, or copies, without moving it to another
    device."""
    if not isinstance(node, Node) or not is_tensor(node):
        return None
    name = function_name(node)
    if name == "contiguous":
        source = node.args[0]
    elif name in CASTS:
        source = node.args[0] if node.args else None
    else:
        return None
    return source if _may_have_values_of(node, source) else None


def _may_have_values_of(node: Node, source: Any) -> bool:
    if not is_tensor(source):
        return False
    before, after = value_of(source), value_of(node)
    if before.device != after.device or before.shape != after.shape:
        return False
    return before.dtype == after.dtype or digits(before.dtype) > 0 and digits(after.dtype) > 0


def without_casts(value: Any) -> tuple[Any, frozenset[Node]]:
    """(what a value is a cast of, the casts in between)"""
    passed = []
    while (source := source_of_cast(value)) is not None:
        passed.append(value)
        value = source
    return value, frozenset(passed)


def times_one(node: Any) -> Node | None:
    """x of x * 1, 1 * x and x / 1."""
    if not is_tensor(node) or (name := function_name(node)) not in ("mul", "div"):
        return None
    if len(node.args) != 2 or node.kwargs:
        return None
    first, second = node.args
    if name == "mul" and not isinstance(first, Node):
        first, second = second, first
    one = type(second) in (int, float) and second == 1
    return first if one and _may_have_values_of(node, first) else None


def has_values_of(node: Any) -> Node | None:
    """What a node casts, copies, or multiplies with 1."""
    source = source_of_cast(node)
    return times_one(node) if source is None else source


def is_exact_cast(node: Node, source: Node) -> bool:
    """Whether a cast loses nothing."""
    return loses_nothing(value_of(source).dtype, value_of(node).dtype)


def loses_nothing(before: torch.dtype, after: torch.dtype) -> bool:
    """Whether the dtype `after` holds all values of `before`."""
    return before == after or digits(after) > digits(before) > 0


def digits(dtype: torch.dtype) -> int:
    """0 for what is no floating dtype of at least 16 bits."""
    known = {torch.bfloat16: 1, torch.float16: 1, torch.float32: 2, torch.float64: 3}
    return known.get(dtype, 0)


def rearranges(node: Any) -> bool:
    """Whether a node has elements of its argument in another shape: a view of them, or a copy, as
    reshape and x[numbers] may give."""
    return isinstance(node, Node) and is_tensor(node) and function_name(node) in VIEWS


def is_looked_through(node: Node) -> bool:
    """Whether the operation of a reader may be told by the argument of this node."""
    return function_name(node) in VIEWS | CASTS | {"int", "long"}


def why_kept(node: Node) -> str:
    """ "given", where a node is an input of the graph or a view of one, "returned", where the graph
    returns such a view, else ""."""
    while rearranges(node):
        node = node.args[0]
    if node.op in ("placeholder", "get_attr"):
        return "given"
    returned = any(reader.op == "output" for reader in readers([node], rearranges))
    return "returned" if returned else ""


def is_view(node: Any) -> bool:
    """Whether a node has the memory of its argument, so that it changes with that."""
    if not rearranges(node):
        return False
    mine, given = set(memory(value_of(node))), set(memory(value_of(node.args[0])))
    return mine <= given or not given  # of what is inside a transform, the memory is not known


def needs_strides(node: Node) -> bool:
    """Whether a node fails, or may do something else, where a tensor is laid out in another way."""
    return is_opaque(node) or function_name(node) in _OF_STRIDES


def readers(results: Iterable[Node], passed: Callable[[Node], bool]) -> Iterator[Node]:
    """What reads the results, and what reads those of the readers that are passed; each once."""
    seen = set(results)
    queue = list(seen)
    while queue:
        for reader in queue.pop().users:
            if reader not in seen:
                seen.add(reader)
                yield reader
                if passed(reader):
                    queue.append(reader)


def shows_through(node: Node) -> bool:
    """Whether a node has the values of its argument, in another shape or dtype."""
    return rearranges(node) or source_of_cast(node) is not None


def reads_sizes(node: Node) -> bool:
    """Whether a node reads sizes and dtypes of tensors alone, which nothing has to compute."""
    if node.op == "call_method" and node.target in ("size", "dim", "numel"):
        return True
    if function_name(node) in _LIKE:
        return True
    return rearranges(node) and all(function_name(user) in _LIKE for user in node.users)


def is_needed(node: Node, without: Collection[Node]) -> bool:
    """Whether results of the graph, or what has an effect, depend on a node otherwise than through
    the nodes `without`: not on the mask of `counts, mask = of(tokens)` whose mask nothing reads."""
    seen = set(without)
    reached = [node]
    while reached:
        each = reached.pop()
        if each.op == "output" or each.is_impure() or may_write(each):
            return True
        seen.add(each)
        reached += [user for user in each.users if user not in seen]
    return False


def keeps_strides(node: Node) -> bool:
    """Whether the strides of a result may depend on those of the argument."""
    return function_name(node) not in _ROW_MAJOR


def computed(node: Any) -> Node | None:
    """What computes a value that a node has in another shape or dtype; None for an input."""
    while isinstance(node, Node) and node.op not in ("placeholder", "get_attr", "output"):
        if (source := source_of_cast(node)) is not None:
            node = source
        elif function_name(node) in VIEWS:  # also those that give several parts
            node = node.args[0]
        else:
            return node
    return None


def is_fused(node: Any) -> bool:
    """Whether Inductor may compute a node in one kernel with what comes before and after it."""
    node = computed(node)
    return node is not None and not is_kernel_of_its_own(node)


def narrows(reader: Node, size: int) -> bool:
    """Whether what reads values of `size` bytes each casts them to fewer, itself or, a product,
    under autocast."""
    if not is_tensor(reader) or not (source_of_cast(reader) is not None or is_product(reader)):
        return False
    value = value_of(reader)
    return bool(value.is_floating_point() and value.itemsize < size)


def is_product(node: Node) -> bool:
    """Whether a node is a matrix product."""
    return function_name(node) in _PRODUCTS


def is_kernel_of_its_own(node: Node) -> bool:
    return is_opaque(node) or function_name(node) in _EXTERN


def waits_for_others(
    reader: Node, results: Iterable[Node], comes_before: Callable[[Node, Node], bool]
) -> bool:
    """Whether what reads results depends on them also through something that Inductor runs as a
    kernel of its own, so that it cannot be computed in one kernel with them."""

    def near(node: Node) -> bool:
        return comes_before(node, reader)

    kernels = [
        each
        for each in readers(results, lambda node: near(node) and not is_kernel_of_its_own(node))
        if near(each) and is_kernel_of_its_own(each)
    ]
    return reader in readers(kernels, near)
