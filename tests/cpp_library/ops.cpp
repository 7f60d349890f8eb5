// Ops of the namespace cpp_library: functions of this library, C++ source, CUDA source.
#include <opaq/op.h>

void scale_floats(const float* x, float factor, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] * factor;
}

void dot_rows(const float* x, const float* y, float* out, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r) {
    out[r] = 0;
    for (int64_t c = 0; c < columns; ++c) out[r] += x[r * columns + c] * y[r * columns + c];
  }
}

OPAQ_OPS(cpp_library) {
  op("scale(Tensor x, float factor=2.0) -> Tensor")
      .outputs(opaq::like("x"))
      .cuda({.source = opaq::file("scale.cu"),
             .entry = "scale<{x.dtype}>",
             .grid = "ceil_div(x.numel(), 256)",
             .block = 256,
             .args = "x, factor, out, x.numel()"})
      .cpu(&scale_floats, {.args = "x, factor, out, x.numel()", .requires_ = "x.dtype == float32"})
      .backward("cpp_library::scale_backward")
      .reference("cpp_library::scale_any");

  op("scale_any(Tensor x, float factor=2.0) -> Tensor")
      .outputs(opaq::like("x"))
      .cpu({.source = R"(
        template <typename T> void scale(const T* x, double factor, T* out, long n) {
          for (long i = 0; i < n; ++i) out[i] = x[i] * static_cast<T>(factor);
        })",
            .entry = "scale<{x.dtype}>",
            .args = "x, factor, out, x.numel()"});

  op("scale_backward(Tensor grad_out, float factor) -> (Tensor grad_x)")
      .outputs(opaq::like("grad_out"))
      .cpu(&scale_floats, {.args = "grad_out, factor, grad_x, grad_out.numel()",
                           .requires_ = "grad_out.dtype == float32"})
      .cuda({.source = opaq::file("scale.cu"),
             .entry = "scale<{grad_out.dtype}>",
             .grid = "ceil_div(grad_out.numel(), 256)",
             .block = 256,
             .args = "grad_out, factor, grad_x, grad_out.numel()"});

  op("exponential(Tensor x) -> Tensor")
      .effects("random")
      .outputs(opaq::like("x"))
      .cpu({.source = R"(
        template <typename T> void copy(const T* numbers, T* out, long n) {
          for (long i = 0; i < n; ++i) out[i] = numbers[i];
        })",
            .entry = "copy<{x.dtype}>",
            .args = "numbers, out, x.numel()",
            .scratch = {{"numbers", opaq::exponential("x.shape", "x.dtype")}}});

  op("dot_rows(Tensor x, Tensor y) -> Tensor")
      .outputs(opaq::tensor("x.size(0)", {.dtype = "x.dtype"}))
      .cpu(&dot_rows, {.args = "x, y, out, x.size(0), x.size(1)",
                       .requires_ = {"x.dtype == float32", "y.dtype == x.dtype", "x.dim() == 2",
                                     "y.shape == x.shape"}})
      .cuda({.source = R"(
        __global__ void dot_rows(const float* x, const float* y, float* out, long columns) {
          float sum = 0;
          for (long c = threadIdx.x; c < columns; c += 32)
            sum += x[blockIdx.x * columns + c] * y[blockIdx.x * columns + c];
          for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
          if (threadIdx.x == 0) out[blockIdx.x] = sum;
        })",
             .entry = "dot_rows",
             .grid = "x.size(0)",
             .block = 32,
             .args = "x, y, out, x.size(1)",
             .requires_ = {"x.dtype == float32", "y.dtype == x.dtype", "x.dim() == 2",
                           "y.shape == x.shape"}});
}
