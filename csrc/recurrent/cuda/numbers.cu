// A few numbers of the host, for kernels.
#include "recurrent/cuda/kernels.h"
#include "recurrent/cuda/streaming.cuh"

namespace adl::cuda {

cudaError_t store_numbers(const int64_t* from_host, int64_t count, int64_t* to, cudaStream_t stream) {
  for (int64_t done = 0; done < count; done += Numbers::kMost) {
    Numbers numbers;
    const int64_t left = count - done, part = left < Numbers::kMost ? left : Numbers::kMost;
    for (int64_t k = 0; k < part; ++k) numbers.of[k] = from_host[done + k];
    const cudaError_t error = launch(adl::store_numbers<int64_t>, 1, 64, stream, {}, numbers, int(part), to + done);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace adl::cuda
