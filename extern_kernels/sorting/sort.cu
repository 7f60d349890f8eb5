// Rows of x[rows, n] in ascending or descending order, stable: a block sorts a row by the radix
// sort of CUB (https://nvidia.github.io/cccl/cub), with each element's index. The subtle rule: what
// is sorted are integers whose order is that of the elements, with all NaN equal and largest and
// with -0 equal to 0. So an element is read again by its index in the end.
#include <cub/cub.cuh>

#include "../common.cuh"

// Keys whose order is that of the elements, with the largest key for NaN.
__device__ inline unsigned key_of(float v) { return v == v ? opaq::ordered_bits(v) : ~0u; }
__device__ inline unsigned key_of(int v) { return static_cast<unsigned>(v) ^ 0x80000000u; }
template <typename T>
__device__ unsigned short key_of(T v) {  // __half, __nv_bfloat16
  const float wide = opaq::to_float(v);
  if (wide != wide) return 0xffff;
  if (wide == 0) return 0x8000;
  const unsigned short bits = reinterpret_cast<const unsigned short&>(v);
  return bits >> 15 ? ~bits : bits | 0x8000;
}

// n <= THREADS * ITEMS. The dynamic shared memory has SHARED bytes.
template <typename T, int THREADS, int ITEMS, int SHARED>
__global__ void __launch_bounds__(THREADS)
    sort(T* values, long long* indices, const T* x, int n, bool descending) {
  using Key = decltype(key_of(T()));
  using Load = cub::BlockLoad<T, THREADS, ITEMS, cub::BLOCK_LOAD_TRANSPOSE>;
  using Sort = cub::BlockRadixSort<Key, THREADS, ITEMS, unsigned short>;
  union Shared {
    typename Load::TempStorage load;
    typename Sort::TempStorage sort;
  };
  static_assert(sizeof(Shared) <= SHARED && THREADS * ITEMS <= 65536);
  extern __shared__ uint4 memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const long long row = blockIdx.x * static_cast<long long>(n);
  T items[ITEMS];
  Load(shared.load).Load(x + row, items, n);
  Key keys[ITEMS];
  unsigned short places[ITEMS];
#pragma unroll
  for (int i = 0; i < ITEMS; ++i) {
    const int place = threadIdx.x * ITEMS + i;
    // What is past the end has the largest key and, as the sort is stable, remains last.
    keys[i] = static_cast<Key>(~Key(0));
    if (place < n) keys[i] = descending ? static_cast<Key>(~key_of(items[i])) : key_of(items[i]);
    places[i] = place;
  }
  __syncthreads();
  Sort(shared.sort).SortBlockedToStriped(keys, places);
#pragma unroll
  for (int i = 0; i < ITEMS; ++i) {
    const int to = i * THREADS + threadIdx.x;
    if (to < n) {
      indices[row + to] = places[i];
      values[row + to] = x[row + places[i]];
    }
  }
}
