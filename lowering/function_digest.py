"""A digest of Python objects, mainly functions, over everything that decides what a call computes.
It is made without calling anything.

Of a function it covers the byte code, defaults, captured values, and the globals, attributes of
modules and imports that its code names, all of them digested in turn; of an object its class and
state; of a tensor its bytes; of an installed library its version. What cannot be digested with
certainty (a lock, a file, a CUDA tensor, eval) raises CannotDigest, and the caller then uses no
cache. Equal digests mean equal behaviour, also between processes; behaviour may be equal though
digests differ.
"""

from __future__ import annotations

import builtins
import contextvars
import copyreg
import ctypes
import enum
import functools
import hashlib
import importlib.util
import logging
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from .code_facts import code_facts
from .compat import pytorch
from .libraries import library_of

MOST_BYTES = 4 << 20  # of one tensor or array; reading more would take noticeable time

_PLAIN = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    type(...),
    type(NotImplemented),
    range,
    slice,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
)
_NEVER = (
    threading.local,
    contextvars.ContextVar,
    weakref.ref,
    weakref.WeakKeyDictionary,
    weakref.WeakValueDictionary,
    types.GeneratorType,
    types.CoroutineType,
    types.FrameType,
)
_DESCRIPTORS = (
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.ClassMethodDescriptorType,
)
_SCALARS = (int, float, complex, str, bytes)  # that a user's class may derive from
_BY_NAME = (*_DESCRIPTORS, types.FunctionType, types.BuiltinFunctionType, type)
# The byte code does not show what these reach.
_REFUSED = {"eval", "exec", "globals", "__import__", "compile"}
# These may reach any attribute.
_COMPUTED = {"getattr", "vars", "attrgetter", "methodcaller", "__dict__", "__getattribute__"}
# Members of a class that Python makes.
_OF_CLASSES = {
    "__dict__",
    "__weakref__",
    "__doc__",
    "__module__",
    "__qualname__",
    "__annotations__",
    "__abstractmethods__",
    "_abc_impl",
    "__dataclass_fields__",
    "__dataclass_params__",
    "__firstlineno__",
    "__static_attributes__",
    "__annotate__",
    "__annotate_func__",
    "__annotations_cache__",
    "__parameters__",
    "__orig_bases__",
    "__match_args__",
    "__slotnames__",
}


class CannotDigest(Exception):
    """Something cannot be digested; the message names it."""


def digest(value: Any, op_parts: Callable[[str], Any]) -> str:
    """The SHA-256 of `value`. op_parts(name): an object that is digested for an operator that is
    called; it may raise CannotDigest.
    """
    walk = _Walk(op_parts)
    try:
        walk.visit(value)
        walk.follow_modules()
    except CannotDigest:
        raise
    except RecursionError:
        raise CannotDigest("objects that are nested too deeply") from None
    except Exception as error:  # raised by code of a user's object
        raise CannotDigest(
            f"an object that cannot be looked at ({type(error).__name__}: {error})"
        ) from error
    return walk.hash.hexdigest()


class _Walk:
    def __init__(self, op_parts: Callable[[str], Any]) -> None:
        self.hash = hashlib.sha256()
        self.op_parts = op_parts
        self.seen: dict[int, int] = {}
        self.kept: list[Any] = []  # so that no other object gets the id of one that was seen
        self.ops: set[str] = set()
        self.modules: dict[int, types.ModuleType] = {}
        self.op_names: dict[int, set[str] | None] = {}
        # used by any visited function, which may look them up in any visited module
        self.names: set[str] = set()
        self.looked_up: set[tuple[int, str]] = set()
        self.computes_names = False

    def put(self, *items: Any) -> None:
        for item in items:
            content = item if isinstance(item, bytes) else str(item).encode(errors="surrogatepass")
            self.hash.update(b"%d:" % len(content))
            self.hash.update(content)

    def visit(self, value: Any) -> None:
        kind = type(value)
        if kind in _PLAIN:
            return self.put(kind.__name__, repr(value))
        if kind is bytes:
            return self.put("bytes", value)
        if id(value) in self.seen:
            return self.put("seen", self.seen[id(value)])
        self.seen[id(value)] = len(self.seen)
        self.kept.append(value)
        op = pytorch.op_name(value)
        if op is not None:
            return self.op(op)
        for kinds, method in _VISITS:
            if isinstance(value, kinds):
                return method(self, value)
        return self.instance(value)

    # ---- functions -------------------------------------------------------------------------------

    def function(self, value: types.FunctionType) -> None:
        module = value.__globals__.get("__name__")
        installed = library_of(module)
        self.put("function")
        if installed is not None:
            self.put(
                installed,
                module,
                value.__code__.co_name,
                getattr(value.__code__, "co_qualname", ""),
            )
            if _found_by_name(module, value.__qualname__) is value:
                return
        else:
            self.code(value)
        self.visit(value.__defaults__)
        self.visit(value.__kwdefaults__)
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or ()):
            try:
                content = cell.cell_contents
            except ValueError:
                self.put("empty", name)
            else:
                self.put("captured", name)
                self.visit(content)
        self.visit(vars(value))

    def code(self, value: types.FunctionType) -> None:
        facts = code_facts(value.__code__)
        self.put(facts.digest)
        self.names |= facts.names
        self.computes_names |= not _COMPUTED.isdisjoint(facts.names)
        for name in facts.globals:
            if name in value.__globals__:
                self.put("global", name)
                self.visit(value.__globals__[name])
            elif name in _REFUSED:
                raise CannotDigest(f"`{value.__qualname__}`, which calls {name}()")
            else:
                self.put("builtin" if hasattr(builtins, name) else "absent", name)
        if "import_module" in facts.names:
            raise CannotDigest(f"`{value.__qualname__}`, which imports a module by a computed name")
        for name, level in facts.imports:
            self.imported(value, name, level)

    def imported(self, function: types.FunctionType, name: str, level: int) -> None:
        package = function.__globals__.get("__package__") or ""
        absolute = importlib.util.resolve_name("." * level + name, package) if level else name
        self.put("import", absolute)
        found = [sys.modules.get(part) for part in (absolute, absolute.partition(".")[0])]
        if found[0] is None:
            top = absolute.partition(".")[0]
            if top not in sys.stdlib_module_names:
                raise CannotDigest(
                    f"`{function.__qualname__}`, which imports {absolute} when it is called; "
                    "import it at the top of its file"
                )
            return self.put(sys.version)
        for module in found:
            self.visit(module)

    def bound(self, value: types.MethodType) -> None:
        self.put("method")
        self.visit(value.__func__)
        self.visit(value.__self__)

    def builtin(self, value: types.BuiltinFunctionType | types.MethodWrapperType) -> None:
        owner = value.__self__
        if owner is None or isinstance(owner, types.ModuleType):
            module = owner.__name__ if owner is not None else value.__module__
            self.put("builtin", module, value.__qualname__)
            self.native(module)
        else:
            self.put("builtin method", value.__name__)
            self.visit(owner)

    def native(self, module: str | None) -> None:
        """A module written in C. One of the user's is digested by its file."""
        content = library_of(module)
        if content is None:
            file = getattr(sys.modules.get(module or ""), "__file__", None)
            if file is None:
                raise CannotDigest(f"code of `{module}`, whose file is not known")
            with open(file, "rb") as stream:
                content = hashlib.sha256(stream.read()).hexdigest()
        self.put(content)

    def descriptor(self, value: Any) -> None:
        self.put("descriptor", value.__name__)
        self.visit(value.__objclass__)

    def partial(self, value: functools.partial[Any]) -> None:
        if type(value) is not functools.partial and library_of(type(value).__module__) is None:
            return self.instance(value)
        self.put("partial")
        for part in (value.func, value.args, value.keywords):
            self.visit(part)

    def wrapped(self, value: Any) -> None:
        """staticmethod, classmethod, lru_cache."""
        self.put(type(value).__name__)
        self.visit(value.__wrapped__)

    def property(self, value: builtins.property) -> None:
        self.put("property")
        for part in (value.fget, value.fset, value.fdel):
            self.visit(part)

    def op(self, name: str) -> None:
        self.put("op", name)
        if name not in self.ops:
            self.ops.add(name)
            self.visit(self.op_parts(name))

    # ---- modules ---------------------------------------------------------------------------------

    def module(self, value: types.ModuleType) -> None:
        """Digests only the name; follow_modules() adds what functions look up in the module."""
        self.put("module", value.__name__)
        self.put(library_of(value) or "user's")
        self.modules[id(value)] = value

    def follow_modules(self) -> None:
        """Digests the attributes of all visited modules that have a name which some visited
        function uses: at least all those that the functions look up when they run.
        """
        before = -1
        while before != len(self.looked_up):
            before = len(self.looked_up)
            for module in list(self.modules.values()):
                for name in self.looked_for(module):
                    if (id(module), name) not in self.looked_up:
                        self.looked_up.add((id(module), name))
                        self.attribute(module, name)

    def looked_for(self, module: types.ModuleType) -> list[str]:
        if id(module) not in self.op_names:
            self.op_names[id(module)] = pytorch.op_names_in(module)
        known = self.op_names[id(module)]
        if known is not None:
            if self.computes_names:
                raise CannotDigest(
                    "a function that may pick an operator by a computed name (getattr beside "
                    "torch.ops)"
                )
            return sorted(self.names & known)
        found = self.names & vars(module).keys()
        if self.computes_names and library_of(module) is None:
            found = {name for name in vars(module) if not name.startswith("__")}
        return sorted(found)

    def attribute(self, module: types.ModuleType, name: str) -> None:
        value = getattr(module, name)
        if library_of(module) is not None and not isinstance(
            value, (*_BY_NAME, *_PLAIN, types.ModuleType, types.MethodType)
        ):
            if pytorch.op_name(value) is None and library_of(type(value).__module__) is not None:
                return  # the library's own state
        self.put("attribute", module.__name__, name)
        self.visit(value)

    # ---- objects ---------------------------------------------------------------------------------

    def klass(self, value: type) -> None:
        self.put("class", value.__module__, value.__qualname__)
        installed = library_of(value.__module__)
        if installed is not None:
            return self.put(installed)
        if str(getattr(sys.modules.get(value.__module__), "__file__", "")).endswith(".so"):
            self.native(value.__module__)
        self.visit(type(value))
        self.visit(value.__bases__)
        for name, item in vars(value).items():
            if name not in _OF_CLASSES:
                self.put(name)
                self.visit(item)

    def sequence(self, value: Iterable[Any]) -> None:
        items = list(value)
        self.put(type(value).__name__, len(items))
        for item in items:
            self.visit(item)
        self.subclass(value)

    def mapping(self, value: Mapping[Any, Any]) -> None:
        self.put(type(value).__name__, len(value))
        for key, item in value.items():
            self.visit(key)
            self.visit(item)
        self.visit(getattr(value, "default_factory", None))
        self.subclass(value)

    def unordered(self, value: Iterable[Any]) -> None:
        digests = []
        for item in value:
            walk = _Walk(self.op_parts)
            walk.visit(item)
            walk.follow_modules()
            digests.append(walk.hash.hexdigest())
        self.put(type(value).__name__, *sorted(digests))
        self.subclass(value)

    def subclass(self, value: Any) -> None:
        """Digests what a user's class adds to the builtin class that it derives from."""
        if type(value).__module__ != "builtins":
            self.visit(type(value))
            self.state(value)

    def member(self, value: enum.Enum) -> None:
        self.put("member", value.name)
        self.visit(type(value))

    def logger(self, value: logging.Logger) -> None:
        self.put("logger", value.name)

    def tensor(self, value: torch.Tensor) -> None:
        if (
            type(value) not in (torch.Tensor, torch.nn.Parameter)
            or value.layout != torch.strided
            or value.device.type not in ("cpu", "meta")
        ):
            raise CannotDigest(
                f"a captured tensor of type {type(value).__name__} on {value.device}"
            )
        self.put(
            "tensor",
            value.dtype,
            tuple(value.shape),
            value.stride(),
            value.storage_offset(),
            value.device.type,
        )
        self.put(value.requires_grad, value.is_conj(), value.is_neg())
        if value.device.type == "cpu":
            storage = value.untyped_storage()
            self.content(storage.data_ptr(), storage.nbytes())

    def content(self, address: int, size: int) -> None:
        if size > MOST_BYTES:
            raise CannotDigest(
                f"a captured tensor or array of {size} bytes (up to {MOST_BYTES} are looked at)"
            )
        self.put(ctypes.string_at(address, size) if size else b"")

    def instance(self, value: Any) -> None:
        kind = type(value)
        if isinstance(value, _NEVER):
            raise CannotDigest(f"an object of type {kind.__module__}.{kind.__qualname__}")
        if kind.__module__ == "numpy" and hasattr(value, "__array_interface__"):
            return self.array(value)
        self.put("object")
        self.visit(kind)
        base = next((base for base in _SCALARS if isinstance(value, base)), None)
        if base is not None:
            self.visit(base(value))
        if base is None and _has_hidden_state(kind):
            self.reduced(value)
        else:
            self.state(value)

    def array(self, value: Any) -> None:
        if value.dtype.hasobject:
            raise CannotDigest("a NumPy array of Python objects")
        if value.nbytes > MOST_BYTES:
            raise CannotDigest(
                f"a captured tensor or array of {value.nbytes} bytes (up to {MOST_BYTES} are "
                "looked at)"
            )
        self.put("array", value.dtype.str, value.shape, value.tobytes())

    def state(self, value: Any) -> None:
        if hasattr(value, "__dict__"):
            self.visit(vars(value))
        for kind in type(value).__mro__:
            slots = vars(kind).get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if name not in ("__dict__", "__weakref__"):
                    private = (
                        f"_{kind.__name__.lstrip('_')}{name}"
                        if name.startswith("__") and not name.endswith("__")
                        else name
                    )
                    self.put("slot", name)
                    self.visit(getattr(value, private, None))

    def reduced(self, value: Any) -> None:
        """An object of a class written in C: digests what pickle would write."""
        kind = type(value)
        try:
            parts = (
                copyreg.dispatch_table[kind](value)
                if kind in copyreg.dispatch_table
                else value.__reduce_ex__(4)
            )
        except Exception:
            raise CannotDigest(f"an object of type {kind.__module__}.{kind.__qualname__}") from None
        if isinstance(parts, str):
            return self.put(parts)
        for part in parts:
            self.visit(list(part) if hasattr(part, "__next__") else part)


def _found_by_name(module: str | None, qualname: str) -> Any:
    found: Any = sys.modules.get(module or "")
    for name in qualname.split("."):
        found = getattr(found, name, None)
    return found


@functools.lru_cache(maxsize=1024)
def _has_hidden_state(kind: type) -> bool:
    """Whether objects are larger than __dict__, weak references and slots need: then a class
    written in C keeps something else in them.
    """
    while kind is not object:
        members = vars(kind)
        slots = members.get("__slots__", ())
        own = len((slots,) if isinstance(slots, str) else [*slots]) if "__slots__" in members else 0
        own += sum(name in members for name in ("__dict__", "__weakref__"))
        parent = kind.__base__ or object
        if kind.__basicsize__ - parent.__basicsize__ > own * ctypes.sizeof(ctypes.c_void_p):
            return True
        kind = parent
    return False


_VISITS: tuple[tuple[Any, Callable[[_Walk, Any], None]], ...] = (
    (types.FunctionType, _Walk.function),
    (types.MethodType, _Walk.bound),
    ((types.BuiltinFunctionType, types.MethodWrapperType), _Walk.builtin),
    (_DESCRIPTORS, _Walk.descriptor),
    (functools.partial, _Walk.partial),
    ((staticmethod, classmethod, type(functools.lru_cache(len))), _Walk.wrapped),
    (property, _Walk.property),
    (types.ModuleType, _Walk.module),
    (type, _Walk.klass),
    (enum.Enum, _Walk.member),
    (torch.Tensor, _Walk.tensor),
    ((tuple, list), _Walk.sequence),
    ((dict, types.MappingProxyType), _Walk.mapping),
    ((set, frozenset), _Walk.unordered),
    (logging.Logger, _Walk.logger),
)
