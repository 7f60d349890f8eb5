"""A kernel with random numbers of its own: `opaq.philox()` gives it a seed and an offset that
PyTorch's generator draws for each launch, so torch.manual_seed, compiled graphs and CUDA graphs
govern it as they do PyTorch's own kernels. The kernel keeps both for the backward pass.
"""

import torch

import opaq

dropout = opaq.op(
    "examples::dropout(Tensor x, float p) -> (Tensor y, Tensor drawn)",
    outputs={"y": opaq.like("x"), "drawn": opaq.tensor(2, dtype="int64")},
    effects="random",
)
dropout_backward = opaq.op(
    "examples::dropout_backward(Tensor grad_y, Tensor drawn, float p) -> (Tensor grad_x)",
    outputs=opaq.like("grad_y"),
)
# A counter-based generator: the number of element i depends on seed, offset and i alone. Kernels on
# CUDA can use curand_init(rng[0], i, rng[1], &state) of <curand_kernel.h> as well.
SOURCE = """
QUALIFIERS float random_of(const unsigned long* rng, unsigned long i) {
  unsigned long z = (rng[0] ^ rng[1] << 1) + (i + 1) * 0x9E3779B97F4A7C15ul;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ul;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBul;
  return ((z ^ (z >> 31)) >> 40) * (1.0f / (1 << 24));
}
QUALIFIERS void drop(const float* x, const unsigned long* rng, float p, float* y, long i) {
  y[i] = random_of(rng, i) < p ? 0 : x[i] / (1 - p);
}
"""
CUDA = (
    SOURCE.replace("QUALIFIERS", "__device__")
    + """
__global__ void forward(const float* x, const unsigned long* rng, float p, float* y, long* drawn,
                        long n) {
  const long i = blockIdx.x * 256L + threadIdx.x;
  if (i < 2) drawn[i] = rng[i];
  if (i < n) drop(x, rng, p, y, i);
}
__global__ void backward(const float* x, const unsigned long* rng, float p, float* y, long n) {
  const long i = blockIdx.x * 256L + threadIdx.x;
  if (i < n) drop(x, rng, p, y, i);
}
"""
)
CPU = (
    SOURCE.replace("QUALIFIERS", "static")
    + """
void forward(const float* x, const unsigned long* rng, float p, float* y, long* drawn, long n) {
  for (long i = 0; i < 2; ++i) drawn[i] = rng[i];
  for (long i = 0; i < n; ++i) drop(x, rng, p, y, i);
}
void backward(const float* x, const unsigned long* rng, float p, float* y, long n) {
  for (long i = 0; i < n; ++i) drop(x, rng, p, y, i);
}
"""
)
FORWARD = {
    "entry": "forward",
    "scratch": {"rng": opaq.philox()},
    "args": "x, rng, p, y, drawn, x.numel()",
}
BACKWARD = {
    "entry": "backward",
    "args": 'grad_y, cast("const unsigned long*", drawn), p, grad_x, grad_y.numel()',
}
dropout.cuda(source=CUDA, grid="max(1, ceil_div(x.numel(), 256))", block=256, **FORWARD)
dropout.cpu(source=CPU, **FORWARD)
dropout_backward.cuda(source=CUDA, grid="ceil_div(grad_y.numel(), 256)", block=256, **BACKWARD)
dropout_backward.cpu(source=CPU, **BACKWARD)


def keep(ctx, inputs, output):
    ctx.p, (_, drawn) = inputs[1], output
    ctx.mark_non_differentiable(drawn)
    ctx.save_for_backward(drawn)


dropout.backward(
    lambda ctx, grad_y, _: (dropout_backward(grad_y, *ctx.saved_tensors, ctx.p), None),
    setup_context=keep,
)

device = "cuda" if torch.cuda.is_available() else "cpu"
x = torch.ones(10_000, device=device, requires_grad=True)
for function in (dropout, torch.compile(dropout)):
    torch.manual_seed(0)
    first, second = function(x, 0.25)[0], function(x, 0.25)[0]
    assert abs((first == 0).float().mean() - 0.25) < 0.02
    assert not torch.equal(first, second)  # each launch draws anew
    torch.testing.assert_close(torch.autograd.grad(first.sum(), x)[0], first)  # the same were kept
    torch.manual_seed(0)
    torch.testing.assert_close(function(x, 0.25)[0], first)  # and the seed decides
