// TEST ONLY: csrc/ops/gpu.h for kernels that run on the CPU.
#pragma once

#include <cstdlib>

namespace adl {
namespace {

inline bool allows_tf32() {
  const char* wanted = std::getenv("ADL_EMULATED_TF32");
  return wanted && *wanted == '1';
}

class Device {
 public:
  explicit Device(const Tensor&) {}

  cudaStream_t stream() const { return nullptr; }

  // Few multiprocessors, so that small batches fill them and blocks get several sequences.
  Gpu facts() const { return {4, 227 * 1024}; }

  template <class To, class From>
  void product(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const From* a, int64_t lda,
               const From* b, int64_t ldb, To* c, int64_t ldc, bool accumulate) const {
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j) {
        Acc<From> sum = 0;
        for (int64_t l = 0; l < k; ++l)
          sum += to_acc(a[transpose_a ? l * lda + i : i * lda + l]) * to_acc(b[transpose_b ? j * ldb + l : l * ldb + j]);
        To& out = c[i * ldc + j];
        out = from_acc<To>(accumulate ? to_acc(out) + sum : sum);
      }
  }
};

}  // namespace
}  // namespace adl
