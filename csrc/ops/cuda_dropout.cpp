// Dropout on a GPU.
#include <torch/library.h>

#include "cuda/dropout.h"
#include "ops/dropout.h"
#include "ops/gpu.h"

namespace adl {
namespace {

template <class T>
void run(const Tensor& x, const Tensor& y, const Tensor& seed, const Dropout& dropout) {
  const Device device(x);
  // A seed on the device is read there, so that nothing waits and a CUDA graph can change it.
  const int64_t* there = seed.device() == x.device() ? seed.const_data_ptr<int64_t>() : nullptr;
  const int64_t value = there ? 0 : *seed.const_data_ptr<int64_t>();
  const cudaError_t error = cuda::dropout(pointer<T>(x), pointer<T>(y), x.numel(), value, there, dropout,
                                          device.facts().multiprocessors, device.stream());
  TORCH_CHECK(error == cudaSuccess, "dropout: a CUDA kernel could not be launched: ", cudaGetErrorString(error));
}

Tensor dropout(const Tensor& x_in, double p, const Tensor& seed, int64_t stream) {
  check_dropout(x_in, p, seed);
  const Tensor x = x_in.contiguous(), y = at::empty(x.sizes(), x.options());
  if (x.numel() == 0) return y;
  with_gpu_number(x.scalar_type(), [&]<class T>(T*) { run<T>(x, y, seed, Dropout::of(p, stream)); });
  return y;
}

}  // namespace
}  // namespace adl

TORCH_LIBRARY_IMPL(adl_kernels, ADL_GPU_KEY, m) { m.impl("dropout", adl::dropout); }
