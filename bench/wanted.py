"""What `opaq bench model` measures: the model that the user names, with its arguments."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import random
from collections.abc import Mapping
from typing import Any

import torch

from opaq import user_file
from opaq.user_file import WrongTarget

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What to measure, as the command line says it; every worker makes the model from it."""

    target: str | None
    hf: str | None
    config: str
    batch: int
    tokens: int
    train: bool
    dtype: str | None
    device: str
    seed: int

    @staticmethod
    def of(arguments: argparse.Namespace) -> Wanted:
        """Raises WrongTarget."""
        names = [field.name for field in dataclasses.fields(Wanted)]
        wanted = Wanted(**{name: getattr(arguments, name) for name in names})
        if (wanted.target is None) == (wanted.hf is None):
            raise WrongTarget(
                "opaq bench model: give either FILE_OR_MODULE:FUNCTION, a function "
                f"{user_file.MODEL}, or --hf CLASS"
            )
        if wanted.dtype is not None and wanted.dtype not in DTYPES:
            raise WrongTarget(f"--dtype: got {wanted.dtype!r}; expected one of {', '.join(DTYPES)}")
        if wanted.hf and arguments.dynamic:
            raise WrongTarget(
                "--dynamic: it is for a function, which makes arguments of each size; with --hf, "
                "give --batch and --tokens"
            )
        return wanted

    def load(self) -> Any:
        """The function that makes the model; None for one of transformers. Raises WrongTarget."""
        return None if self.target is None else _function(self.target)

    def seed_generators(self) -> None:
        random.seed(self.seed)
        torch.manual_seed(self.seed)
        with contextlib.suppress(ImportError):
            import numpy

            numpy.random.seed(self.seed % 2**32)

    def make(self, size: Mapping[str, int]) -> Made:
        """The model, on its device, and arguments; equal in each process."""
        self.seed_generators()
        if self.hf is not None:
            model, args, kwargs = _of_transformers(self.hf, values_of(self.config), self)
        else:
            model, args, kwargs = user_file.model_of(str(self.target), self.load()(**size))
        dtype = DTYPES[self.dtype] if self.dtype else None
        if isinstance(model, torch.nn.Module):
            model = model.to(self.device).train(self.train)
            model = model.to(dtype) if dtype else model
        args, kwargs = _moved((list(args), dict(kwargs)), self.device, dtype)
        return Made(model, args, kwargs)


@dataclasses.dataclass
class Made:
    """model: a module, or a function."""

    model: Any
    args: list[Any]
    kwargs: dict[str, Any]

    def dropout(self) -> str:
        """The class and probability of a dropout that is active; "" if there is none."""
        modules = self.model.modules() if isinstance(self.model, torch.nn.Module) else []
        for module in modules:
            if "Dropout" in type(module).__name__ and getattr(module, "p", 0) and module.training:
                return f"{type(module).__name__} with p={module.p}"
        return ""

    def put_back(self, fresh: Any) -> None:
        """Gives a module that was called the state of one that was not: the values of parameters
        and buffers, and numbers among its attributes."""
        if not isinstance(self.model, torch.nn.Module):
            return
        for old, new in zip(self.model.modules(), fresh.modules()):
            vars(old).update({k: v for k, v in vars(new).items() if isinstance(v, (int, float))})
            for was, now in zip(_tensors_of(old), _tensors_of(new)):
                if not torch.nn.parameter.is_lazy(now) and was.shape == now.shape:
                    was.data.copy_(now.data)

    def in_dtype(self, dtype: torch.dtype) -> Made:
        """The module itself is converted."""
        model = self.model.to(dtype) if isinstance(self.model, torch.nn.Module) else self.model
        return Made(model, *_moved((self.args, self.kwargs), None, dtype))


def sizes_of(text: str | None) -> list[dict[str, int]]:
    """ "B=1,8,64": a dict for each; without, one that is empty."""
    if not text:
        return [{}]
    name, equals, values = text.partition("=")
    if not equals or not name.strip().isidentifier():
        raise WrongTarget(f"--dynamic: got {text!r}; expected a name and sizes, as in B=1,8,64")
    try:
        sizes = [int(value) for value in values.split(",")]
    except ValueError:
        raise WrongTarget(
            f"--dynamic: got {text!r}; the sizes must be whole numbers, as in B=1,8,64"
        ) from None
    return [{name.strip(): size} for size in dict.fromkeys(sizes)]


def values_of(text: str, separator: str = ",") -> dict[str, Any]:
    """ "hidden_size=512,act=gelu": numbers and true or false as such, all else as str."""
    found = {}
    for item in filter(None, (part.strip() for part in text.split(separator))):
        name, equals, value = item.partition("=")
        if not equals:
            raise WrongTarget(f"got {item!r}; expected NAME=VALUE, as in {name}=1")
        try:
            found[name.strip()] = json.loads(value)
        except ValueError:
            found[name.strip()] = value.strip()
    return found


@functools.cache
def _function(target: str) -> Any:
    return user_file.function_in(target, user_file.MODEL)


def _of_transformers(name: str, config: Mapping[str, Any], wanted: Wanted) -> tuple[Any, Any, Any]:
    try:
        import transformers
    except ImportError as error:
        raise WrongTarget(
            'opaq bench model --hf needs transformers: pip install "opaq[demo]"'
        ) from error
    cls = getattr(transformers, name, None)
    if cls is None or getattr(cls, "config_class", None) is None:
        raise WrongTarget(
            f"--hf: transformers {transformers.__version__} has no model class {name!r}; give one "
            "such as LlamaForCausalLM, BertModel, ViTModel"
        )
    made = cls.config_class(**config)
    model = cls(made)
    shape = (wanted.batch, wanted.tokens)
    if cls.main_input_name == "input_ids":
        ids = torch.randint(made.get_text_config().vocab_size, shape)
        kwargs = {"input_ids": ids}
        if hasattr(made, "use_cache"):
            kwargs["use_cache"] = False
        if wanted.train and "labels" in _parameters(model):
            kwargs["labels"] = ids.clone()
    elif cls.main_input_name == "pixel_values":
        side = made.image_size
        kwargs = {"pixel_values": torch.randn(wanted.batch, made.num_channels, side, side)}
    else:
        raise WrongTarget(
            f"--hf: {name} takes {cls.main_input_name}, for which no arguments are made here; "
            f"write a function {user_file.MODEL}"
        )
    return model, [], kwargs


def _parameters(model: torch.nn.Module) -> Any:
    import inspect

    return inspect.signature(model.forward).parameters


def _tensors_of(module: torch.nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _moved(value: Any, device: str | None, dtype: torch.dtype | None) -> Any:
    """Tensors inside on the device, and floats in the dtype."""
    if isinstance(value, torch.Tensor):
        moved = value.detach().to(device, dtype if value.is_floating_point() else None)
        return moved.requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return {key: _moved(each, device, dtype) for key, each in value.items()}
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(_moved(each, device, dtype) for each in value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_moved(each, device, dtype) for each in value))
    return value
