// Dropout: each thread makes four random words, for four neighbours.
#include "cuda/device.cuh"
#include "cuda/dropout.h"

namespace adl {

constexpr int kDropoutThreads = 256;

template <class T>
__global__ void __launch_bounds__(kDropoutThreads)
    drop_out(const T* x, T* y, int64_t count, int64_t given, const int64_t* there, const Dropout d) {
  const uint64_t seed = there ? *there : given;
  const Acc<T> scale = static_cast<Acc<T>>(d.scale);
  const int64_t blocks = (count + 3) / 4, stride = int64_t(gridDim.x) * kDropoutThreads;
  for (int64_t block = int64_t(blockIdx.x) * kDropoutThreads + threadIdx.x; block < blocks; block += stride) {
    const Words words = philox(seed, d.stream, block);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int64_t i = 4 * block + k;
      if (i < count) y[i] = from_acc<T>(words.of[k] >= d.threshold ? to_acc(x[i]) * scale : Acc<T>(0));
    }
  }
}

namespace cuda {

template <class T>
cudaError_t dropout(const T* x, T* y, int64_t count, int64_t seed, const int64_t* seed_there, const Dropout& d,
                    int multiprocessors, cudaStream_t stream) {
  const int64_t blocks = (count + 4 * kDropoutThreads - 1) / (4 * kDropoutThreads), most = 8 * multiprocessors;
  return launch(drop_out<T>, unsigned(blocks < most ? blocks : most), kDropoutThreads, stream, {}, x, y, count, seed,
                seed_there, d);
}

#define ADL_DROPOUT(T) \
  template cudaError_t dropout(const T*, T*, int64_t, int64_t, const int64_t*, const Dropout&, int, cudaStream_t);
ADL_DROPOUT(double)
ADL_DROPOUT(float)
ADL_DROPOUT(BFloat)
ADL_DROPOUT(Half)
#undef ADL_DROPOUT

}  // namespace cuda
}  // namespace adl
