"""The order of a mixture's tokens by expert, for experts chosen elsewhere: declaration, reference.

moe_order(experts, count, first=0) -> (counts, order, position)

experts: [T, k], int64: the k experts of each token, from 0 to count - 1
counts: [count], int64: how many (token, choice) pairs each expert has
order: [T * k], int64: the pairs by expert, pair t * k + s being choice s of token t; those of one
    expert in the order of tokens
position: [T * k], int64: where each pair is in `order`

For routers that moe_route does not compute; counts, order and position are as it gives them. An
expert may occur more than once in a row. A number that is no expert is not counted, and its pairs
come after all others.

first: 0 or below. Experts are numbered from it on, up to `first + count - 1`, and a number below a
negative first one counts as that: with -1 all negative numbers come first, as in a sort. (Those of
several negative numbers, or of several above the last expert, are in the order of tokens.)
"""

import torch

import opaq

moe_order = opaq.op(
    "opaq_kernels::moe_order(Tensor experts, int count, int first=0) "
    "-> (Tensor counts, Tensor order, Tensor position)",
    outputs={
        "counts": opaq.tensor("max(0, count)", dtype="int64"),
        "order": opaq.tensor("experts.numel()", dtype="int64"),
        "position": opaq.tensor("experts.numel()", dtype="int64"),
    },
)

_BLOCKS = "ceil_div(experts.numel(), 256)"
_REQUIRES = [
    "experts.dtype == int64",
    "experts.dim() == 2",
    "experts.is_contiguous()",
    "count > 0",
    "first <= 0",
]

moe_order.cuda(
    source=opaq.file("order.cu"),
    scratch={"starts": opaq.tensor(f"count + 1, {_BLOCKS}", dtype="int32")},
    steps=[
        opaq.step(
            entry="moe_count",
            grid=_BLOCKS,
            block=256,
            args="starts, experts, experts.numel(), count, first",
        ),
        opaq.step(
            entry="moe_add_up",
            grid="ceil_div(count + 1, 2)",
            block=64,
            args=f"counts, starts, {_BLOCKS}, count",
        ),
        opaq.step(
            entry="moe_order",
            grid=_BLOCKS,
            block=256,
            args="order, position, experts, counts, starts, experts.numel(), count, first",
        ),
    ],
    requires=[
        *_REQUIRES,
        "count <= 513",
        "experts.numel() > 0 and experts.numel() < 2147483648",
    ],
)
moe_order.cpu(
    source=opaq.file("moe.cpp"),
    entry="moe_order",
    args="counts, order, position, experts, experts.numel(), count, first",
    requires=_REQUIRES,
)


@moe_order.reference
def moe_order_reference(
    experts: torch.Tensor, count: int, first: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if experts.dim() != 2 or experts.dtype != torch.int64:
        raise ValueError(
            f"moe_order: experts are {experts.dtype} of shape {tuple(experts.shape)}; expected "
            "torch.int64 of shape [tokens, k]: flatten the leading dimensions first"
        )
    if count < 1:
        raise ValueError(f"moe_order: count is {count}; expected at least one expert")
    if first > 0:
        raise ValueError(f"moe_order: first is {first}; expected 0 or a negative number")
    flat = experts.flatten()
    if first < 0:
        flat = flat.clamp(min=first) - first
    bucket = torch.where((flat >= 0) & (flat < count), flat, count)
    order = torch.sort(bucket, stable=True)[1]
    position = torch.empty_like(order).scatter(
        0, order, torch.arange(flat.numel(), device=flat.device)
    )
    counts = torch.zeros(count + 1, dtype=torch.int64, device=flat.device)
    counts = counts.scatter_add(0, bucket, torch.ones_like(bucket))[:count].clone()
    return counts, order, position
