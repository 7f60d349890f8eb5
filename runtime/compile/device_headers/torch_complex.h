// PyTorch's complex numbers, which take longer to compile than all of its other number types.
#pragma once

#include <torch/headeronly/util/complex.h>

#include <cuda/std/complex>

#include "torch_types.h"

namespace opaq {

template <class T>
struct TorchType<cuda::std::complex<T>> {
  using type = c10::complex<typename TorchType<T>::type>;
};

}  // namespace opaq
