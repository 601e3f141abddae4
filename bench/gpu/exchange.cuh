// What the programs that exchange slices of a state share.
#pragma once

#include "measure.cuh"

namespace calibrate {

// Of a block that may be a single warp, for which that is faster.
__device__ __forceinline__ void block_barrier() {
  if (blockDim.x > 32)
    __syncthreads();
  else
    __syncwarp();
}

__device__ __forceinline__ uint4 all_words(unsigned v) { return {v, v, v, v}; }
__device__ __forceinline__ bool all_are(uint4 v, unsigned x) { return v.x == x && v.y == x && v.z == x && v.w == x; }

// i = first + k * stride as (row, column) of rows of `columns`, without a division for every k.
struct Place {
  int row, column, rows, columns, row_step, column_step;
  __device__ __forceinline__ Place(int first, int stride, int rows_, int columns_)
      : row(first / columns_), column(first % columns_), rows(rows_), columns(columns_) {
    row_step = stride / columns, column_step = stride % columns;
  }
  __device__ __forceinline__ bool inside() const { return row < rows; }
  __device__ __forceinline__ void next() {
    row += row_step, column += column_step;
    if (column >= columns) column -= columns, ++row;
  }
};

// ---- on the host

// How many clusters of P blocks the GPU holds at a time.
template <class... A>
int clusters_of(void (*kernel)(A...), unsigned P, unsigned threads, size_t shared_bytes) {
  return adl::active_clusters(reinterpret_cast<const void*>(kernel), static_cast<int>(P), static_cast<int>(threads),
                              shared_bytes);
}

// What the command line says, so that the tests can do less: steps, and the largest exchange in KB.
struct Effort {
  int steps, kilobytes;
  Effort(int count, char** arguments)
      : steps(count > 1 ? atoi(arguments[1]) : 10000), kilobytes(count > 2 ? atoi(arguments[2]) : 98) {}
  std::vector<int> sizes() const {
    std::vector<int> all{1, 4, 12, 24, 48, 98};
    all.resize(std::find_if(all.begin(), all.end(), [&](int size) { return size > kilobytes; }) - all.begin());
    return all;
  }
};

}  // namespace calibrate
