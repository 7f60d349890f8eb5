"""What ops with a float8 result share: the shapes of results, conditions, the meaning of scales."""

import torch

import opaq

from . import rows

BLOCK = 128
_LARGEST = 448.0  # of float8_e4m3fn
_LEAST = 2.0**-126  # whose inverse is finite
RULES = 4  # ways to make a scale
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
        "rule >= 0 and rule <= 3",
        "least >= 0 and (rule > 0 or least <= 0)",
    ]


def check(op: str, name: str, shape: torch.Size, block: int, rule: int, least: float) -> None:
    if rule not in range(RULES):
        raise ValueError(
            f"{op}: rule is {rule}; expected 0 (v * (1 / scale)), 1 or 2 (v / scale) or "
            "3 (v * (448 / largest))"
        )
    if not least >= 0 or (least and rule == 0):
        raise ValueError(
            f"{op}: least is {least} with rule {rule}; expected a number that is not negative, and "
            "0 for rule 0, which has a smallest scale of its own"
        )
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


def quantize(
    v: torch.Tensor, block: int, rule: int = 0, least: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 values [..., n] as float8, and their scales [rows, parts]; rule: as
    rms_norm_float8 describes."""
    parts = v.size(-1) // block if block else 1
    flat = v.reshape(v.numel() // v.size(-1), parts, v.size(-1) // parts)
    largest = flat.abs().amax(-1)
    if rule >= 2:
        largest = largest.clamp(min=least)
    scale = largest / _LARGEST
    if rule == 0:
        scale = torch.where(scale < _LEAST, torch.where(largest == 0, 1.0, _LEAST), scale)
        y = flat * scale.reciprocal().unsqueeze(-1)
    elif rule < 3:
        scale = scale.clamp(min=least) if rule == 1 else scale
        y = flat / scale.unsqueeze(-1)
    else:
        y = flat * (largest.reciprocal() * _LARGEST).unsqueeze(-1)
    y = y.clamp(-_LARGEST, _LARGEST)
    if block:  # column by column
        scale = scale.t().contiguous().as_strided(scale.shape, (1, max(1, scale.size(0))))
    return y.to(_NARROW).reshape(v.shape), scale
