// What gated activations share on the CPU: y = a(gate) * up and its gradients, row-major.
#pragma once

#include <cmath>
#include <cstdint>
#include <utility>

// value(gate, up): of one element.
template <typename T, typename Value>
void gated(T* y, const T* gate, const T* up, int64_t numel, Value value) {
  for (int64_t i = 0; i < numel; ++i) y[i] = value(gate[i], up[i]);
}

// gradients(grad_y, gate, up): of one element, the pair of those of gate and of up.
template <typename T, typename Gradients>
void gated_backward(T* grad_gate, T* grad_up, const T* grad_y, const T* gate, const T* up,
                    int64_t numel, Gradients gradients) {
  for (int64_t i = 0; i < numel; ++i) {
    // all is read before it is written: results may lie over the inputs
    const std::pair<T, T> both = gradients(grad_y[i], gate[i], up[i]);
    grad_gate[i] = both.first;
    grad_up[i] = both.second;
  }
}
