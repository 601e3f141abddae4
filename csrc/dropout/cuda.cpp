// Dropout on a GPU.
#include <torch/library.h>

#include "common/cuda_device.h"
#include "dropout/cuda/dropout.h"
#include "dropout/dropout.h"

namespace adl {
namespace {

// launch(seed, where it is on the device or null, multiprocessors, stream)
template <class Launch>
void run(const Tensor& on, const Tensor& seed, Launch launch) {
  const Device device(on);
  // A seed on the device is read there, so that nothing waits and a CUDA graph can change it.
  const int64_t* there = seed.device() == on.device() ? seed.const_data_ptr<int64_t>() : nullptr;
  const int64_t value = there ? 0 : *seed.const_data_ptr<int64_t>();
  check_launch("dropout", launch(value, there, device.facts().multiprocessors, device.stream()));
}

Tensor dropout(const Tensor& x_in, double p, const Tensor& seed, int64_t stream) {
  check_dropout(x_in, p, seed);
  const Tensor x = x_in.contiguous(), y = at::empty(x.sizes(), x.options());
  if (x.numel() == 0) return y;
  with_gpu_number(x.scalar_type(), [&]<class T>(T*) {
    run(x, seed, [&](int64_t value, const int64_t* there, int multiprocessors, cudaStream_t on) {
      return cuda::dropout(static_cast<const T*>(x.const_data_ptr()), static_cast<T*>(y.mutable_data_ptr()), x.numel(),
                           value, there, Dropout::of(p, stream), multiprocessors, on);
    });
  });
  return y;
}

Tensor mask(const Tensor& like, at::IntArrayRef sizes, double p, const Tensor& seed, int64_t stream) {
  check_dropout(like, p, seed);
  const Tensor y = at::empty(sizes, like.options().dtype(at::kByte));
  if (y.numel() == 0) return y;
  run(like, seed, [&](int64_t value, const int64_t* there, int multiprocessors, cudaStream_t on) {
    return cuda::mask(y.mutable_data_ptr<uint8_t>(), y.numel(), value, there, Dropout::of(p, stream), multiprocessors,
                      on);
  });
  return y;
}

}  // namespace
}  // namespace adl

TORCH_LIBRARY_IMPL(adl_kernels, ADL_GPU_KEY, m) {
  m.impl("dropout", adl::dropout);
  m.impl("mask", adl::mask);
}
