"""DTensor: how it is told the rules of ops, and how it places what a function computes.

torch.distributed.tensor is imported only by programs that use it: nothing here imports it earlier.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

_MODULE = "torch.distributed.tensor"
_aten = torch.ops.aten

# Their second argument is the size of the result, which is another one for a part of a tensor.
_SIZED = {
    _aten.view.default,
    _aten._unsafe_view.default,
    _aten.expand.default,
    _aten.new_empty.default,
    _aten.new_zeros.default,
    _aten.new_ones.default,
    _aten.new_full.default,
}
# What sums over a split dimension, so that the parts of the result are to be added up; and what may
# be done with such parts before that.
_SUMS = {_aten.sum.default, _aten.sum.dim_IntList, _aten.mm.default, _aten.bmm.default}
_CARRY_SUMS = {
    _aten._to_copy.default,
    _aten.alias.default,
    _aten.clone.default,
    _aten.detach.default,
    _aten.permute.default,
    _aten.squeeze.dim,
    _aten.t.default,
    _aten.transpose.int,
    _aten.unsqueeze.default,
    _aten.view.default,
    _aten._unsafe_view.default,
}

_waiting: dict[str, Callable[[], None]] = {}


class NotProvable(Exception):
    """The function does what this file does not follow."""


class _Ref(NamedTuple):
    """The place of a tensor in Recorded.tensors."""

    number: int


def _is_ref(value: Any) -> bool:
    return isinstance(value, _Ref)


class Call(NamedTuple):
    function: Any
    leaves: list[Any]  # of (args, kwargs), with a _Ref for each tensor
    tree: Any
    results: list[int]

    def inputs(self) -> list[int]:
        return [leaf.number for leaf in self.leaves if isinstance(leaf, _Ref)]

    def steps(self) -> list[Any]:
        """What must be equal for parts of tensors, if a call of the parts gives the parts."""
        args, kwargs = tree_unflatten(self.leaves, self.tree)
        if self.function in _SIZED:
            args = (args[0], *args[2:])
        leaves, tree = tree_flatten((args, kwargs), is_leaf=_is_ref)
        return [self.function, tree, [(type(leaf), leaf) for leaf in leaves], self.results]


class Recorded:
    """The calls of PyTorch's own operators that a function makes for tensors of these shapes."""

    def __init__(self, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """args, kwargs: with a Shaped in place of each tensor."""
        self.tensors: list[torch.Tensor] = []
        self.constants: list[int] = []  # id()s of tensors that are neither arguments nor made here
        self.calls: list[Call] = []
        with torch.no_grad(), _disable_current_modes():

            def made(value: Shaped) -> torch.Tensor:
                self.tensors.append(torch.empty(value.shape, dtype=value.dtype, device="meta"))
                return self.tensors[-1]

            args, kwargs = tree_map_only(
                Shaped, made, (args, kwargs), is_leaf=lambda value: isinstance(value, Shaped)
            )
            self.arguments = len(self.tensors)
            self._numbers = {id(tensor): i for i, tensor in enumerate(self.tensors)}
            with _Recorder(self):
                results = function(*args, **kwargs)
        results = results if isinstance(results, (tuple, list)) else (results,)
        if not all(id(result) in self._numbers for result in results):
            raise NotProvable("a result is not a tensor that it computed")
        self.results = [self._numbers[id(result)] for result in results]

    def add(self, function: Any, args: Any, kwargs: Any, results: Any) -> None:
        leaves, tree = tree_flatten((args, kwargs))
        for leaf in leaves:
            if isinstance(leaf, torch.Tensor) and id(leaf) not in self._numbers:
                self.constants.append(id(leaf))
                self._number(leaf)
        leaves = [
            _Ref(self._numbers[id(leaf)]) if isinstance(leaf, torch.Tensor) else leaf
            for leaf in leaves
        ]
        made = [leaf for leaf in tree_leaves(results) if leaf is not None]
        if any(not isinstance(each, torch.Tensor) or id(each) in self._numbers for each in made):
            raise NotProvable(f"{function} returns what is not a new tensor")
        self.calls.append(Call(function, leaves, tree, [self._number(each) for each in made]))

    def _number(self, tensor: torch.Tensor) -> int:
        self.tensors.append(tensor)  # kept, so that its id stays its own
        self._numbers[id(tensor)] = len(self.tensors) - 1
        return len(self.tensors) - 1

    def shapes(self) -> list[tuple[int, ...]]:
        return [tuple(tensor.shape) for tensor in self.tensors]

    def steps(self) -> list[Any]:
        return [self.constants, self.results, [call.steps() for call in self.calls]]


class Shaped(NamedTuple):
    shape: tuple[int, ...]
    dtype: torch.dtype


class _Recorder(TorchDispatchMode):
    def __init__(self, recorded: Recorded) -> None:
        super().__init__()
        self._recorded = recorded

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function._can_decompose():
            with self:
                results = function.decompose(*args, **kwargs)
            if results is not NotImplemented:
                return results
        if function._schema.is_mutable or torch.Tag.nondeterministic_seeded in function.tags:
            raise NotProvable(f"{function} writes to a tensor or draws random numbers")
        results = function(*args, **kwargs)
        self._recorded.add(function, args, kwargs, results)
        return results


class Sharding:
    recorded = Recorded
    shaped = Shaped

    def arguments(self, overload: Any) -> Sequence[Any]:
        """Of its schema: name, kwarg_only, default_value."""
        return overload._schema.arguments

    def when_dtensor_is_used(self, name: str, act: Callable[[], None]) -> None:
        """Calls `act` once torch.distributed.tensor is imported, or now if it is; of one name, only
        the last.
        """
        if hasattr(sys.modules.get(_MODULE), "DTensor"):
            act()
            return
        if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
            sys.meta_path.insert(0, _AfterImport())
        _waiting[name] = act

    def register_sharding(
        self,
        overload: Any,
        rule: Callable[[Any, Any, Any], tuple[list[tuple[Any, Any]], Callable[[Any], bool]]],
    ) -> None:
        """rule(mesh, args, kwargs), with tensor-like objects in place of tensors: all ways to split
        along one dimension of a mesh, each as (placements of the results, placements of the
        arguments), and whether a way for the whole mesh, one such tuple of the tensors' placements
        for each of its dimensions, is one.
        """
        from torch.distributed.tensor import DTensor
        from torch.distributed.tensor._op_schema import OpStrategy, RuntimeSchemaInfo, TupleStrategy
        from torch.distributed.tensor._ops.utils import expand_to_full_mesh_op_strategy

        def spec(value: Any) -> Any:
            if isinstance(value, OpStrategy):
                return value.strategies[0].output_spec
            if isinstance(value, TupleStrategy):
                return [spec(each) for each in value.children]
            return value

        def strategy(op_schema: Any) -> Any:
            args = tuple(spec(value) for value in op_schema.args_schema)
            kwargs = {name: spec(value) for name, value in op_schema.kwargs_schema.items()}
            mesh = op_schema.get_mesh_from_args()
            ways, accepts = rule(mesh, args, kwargs)
            found = expand_to_full_mesh_op_strategy(
                mesh,
                op_schema,
                [[*results, *arguments] for results, arguments in ways],
                input_index=len(overload._schema.returns),
            )
            found.strategies = [
                each
                for each in found.strategies
                if accepts(list(zip(*(spec.placements for spec in each.input_specs))))
            ]
            return found

        # All arguments are in the key of DTensor's cache: a rule may read any of them.
        names = [arg.name for arg in overload._schema.arguments if arg.kwarg_only]
        DTensor._op_dispatcher.sharding_propagator.register_op_strategy(
            overload, strategy, RuntimeSchemaInfo(0, names or None, needs_pytree=True)
        )

    def forget_shardings(self) -> None:
        """After a change of what a rule gives."""
        if _MODULE in sys.modules:
            from torch.distributed.tensor.debug import _clear_sharding_prop_cache

            _clear_sharding_prop_cache()

    def placed(self, recorded: Recorded, arguments: Sequence[Any]) -> list[Any] | None:
        """The placement along one dimension of a mesh of each tensor, if the arguments have these,
        each process can make every call on its own parts alone, and nothing else is unclear.
        """
        from torch.distributed.tensor import Partial, Replicate, Shard

        places: dict[int, Any] = dict(enumerate(arguments))
        for call in recorded.calls:
            inputs = [places.setdefault(number, Replicate()) for number in call.inputs()]
            if all(type(place) is Replicate for place in inputs):
                given = [Replicate()] * len(call.results)
            else:
                given = _placed_by_dtensor(recorded, call, places)
            partial = any(type(place) is Partial for place in inputs)
            for number, place in zip(call.results, given):
                is_sum = type(place) is Partial and place.reduce_op == "sum"
                if partial or is_sum:
                    if not is_sum or call.function not in (_CARRY_SUMS if partial else _SUMS):
                        return None
                elif type(place) not in (Replicate, Shard):
                    return None
                places[number] = place
            if len(given) != len(call.results):
                return None
        return [places.get(number, Replicate()) for number in range(len(recorded.tensors))]


def _placed_by_dtensor(recorded: Recorded, call: Call, places: dict[int, Any]) -> list[Any]:
    """[] if DTensor has no rule for the call or would move data."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
    from torch.distributed.tensor._op_schema import OpSchema

    def spec(leaf: Any) -> Any:
        if not isinstance(leaf, _Ref):
            return leaf
        tensor = recorded.tensors[leaf.number]
        meta = TensorMeta(tensor.shape, tensor.stride(), tensor.dtype)
        return DTensorSpec(_mesh(), (places[leaf.number],), tensor_meta=meta)

    propagator = DTensor._op_dispatcher.sharding_propagator
    args, kwargs = tree_unflatten([spec(leaf) for leaf in call.leaves], call.tree)
    info = propagator.op_to_schema_info.get(call.function)
    if info is None:
        by_dimension = propagator.op_to_schema_info_for_single_dim_strategy
        info = by_dimension.get(call.function)
    schema = OpSchema(call.function, tuple(args), kwargs, schema_info=info)
    try:
        sharding = propagator.propagate_op_sharding_non_cached(schema)
    except Exception:
        return []  # whatever it says, there is no rule
    moved = sharding.redistribute_schema if sharding.needs_redistribute else None
    if moved is not None and any(
        had.placements != wanted.placements
        for had, wanted in zip(schema.args_spec, moved.args_spec, strict=True)
    ):
        return []
    return [
        each.placements[0]
        for each in tree_leaves(sharding.output_spec, is_leaf=lambda x: isinstance(x, DTensorSpec))
        if each is not None
    ]


@functools.cache
def _mesh() -> Any:
    """Of two processes, for rules alone: the same in every process."""
    from torch.distributed.device_mesh import DeviceMesh

    with _disable_current_modes():  # a mesh has a tensor, whose values it reads
        return DeviceMesh("cpu", [0, 1], _init_backend=False, _rank=0)


class _AfterImport:
    """A finder of modules, which finds none, and acts after torch.distributed.tensor's import."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)
        found = importlib.util.find_spec(name)
        if found is not None and found.loader is not None:
            execute = found.loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                while _waiting:
                    _waiting.popitem()[1]()

            found.loader.exec_module = exec_module
        return found
