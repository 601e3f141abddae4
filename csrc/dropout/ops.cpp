// Dropout whose mask depends on a seed alone, not on the device: the schema, and the op on the CPU.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

#include "common/pointer.h"
#include "dropout/cpu/draw.h"
#include "dropout/dropout.h"

namespace adl {
namespace {

constexpr int64_t kGrain = 1 << 13;  // blocks of four elements for a thread

Tensor dropout(const Tensor& x_in, double p, const Tensor& seed_in, int64_t stream) {
  check_dropout(x_in, p, seed_in);
  const Tensor x = x_in.contiguous(), y = at::empty(x.sizes(), x.options());
  const uint64_t seed = *pointer<int64_t>(seed_in);
  const Dropout d = Dropout::of(p, stream);
  const int64_t count = x.numel();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "dropout", [&] {
    using A = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
    const scalar_t* from = pointer<scalar_t>(x);
    scalar_t* to = y.mutable_data_ptr<scalar_t>();
    const A scale = d.scale;
    at::parallel_for(0, (count + 3) / 4, kGrain, [&](int64_t begin, int64_t end) {
      constexpr int64_t kAtOnce = 256;
      uint8_t drops[4 * kAtOnce];
      for (int64_t block = begin; block < end; block += kAtOnce) {
        const int64_t first = 4 * block, n = std::min<int64_t>({4 * kAtOnce, 4 * end - first, count - first});
        draw(seed, d.stream, block, (n + 3) / 4, d.threshold, drops);
        for (int64_t k = 0; k < n; ++k) to[first + k] = drops[k] ? scalar_t(0) : scalar_t(A(from[first + k]) * scale);
      }
    });
  });
  return y;
}

Tensor mask(const Tensor& like, at::IntArrayRef sizes, double p, const Tensor& seed_in, int64_t stream) {
  check_dropout(like, p, seed_in);
  const Tensor y = at::empty(sizes, like.options().dtype(at::kByte));
  const uint64_t seed = *pointer<int64_t>(seed_in);
  const Dropout d = Dropout::of(p, stream);
  const int64_t count = y.numel();
  uint8_t* to = y.mutable_data_ptr<uint8_t>();
  at::parallel_for(0, count / 4, 8 * kGrain, [&](int64_t begin, int64_t end) {
    draw(seed, d.stream, begin, end - begin, d.threshold, to + 4 * begin);
  });
  uint8_t last[4];
  draw(seed, d.stream, count / 4, 1, d.threshold, last);
  std::copy_n(last, count % 4, to + count / 4 * 4);
  return y;
}

}  // namespace
}  // namespace adl

// mask: uint8 on the device of `like`, 1 where dropout drops.
TORCH_LIBRARY_FRAGMENT(adl_kernels, m) {
  m.def("dropout(Tensor x, float p, Tensor seed, int stream=0) -> Tensor");
  m.def("mask(Tensor like, SymInt[] sizes, float p, Tensor seed, int stream=0) -> Tensor");
}

TORCH_LIBRARY_IMPL(adl_kernels, CPU, m) {
  m.impl("dropout", adl::dropout);
  m.impl("mask", adl::mask);
}
