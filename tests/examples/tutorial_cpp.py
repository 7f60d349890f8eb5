"""The op of PyTorch's tutorial "Custom C++ and CUDA Operators": a * b + c on the CPU and on CUDA,
with its gradient. There is no setup.py, no TORCH_LIBRARY and no fake kernel.
"""

import torch

import opaq

CPP = """
void muladd(const float* a, const float* b, double c, float* out, long n) {
  for (long i = 0; i < n; ++i) out[i] = a[i] * b[i] + (float)c;
}
void mymul(const float* a, const float* b, float* out, long n) { muladd(a, b, 0, out, n); }
"""
CUDA = """
__global__ void muladd(const float* a, const float* b, float c, float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = a[i] * b[i] + c;
}
"""
SAME = ["a.shape == b.shape", "a.dtype == float32", "b.dtype == float32"]
launch = {"grid": "ceil_div(a.numel(), 256)", "block": 256, "requires": SAME}

mymul = opaq.op("examples::mymul(Tensor a, Tensor b) -> Tensor", outputs=opaq.like("a"))
mymul.cpu(source=CPP, entry="mymul", args="a, b, out, a.numel()", requires=SAME)
mymul.cuda(source=CUDA, entry="muladd", args="a, b, 0, out, a.numel()", **launch)

muladd = opaq.op(
    "examples::mymuladd(Tensor a, Tensor b, float c) -> Tensor", outputs=opaq.like("a")
)
muladd.cpu(source=CPP, entry="muladd", args="a, b, c, out, a.numel()", requires=SAME)
muladd.cuda(source=CUDA, entry="muladd", args="a, b, c, out, a.numel()", **launch)
muladd.backward(
    lambda ctx, grad: (mymul(grad, ctx.saved_tensors[1]), mymul(grad, ctx.saved_tensors[0]), None),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs[:2]),
)

device = "cuda" if torch.cuda.is_available() else "cpu"
a, b = (torch.randn(1000, device=device, requires_grad=True) for _ in range(2))
for function in (muladd, torch.compile(muladd, fullgraph=True)):
    result = function(a, b, 1.5)
    torch.testing.assert_close(result, a * b + 1.5)
    grads = torch.autograd.grad(result.sum(), (a, b))
    torch.testing.assert_close(grads, (b.detach(), a.detach()))
torch.library.opcheck(muladd, (a, b, 1.5))
print("a * b + c and its gradient are PyTorch's, in eager mode and compiled")
