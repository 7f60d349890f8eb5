// Draws a class of each row of probabilities by exponential random numbers, on the CPU.
#include "drawn.h"

template <typename T>
void multinomial(int64_t* classes, const T* probabilities, const T* numbers, int64_t rows,
                 int64_t n, bool check) {
  for (int64_t row = 0; row < rows; ++row) {
    const T* const of_row = probabilities + row * n;
    classes[row] = drawn_by(numbers + row * n, n, check, [&](int64_t c) { return of_row[c]; });
  }
}
