"""Penalties for tokens that were there before, given as their numbers: `penalize` for those that
are not counted yet.

penalize_tokens(logits, tokens=None, prompt=None, repetition=1.0, presence=0.0, frequency=0.0) -> y

logits: [rows, classes], floating
tokens: [rows, n], int64: what was generated so far, in any order; a token that occurs twice counts
    twice; None: nothing
prompt: [rows, m], int64: the tokens of the prompt, which have the repetition penalty alone
y: as logits, row-major, rounded once from float32 (float64); with wide=True float32 for logits of
    16 bits. Logits of other tokens are left as they are

others: whether 0 times presence and frequency is subtracted from the logits of other tokens, which
    gives nan where they are infinite or nan, as where penalties are multiplied with counts

repetition, presence, frequency, row_repetition, row_presence, row_frequency: as for `penalize`, for
which counts of tokens are kept from step to step; here they are counted anew, in shared memory.

paddings: numbers from `classes` to `classes + paddings - 1` are passed over. Any other number that
is no class is an error, as it is for torch.gather and torch.scatter: RuntimeError on the CPU, and
on a GPU a failed assertion, which the next synchronization reports.
"""

import torch

import opaq

from .penalize import PACKS, REQUIRES, REQUIRES_CPU, REQUIRES_CUDA, ROWS, VEC, penalize_reference

penalize_tokens = opaq.op(
    "opaq_kernels::penalize_tokens(Tensor logits, Tensor? tokens=None, Tensor? prompt=None, "
    "float repetition=1.0, float presence=0.0, float frequency=0.0, "
    "Tensor? row_repetition=None, Tensor? row_presence=None, Tensor? row_frequency=None, "
    "int paddings=0, bool wide=False, bool others=False) -> (Tensor y)",
    outputs=opaq.tensor(
        "logits.shape",
        dtype="float32 if wide and logits.dtype != float64 else logits.dtype",
    ),
)

_REQUIRES = [
    *REQUIRES,
    *(
        f"not defined({name}) or {name}.dtype == int64 and {name}.dim() == 2 "
        f"and {name}.size(0) == logits.size(0)"
        for name in ("tokens", "prompt")
    ),
    "paddings >= 0",
]


def _given(name: str) -> str:
    """Its numbers, how many a row has, and the strides."""
    sizes = (f"{name}.size(1)", f"{name}.stride(0)", f"{name}.stride(1)")
    return ", ".join([name, *(f"({each} if defined({name}) else 0)" for each in sizes)])


_ARGS = (
    f"y, logits, {_given('tokens')}, {_given('prompt')}, logits.size(0), logits.size(1), "
    f"logits.stride(0), paddings, repetition, presence, frequency, {', '.join(ROWS)}, others"
)


# Each block looks at all tokens of its row. Few rows need many blocks, many rows do not.
for _name, _columns, _vec, _extra, _priority in [
    ("cuda:few", 1024, VEC, [*PACKS, "logits.size(0) <= 8"], 2),
    ("cuda:packs", 8192, VEC, PACKS, 1),
    ("cuda:elements", 2048, "1", [], 0),
]:
    penalize_tokens.cuda(
        name=_name,
        source=opaq.file("penalize_tokens.cu"),
        entry=f"penalize_tokens<{{logits.dtype}}, {{y.dtype}}, {_columns}, {{{_vec}}}>",
        grid=[f"ceil_div(logits.size(1), {_columns})", "min(logits.size(0), 65535)"],
        block=256,
        args=_ARGS,
        requires=[*REQUIRES_CUDA, *_REQUIRES, *_extra],
        priority=_priority,
    )
penalize_tokens.cpu(
    source=opaq.file("penalize_tokens.cpp"),
    entry="penalize_tokens<{logits.dtype}>",
    args=_ARGS,
    requires=[*REQUIRES_CPU, *_REQUIRES],
)


@penalize_tokens.reference
def penalize_tokens_reference(
    logits: torch.Tensor,
    tokens: torch.Tensor | None = None,
    prompt: torch.Tensor | None = None,
    repetition: float = 1.0,
    presence: float = 0.0,
    frequency: float = 0.0,
    row_repetition: torch.Tensor | None = None,
    row_presence: torch.Tensor | None = None,
    row_frequency: torch.Tensor | None = None,
    paddings: int = 0,
    wide: bool = False,
    others: bool = False,
) -> torch.Tensor:
    if logits.dim() != 2 or not logits.is_floating_point():
        raise ValueError(
            f"penalize_tokens: logits are {logits.dtype} of shape {tuple(logits.shape)}; expected "
            "[rows, classes] of a floating-point dtype: take the last position first"
        )
    if paddings < 0:
        raise ValueError(f"penalize_tokens: paddings is {paddings}; expected 0 or more")
    counts = []
    for name, given in (("tokens", tokens), ("prompt", prompt)):
        if given is None:
            given = logits.new_zeros((logits.size(0), 0), dtype=torch.int64)
        if given.dim() != 2 or given.size(0) != logits.size(0) or given.dtype != torch.int64:
            raise ValueError(
                f"penalize_tokens: {name} is {given.dtype} of shape {tuple(given.shape)}; expected "
                f"torch.int64 of [rows, n] for logits {tuple(logits.shape)}"
            )
        counts.append(_counted(given, logits.size(1), paddings))
    if wide and logits.dtype != torch.float64:
        logits = logits.float()
    rows = (row_repetition, row_presence, row_frequency)
    numbers = (repetition, presence, frequency)
    y = penalize_reference(logits, counts[0], counts[1] > 0, *numbers, *rows)
    if not others:
        return y
    once, each = (
        number if of_rows is None else of_rows.unsqueeze(1)
        for number, of_rows in ((presence, row_presence), (frequency, row_frequency))
    )
    return torch.where(counts[0] > 0, y, (y - (each * 0 + once * 0)).to(y.dtype))


def _counted(tokens: torch.Tensor, classes: int, paddings: int) -> torch.Tensor:
    """[rows, classes], int32: how often each class occurs."""
    passed = (tokens >= classes) & (tokens - classes < paddings)
    columns = torch.where(passed, classes, tokens)
    if paddings == 0:
        columns = torch.where(tokens == classes, classes + 1, columns)  # an error of scatter_add
    counts = torch.zeros(len(tokens), classes + 1, dtype=torch.int32, device=tokens.device)
    return counts.scatter_add(1, columns, torch.ones_like(columns, dtype=torch.int32))[:, :classes]
