"""A Python function that torch.compile cannot trace, made opaque: `opaq.custom_op` takes what
torch.library.custom_op takes, and the compiled graph calls the function directly.
"""

import bisect

import torch

import opaq


@opaq.custom_op("examples::bucket", mutates_args=())
def bucket(values: torch.Tensor, limits: list[float]) -> torch.Tensor:
    """The number of limits below each value, computed by Python's standard library."""
    found = [bisect.bisect_left(limits, value) for value in values.tolist()]
    return torch.tensor(found, device=values.device)


@bucket.register_fake
def _(values: torch.Tensor, limits: list[float]) -> torch.Tensor:
    return torch.empty_like(values, dtype=torch.int64)


limits = [-1.0, 0.0, 1.0]
compiled = torch.compile(lambda values: bucket(values, limits), fullgraph=True)

values = torch.randn(100)
expected = torch.bucketize(values, torch.tensor(limits))
torch.testing.assert_close(bucket(values, limits), expected)
torch.testing.assert_close(compiled(values), expected)
print("the buckets are those of torch.bucketize")
