"""A kernel that reads the bits of half-precision numbers as uint16_t: the argument says so."""

import torch

import opaq

# The sign, the exponent and the fraction of float16 numbers, by a kernel that knows no half type.
SOURCE = """
#include <cstdint>
QUALIFIERS void split(const uint16_t* x, uint8_t* exponent, uint16_t* fraction, int64_t n) {
  for (FIRST; i < n; STEP) {
    exponent[i] = x[i] >> 10 & 31;
    fraction[i] = x[i] & 1023;
  }
}
"""
CUDA = {
    "#include <cstdint>": "typedef unsigned char uint8_t; typedef unsigned short uint16_t; "
    "typedef long long int64_t;",
    "QUALIFIERS": "__global__",
    "FIRST": "int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x",
    "STEP": "i += gridDim.x * (int64_t)blockDim.x",
}
CPU = {"QUALIFIERS": "", "FIRST": "int64_t i = 0", "STEP": "++i"}


def source(words: dict[str, str]) -> str:
    text = SOURCE
    for word, meaning in words.items():
        text = text.replace(word, meaning)
    return text


split = opaq.op(
    "examples::split(Tensor x) -> (Tensor exponent, Tensor fraction)",
    outputs={
        "exponent": opaq.like("x", dtype="uint8"),
        "fraction": opaq.like("x", dtype="int16"),
    },
)
args = [
    opaq.cast("const uint16_t*", "x"),
    "exponent",
    opaq.cast("uint16_t*", "fraction"),
    "x.numel()",
]
split.cuda(
    source=source(CUDA),
    entry="split",
    grid="ceil_div(x.numel(), 256)",
    block=256,
    args=args,
    requires="x.dtype == float16",
)
split.cpu(source=source(CPU), entry="split", args=args, requires="x.dtype == float16")

device = "cuda" if torch.cuda.is_available() else "cpu"
x = torch.rand(1000, dtype=torch.float16, device=device) + 1
exponent, fraction = split(x)
torch.testing.assert_close((1 + fraction / 1024) * 2.0 ** (exponent.float() - 15), x.float())

compiled = torch.compile(split)
torch.testing.assert_close(compiled(x), (exponent, fraction))
