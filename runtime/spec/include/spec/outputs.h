// Shapes of an op's outputs for one call, from its output rules.
#pragma once

#include <cstdint>
#include <vector>

#include "spec/spec.h"

namespace opaq {

struct OutputShape {  // reused from call to call, so that calls allocate nothing
  std::vector<int64_t> sizes, strides;
  DType dtype = DType::Float32;
};

// The device of a call: that which the output rules name, or that of the first tensor, or the CPU.
// Index -1: the current CUDA device. Throws Launch for a device that opaq does not serve.
Device device_of_call(const OpSpec& op, const Arg* args);

// `args`: the inputs. Throws Launch for a negative size, naming op, output and expression.
void infer_output(const OpSpec& op, size_t output, const Arg* args, OutputShape& result);

// Row-major strides. Sizes of 0 count as 1, as in torch.
std::vector<int64_t> contiguous_strides(const std::vector<int64_t>& sizes);

}  // namespace opaq
