// Zeroed scratch memory of opaque ops on CUDA.
#include <cuda.h>

#include "standalone/kept_zeros.h"

inline void opaq_zero(const char* op, void* memory, int64_t bytes, int device, CUstream stream) {
  using namespace opaq::standalone;
  if (bytes == 0) return;
  const ContextScope context(kLinkedDriver, device);
  zero_scratch(kLinkedDriver, op, memory, bytes, stream);
}
