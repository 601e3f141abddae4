// Dropout whose mask depends on a seed alone, not on the device: the schema, and the op on the CPU.
#include "ops/dropout.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

namespace adl {
namespace {

constexpr int64_t kGrain = 1 << 13;  // blocks of four elements for a thread

Tensor dropout(const Tensor& x_in, double p, const Tensor& seed_in, int64_t stream) {
  check_dropout(x_in, p, seed_in);
  const Tensor x = x_in.contiguous(), y = at::empty(x.sizes(), x.options());
  const uint64_t seed = *seed_in.const_data_ptr<int64_t>();
  const Dropout d = Dropout::of(p, stream);
  const int64_t count = x.numel();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "dropout", [&] {
    using A = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
    const scalar_t* from = x.const_data_ptr<scalar_t>();
    scalar_t* to = y.mutable_data_ptr<scalar_t>();
    const A scale = d.scale;
    at::parallel_for(0, (count + 3) / 4, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const Words words = philox(seed, d.stream, block);
        for (int64_t k = 0, i = 4 * block; k < 4 && i < count; ++k, ++i)
          to[i] = words.of[k] >= d.threshold ? scalar_t(A(from[i]) * scale) : scalar_t(0);
      }
    });
  });
  return y;
}

// The words of some blocks at once, in loops that a compiler turns into SIMD: whether each is below the threshold.
constexpr int kAtOnce = 32;
void draw(uint64_t seed, uint64_t stream, uint64_t block, uint64_t threshold, uint8_t* to) {
  uint32_t c[4][kAtOnce], key[2] = {uint32_t(seed), uint32_t(seed >> 32)};
  for (int n = 0; n < kAtOnce; ++n) {
    c[0][n] = uint32_t(block + n), c[1][n] = uint32_t((block + n) >> 32);
    c[2][n] = uint32_t(stream), c[3][n] = uint32_t(stream >> 32);
  }
  for (int round = 0; round < 10; ++round) {
    for (int n = 0; n < kAtOnce; ++n) {
      const uint64_t a = uint64_t(0xD2511F53u) * c[0][n], b = uint64_t(0xCD9E8D57u) * c[2][n];
      c[0][n] = uint32_t(b >> 32) ^ c[1][n] ^ key[0], c[1][n] = uint32_t(b);
      c[2][n] = uint32_t(a >> 32) ^ c[3][n] ^ key[1], c[3][n] = uint32_t(a);
    }
    key[0] += 0x9E3779B9u, key[1] += 0xBB67AE85u;
  }
  const uint32_t below = threshold ? uint32_t(threshold - 1) : 0;  // threshold may be 2^32
  const uint8_t any = threshold != 0;
  for (int n = 0; n < kAtOnce; ++n)
    for (int k = 0; k < 4; ++k) to[4 * n + k] = uint8_t(c[k][n] <= below) & any;
}

Tensor mask(const Tensor& like, at::IntArrayRef sizes, double p, const Tensor& seed_in, int64_t stream) {
  check_dropout(like, p, seed_in);
  const Tensor y = at::empty(sizes, like.options().dtype(at::kByte));
  const uint64_t seed = *seed_in.const_data_ptr<int64_t>();
  const Dropout d = Dropout::of(p, stream);
  const int64_t count = y.numel();
  uint8_t* to = y.mutable_data_ptr<uint8_t>();
  constexpr int64_t kStep = 4 * kAtOnce;
  at::parallel_for(0, (count + kStep - 1) / kStep, kGrain / kAtOnce, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      if (part * kStep + kStep <= count) {
        draw(seed, d.stream, part * kAtOnce, d.threshold, to + part * kStep);
      } else {
        uint8_t last[kStep];
        draw(seed, d.stream, part * kAtOnce, d.threshold, last);
        std::copy(last, last + (count - part * kStep), to + part * kStep);
      }
    }
  });
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
