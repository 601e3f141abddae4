// TEST ONLY: csrc/common/cuda_device.h for kernels that run on the CPU.
#pragma once

#include <ATen/ops/add.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>

#include <cstdlib>
#include <fstream>

#define ADL_GPU_KEY CPU

namespace adl {
namespace {

inline int64_t most_projected() {
  const char* wanted = std::getenv("ADL_EMULATED_PROJECTED");
  return wanted ? std::atoll(wanted) : int64_t(1) << 28;
}

inline bool allows_tf32() {
  const char* wanted = std::getenv("ADL_EMULATED_TF32");
  return wanted && *wanted == '1';
}

inline bool allows_tf32_products() {
  const char* wanted = std::getenv("ADL_EMULATED_TF32_PRODUCTS");
  return wanted && *wanted == '1';
}

inline bool has_cudnn(at::ScalarType) {
  const char* wanted = std::getenv("ADL_EMULATED_CUDNN");
  return wanted && *wanted == '1';
}

inline size_t shared_bytes() {
  const char* wanted = std::getenv("ADL_EMULATED_SHARED");
  return wanted ? std::atoll(wanted) : size_t(227) << 10;
}

class Device {
 public:
  explicit Device(const Tensor&, bool tf32 = false) : tf32_(tf32) {}

  cudaStream_t stream() const { return nullptr; }

  // Few multiprocessors, so that small batches fill them and blocks get several sequences.
  Gpu facts() const { return facts(0); }
  static Gpu facts(int64_t) {
    const char* wanted = std::getenv("ADL_EMULATED_SMS");
    const int sms = wanted ? std::atoi(wanted) : 4;
    if (without_clusters()) return {sms, shared_bytes()};
    return {sms, shared_bytes(), sms / 8, sms / 16};
  }

  void fill(void* p, size_t pitch, int byte, size_t width, size_t rows) const {
    for (size_t i = 0; i < rows; ++i) std::memset(static_cast<char*>(p) + i * pitch, byte, width);
  }

  // As cuBLAS: sums in float or double, whatever is multiplied.
  template <class To, class From>
  void product(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const From* a, int64_t lda,
               const From* b, int64_t ldb, To* c, int64_t ldc, bool accumulate) const {
    const Tensor left = matrix(a, transpose_a ? k : m, transpose_a ? m : k, lda);
    const Tensor right = matrix(b, transpose_b ? n : k, transpose_b ? k : n, ldb);
    const Precision precision = checked_precision_of(type_of<From>(), switches(tf32_));
    if (const char* path = std::getenv("ADL_EMULATED_PRODUCTS"))  // a line for each, for the tests
      std::ofstream(path, std::ios::app) << type_of<From>() << " tf32 " << precision.tf32 << " reduced "
                                         << precision.reduced << "\n";
    const at::ScalarType type = type_of<Acc<From>>();
    Tensor out = matrix(c, m, n, ldc);
    const Tensor sum = at::mm((transpose_a ? left.t() : left).to(type), (transpose_b ? right.t() : right).to(type));
    out.copy_(accumulate ? at::add(sum, out) : sum);
  }

 private:
  bool tf32_;

  template <class T>
  static Tensor matrix(const T* p, int64_t rows, int64_t columns, int64_t ld) {
    // The sanitizers do not look into torch.
    for (int64_t i = 0; i < rows && columns > 0; ++i)
      for (const T* end : {p + i * ld, p + i * ld + columns - 1})
        static_cast<void>(*reinterpret_cast<const volatile char*>(end));
    return at::from_blob(const_cast<T*>(p), {rows, columns}, {ld, 1}, at::TensorOptions(type_of<T>()));
  }
};

}  // namespace
}  // namespace adl
