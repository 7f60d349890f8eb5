"""Inductor's C++ wrapper: the generated code that launches the kernels is C++, and launches ours
directly too. `opaq.report()` shows what ran.
"""

import torch

import opaq

negate = opaq.op("examples::negate(Tensor x) -> Tensor", outputs=opaq.like("x"))
negate.cuda(
    source="""
    __global__ void negate(const float* x, float* out, long n) {
      const long i = blockIdx.x * (long)blockDim.x + threadIdx.x;
      if (i < n) out[i] = -x[i];
    }
    """,
    entry="negate",
    grid="ceil_div(x.numel(), 256)",
    block=256,
    args="x, out, x.numel()",
)
negate.cpu(
    source="void negate(const float* x, float* out, long n) { while (n-- > 0) *out++ = -*x++; }",
    entry="negate",
    args="x, out, x.numel()",
)

compiled = torch.compile(
    lambda x: negate(x), backend="opaq", options={"cpp_wrapper": True, "strict": True}
)

device = "cuda" if torch.cuda.is_available() else "cpu"
x = torch.randn(1000, device=device)
torch.testing.assert_close(compiled(x), -x)
print(opaq.report())
