"""Penalties for tokens that were there before: repetition, presence and frequency.

penalize(logits, counts, prompt=None, repetition=1.0, presence=0.0, frequency=0.0) -> y

logits: [rows, classes], floating
counts: [rows, classes], int32: how often each token was generated so far
prompt: [rows, classes], bool: whether it is in the prompt; None: in none
y: as logits, row-major, rounded once from float32 (float64). Logits of other tokens are left as
    they are; `y` may be the memory of logits

repetition: above 0; a logit of a token that is in the prompt or was generated is divided by it if
    it is positive, and else multiplied by it (Keskar et al. 2019, arXiv:1909.05858, as
    RepetitionPenaltyLogitsProcessor of transformers has it)
presence, frequency: then `presence + frequency * counts` is subtracted from the logit of a token
    that was generated, as vLLM and OpenAI's API define them
row_repetition, row_presence, row_frequency: [rows], float32: the same for each row, in place of the
    numbers; they are not checked

For loops that decode with CUDA graphs: all shapes are static, and
counts.scatter_add_(1, tokens.unsqueeze(1), ones) counts what `sample` has drawn; `ones` is
[rows, 1], int32, with 0 for rows that have ended.
"""

import math

import torch

import opaq

penalize = opaq.op(
    "opaq_kernels::penalize(Tensor logits, Tensor counts, Tensor? prompt=None, "
    "float repetition=1.0, float presence=0.0, float frequency=0.0, "
    "Tensor? row_repetition=None, Tensor? row_presence=None, Tensor? row_frequency=None) "
    "-> (Tensor y)",
    outputs=opaq.like("logits", may_overwrite=True),
)

ROWS = ["row_repetition", "row_presence", "row_frequency"]
# what all penalties ask for
REQUIRES = [
    "logits.dim() == 2",
    "logits.stride(1) == 1 or logits.size(1) == 1",
    "repetition > 0",
    *(
        f"not defined({name}) or {name}.dtype == float32 and {name}.dim() == 1 "
        f"and {name}.numel() == logits.size(0) and {name}.stride(0) == 1"
        for name in ROWS
    ),
]
REQUIRES_CUDA = [
    "logits.dtype == float32 or logits.dtype == float16 or logits.dtype == bfloat16",
    "logits.size(1) <= 1073741824",
]
REQUIRES_CPU = ["logits.dtype == float32 or logits.dtype == float64"]
VEC = "16 / logits.itemsize"
PACKS = [
    f"logits.size(1) % ({VEC}) == 0 and logits.stride(0) % ({VEC}) == 0",
    "aligned(logits, 16)",
]


def _whole(name: str) -> str:
    return (
        f"{name}.shape == logits.shape and ({name}.stride(1) == 1 or logits.size(1) == 1) "
        f"and ({name}.stride(0) == logits.size(1) or logits.size(0) == 1)"
    )


_REQUIRES = [
    *REQUIRES,
    "counts.dtype == int32 and counts.dim() == 2",
    _whole("counts"),
    f"not defined(prompt) or prompt.dtype == bool and prompt.dim() == 2 and {_whole('prompt')}",
]
_ARGS = (
    "y, logits, counts, prompt, logits.size(0), logits.size(1), logits.stride(0), "
    f"repetition, presence, frequency, {', '.join(ROWS)}"
)


for _name, _vec, _extra, _priority in [
    (
        "cuda:packs",
        VEC,
        [*PACKS, "aligned(counts, 32)", "not defined(prompt) or aligned(prompt, 8)"],
        1,
    ),
    ("cuda:elements", "1", [], 0),
]:
    penalize.cuda(
        name=_name,
        source=opaq.file("penalize.cu"),
        entry=f"penalize<{{logits.dtype}}, {{{_vec}}}>",
        grid=[f"ceil_div(logits.size(1), 256 * ({_vec}))", "min(logits.size(0), 65535)"],
        block=256,
        args=_ARGS,
        requires=[*REQUIRES_CUDA, *_REQUIRES, *_extra],
        priority=_priority,
    )
penalize.cpu(
    source=opaq.file("penalize.cpp"),
    entry="penalize<{logits.dtype}>",
    args=_ARGS,
    requires=[*REQUIRES_CPU, *_REQUIRES],
)


@penalize.reference
def penalize_reference(
    logits: torch.Tensor,
    counts: torch.Tensor,
    prompt: torch.Tensor | None = None,
    repetition: float = 1.0,
    presence: float = 0.0,
    frequency: float = 0.0,
    row_repetition: torch.Tensor | None = None,
    row_presence: torch.Tensor | None = None,
    row_frequency: torch.Tensor | None = None,
) -> torch.Tensor:
    if logits.dim() != 2 or not logits.is_floating_point():
        raise ValueError(
            f"penalize: logits are {logits.dtype} of shape {tuple(logits.shape)}; expected "
            "[rows, classes] of a floating-point dtype: take the last position first"
        )
    for name, tensor, dtype in (("counts", counts, torch.int32), ("prompt", prompt, torch.bool)):
        if tensor is not None and (tensor.shape != logits.shape or tensor.dtype != dtype):
            raise ValueError(
                f"penalize: {name} is {tensor.dtype} of shape {tuple(tensor.shape)}; expected "
                f"{dtype} of logits' shape {tuple(logits.shape)}"
            )
    if not 0 < repetition < math.inf:
        raise ValueError(f"penalize: repetition is {repetition}; expected a number above 0")
    wide = logits if logits.dtype == torch.float64 else logits.float()
    columns = []
    for name, values, number in (
        ("row_repetition", row_repetition, repetition),
        ("row_presence", row_presence, presence),
        ("row_frequency", row_frequency, frequency),
    ):
        if values is None:
            values = wide.new_full((logits.size(0),), number)
        if values.shape != logits.shape[:1]:
            raise ValueError(
                f"penalize: {name} has shape {tuple(values.shape)}; expected "
                f"{tuple(logits.shape[:1])}, a value for each row of logits {tuple(logits.shape)}"
            )
        columns.append(values.to(wide.dtype).unsqueeze(1))
    factor, once, each = columns
    generated = counts > 0
    seen = generated if prompt is None else generated | prompt
    repeated = torch.where(wide > 0, wide / factor, wide * factor)
    found = torch.where(seen, repeated, wide)
    found = torch.where(generated, found - (each * counts + once), found)
    return found.to(logits.dtype)
