// The kernel of cpp_library::scale.
template <typename T>
__global__ void scale(const T* x, float factor, T* out, long n) {
  const long i = blockIdx.x * static_cast<long>(blockDim.x) + threadIdx.x;
  if (i < n) out[i] = x[i] * T(factor);
}
