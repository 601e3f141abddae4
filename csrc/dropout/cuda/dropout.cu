// Dropout: each thread makes four random words, for four neighbours.
#include "common/cuda/device.cuh"
#include "dropout/cuda/dropout.h"

namespace adl {

constexpr int kDropoutThreads = 256;

// f(i, word i of the stream) for all i below count.
template <class F>
__device__ __forceinline__ void each_word(int64_t count, int64_t given, const int64_t* there, uint64_t stream, F f) {
  const uint64_t seed = there ? *there : given;
  const int64_t blocks = (count + 3) / 4, stride = int64_t(gridDim.x) * kDropoutThreads;
  for (int64_t block = int64_t(blockIdx.x) * kDropoutThreads + threadIdx.x; block < blocks; block += stride) {
    const Words words = philox(seed, stream, block);
#pragma unroll
    for (int k = 0; k < 4; ++k)
      if (4 * block + k < count) f(4 * block + k, words.of[k]);
  }
}

template <class T>
__global__ void __launch_bounds__(kDropoutThreads)
    drop_out(const T* x, T* y, int64_t count, int64_t given, const int64_t* there, const Dropout d) {
  const Acc<T> scale = static_cast<Acc<T>>(d.scale);
  each_word(count, given, there, d.stream, [&](int64_t i, uint32_t word) {
    y[i] = from_acc<T>(word >= d.threshold ? to_acc(x[i]) * scale : Acc<T>(0));
  });
}

// 1 where drop_out drops.
template <class T>
__global__ void __launch_bounds__(kDropoutThreads)
    drop_mask(T* y, int64_t count, int64_t given, const int64_t* there, const Dropout d) {
  each_word(count, given, there, d.stream, [&](int64_t i, uint32_t word) { y[i] = word < d.threshold; });
}

namespace cuda {

static unsigned blocks_for(int64_t count, int multiprocessors) {
  const int64_t blocks = (count + 4 * kDropoutThreads - 1) / (4 * kDropoutThreads), most = 8 * multiprocessors;
  return unsigned(blocks < most ? blocks : most);
}

template <class T>
cudaError_t dropout(const T* x, T* y, int64_t count, int64_t seed, const int64_t* seed_there, const Dropout& d,
                    int multiprocessors, cudaStream_t stream) {
  return launch(drop_out<T>, blocks_for(count, multiprocessors), kDropoutThreads, stream, {}, x, y, count, seed,
                seed_there, d);
}

cudaError_t mask(uint8_t* y, int64_t count, int64_t seed, const int64_t* seed_there, const Dropout& d,
                 int multiprocessors, cudaStream_t stream) {
  return launch(drop_mask<uint8_t>, blocks_for(count, multiprocessors), kDropoutThreads, stream, {}, y, count, seed,
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
