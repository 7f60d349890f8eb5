// What comes before and after the rows of a mean loss, on the CPU: as mean.cu; the sum in double.
#include <cstdint>

template <typename T>
void count_rows(T* scale, T* counted, const int64_t* targets, int64_t rows, int64_t target_stride,
                int64_t ignore_index) {
  int64_t count = 0;
  for (int64_t row = 0; row < rows; ++row) count += targets[row * target_stride] != ignore_index;
  *scale = T(1) / T(count);
  *counted = T(count);
}

template <typename T>
void mean_of_losses(T* mean, const T* losses, T* counted, int64_t rows) {
  double sum = 0;
  for (int64_t row = 0; row < rows; ++row) sum += losses[row];
  *mean = T(sum / *counted);
}
