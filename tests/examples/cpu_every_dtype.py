"""One C++ source for every dtype, with OpenMP: {x.dtype} is a type that each C++ compiler has, such
as opaq::bfloat16, which needs no #include.
"""

import torch

import opaq

weighted_sum = opaq.op(
    "examples::weighted_sum(Tensor x, Tensor y, float weight) -> Tensor",
    outputs=opaq.like("x"),
)
weighted_sum.cpu(
    source="""
    template <typename T>
    void weighted_sum(const T* x, const T* y, float weight, T* out, long n) {
    #pragma omp parallel for
      for (long i = 0; i < n; ++i) out[i] = x[i] + T(weight) * y[i];
    }
    """,
    entry="weighted_sum<{x.dtype}>",
    args="x, y, weight, out, x.numel()",
    requires=["x.shape == y.shape", "x.dtype == y.dtype"],
    options=["-fopenmp"],  # and vector instructions: "-mavx2", "-march=native", ...
)

for dtype in (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.complex64,
):
    x, y = (torch.randint(0, 2, (1000,)).to(dtype) for _ in range(2))
    wide = torch.complex64 if dtype.is_complex else torch.float32
    expected = x.to(wide) + 2 * y.to(wide)  # small integers, exact in every dtype
    for run in (weighted_sum, torch.compile(weighted_sum)):
        torch.testing.assert_close(run(x, y, 2.0).to(wide), expected)
print(opaq.report())
