"""What ops with a float8 result share: the shapes of results, conditions, the meaning of scales."""

import torch

import opaq

from . import rows

BLOCK = 128
_LARGEST = 448.0  # of float8_e4m3fn
_LEAST = 2.0**-126  # whose inverse is finite
_NARROW = torch.float8_e4m3fn


def outputs(name: str) -> dict[str, opaq.Output]:
    """Of the result for the tensor `name`, and of its scales."""
    parts = f"({name}.size(-1) // block if block > 0 else 1)"
    return {
        "y": opaq.tensor(f"{name}.shape", dtype="float8_e4m3fn"),
        "scale": opaq.tensor(
            [rows.count(name), parts],
            dtype="float32",
            strides=["1", f"max(1, {rows.count(name)}) if block > 0 else 1"],
        ),
    }


def fits(name: str) -> list[str]:
    return [
        f"{name}.size(-1) > 0",
        f"block == 0 or block == {BLOCK} and {name}.size(-1) % {BLOCK} == 0",
    ]


def check(op: str, name: str, shape: torch.Size, block: int) -> None:
    if block not in (0, BLOCK):
        raise ValueError(
            f"{op}: block is {block}; expected 0, for one scale for each row, or {BLOCK}, for one "
            f"for each {BLOCK} values of a row"
        )
    if not shape or shape[-1] == 0 or (block and shape[-1] % block):
        multiple = f"a multiple of {BLOCK}, for block={BLOCK}" if block else "one value or more"
        raise ValueError(
            f"{op}: {name} has shape {tuple(shape)}; expected rows of {multiple} in the last "
            "dimension"
        )


def quantize(v: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 values [..., n] as float8, and their scales [rows, parts]."""
    parts = v.size(-1) // block if block else 1
    flat = v.reshape(v.numel() // v.size(-1), parts, v.size(-1) // parts)
    largest = flat.abs().amax(-1)
    scale = largest / _LARGEST
    scale = torch.where(scale < _LEAST, torch.where(largest == 0, 1.0, _LEAST), scale)
    y = (flat * scale.reciprocal().unsqueeze(-1)).clamp(-_LARGEST, _LARGEST)
    if block:  # column by column
        scale = scale.t().contiguous().as_strided(scale.shape, (1, max(1, scale.size(0))))
    return y.to(_NARROW).reshape(v.shape), scale
