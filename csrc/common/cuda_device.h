// What the CUDA ops ask of torch: device, stream, cuBLAS.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdlib>
#include <optional>
#include <string_view>

#include "common/cuda/launch.h"
#include "common/cuda/types.h"
#include "common/products.h"

namespace adl {
namespace {

using at::Tensor;

template <class T>
constexpr at::ScalarType type_of() {
  return std::is_same_v<T, double>   ? at::kDouble
         : std::is_same_v<T, float>  ? at::kFloat
         : std::is_same_v<T, BFloat> ? at::kBFloat16
                                     : at::kHalf;
}

// ADL_CUDA_CLUSTERS=0: as on a GPU without any.
inline bool without_clusters() {
  const char* wanted = std::getenv("ADL_CUDA_CLUSTERS");
  return wanted && std::string_view(wanted) == "0";
}

// Calls f with a null pointer to the C++ type of numbers of this type.
template <class F>
void with_gpu_number(at::ScalarType type, F f) {
  if (type == at::kDouble) return f(static_cast<double*>(nullptr));
  if (type == at::kFloat) return f(static_cast<float*>(nullptr));
  if (type == at::kBFloat16) return f(static_cast<BFloat*>(nullptr));
  f(static_cast<Half*>(nullptr));
}

// What was computed for some keys lately: layers of the same shapes follow each other.
template <class Key, class Value>
class Recent {
 public:
  template <class F>
  const Value& of(const Key& key, F compute) {
    for (const auto& entry : entries_)
      if (entry && entry->first == key) return entry->second;
    auto& entry = entries_[next_++ % entries_.size()];
    entry.emplace(key, compute());
    return entry->second;
  }

 private:
  std::array<std::optional<std::pair<Key, Value> >, 16> entries_;
  size_t next_ = 0;
};

#define ADL_TEXT_OF(...) #__VA_ARGS__
#define ADL_TEXT(...) ADL_TEXT_OF(__VA_ARGS__)

inline void check_launch(const char* op, cudaError_t error) {
#ifdef ADL_CUDA_ARCHS
  TORCH_CHECK(error != cudaErrorNoKernelImageForDevice, op,
              ": this GPU runs none of the CUDA kernels of this build, which are for compute capabilities ",
              ADL_TEXT(ADL_CUDA_ARCHS),
              ": build again with ADL_CUDA_ARCHS for it (python -m adl_kernels.info names it)");
#endif
  TORCH_CHECK(error == cudaSuccess, op, ": a CUDA kernel could not be launched: ", cudaGetErrorString(error));
}

}  // namespace
}  // namespace adl

#ifdef ADL_CUDA_ON_CPU  // in the tests
#include "gpu_on_cpu.h"
#else

#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAGuard.h>

#include <map>
#include <mutex>

#define ADL_GPU_KEY CUDA  // what the ops are registered for

namespace adl {
namespace {

// W_ih x is computed for as many steps at a time as fit into so many bytes, unless it is kept anyway.
constexpr int64_t most_projected() { return int64_t(1) << 28; }

// As torch has it for nn.LSTM: torch.backends.cudnn.rnn.fp32_precision, or cudnn.allow_tf32.
inline bool allows_tf32() { return at::globalContext().allowTF32CuDNN(at::Float32Op::RNN); }

// As torch has it for products, which are all that a step of torch's cells consists of.
inline bool allows_tf32_products() {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) ==
         at::Float32Precision::TF32;
}

// Whether torch.nn's recurrent layers would call cuDNN for numbers of this type.
inline bool has_cudnn(at::ScalarType type) {
  const at::CUDAHooksInterface& hooks = at::detail::getCUDAHooks();
  return c10::cuda::device_count() > 0 && at::globalContext().userEnabledCuDNN() && hooks.compiledWithCuDNN() &&
         (type != at::kBFloat16 || hooks.supportsBFloat16RNNWithCuDNN());
}

// torch's cuBLAS for the time of a call, which gives it back as it was. The handle is looked up once, with its stream
// and workspace; the mode is set for each product, since what torch multiplies in between sets its own.
class Products {
 public:
  explicit Products(bool tf32) : handle_(at::cuda::getCurrentCUDABlasHandle()), allowed_(switches(tf32)) {
    TORCH_CUDABLAS_CHECK(cublasGetMathMode(handle_, &before_));
  }
  ~Products() { cublasSetMathMode(handle_, before_); }

  cublasHandle_t handle() const { return handle_; }

  // Before a product of matrices of this type: sets the mode, and returns what to compute in.
  cublasComputeType_t begin(at::ScalarType type) const {
    const Precision precision = checked_precision_of(type, allowed_);
    TORCH_CUDABLAS_CHECK(cublasSetMathMode(
        handle_, precision.reduced ? CUBLAS_DEFAULT_MATH : CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION));
    return type == at::kDouble ? CUBLAS_COMPUTE_64F
           : precision.tf32    ? CUBLAS_COMPUTE_32F_FAST_TF32
                               : CUBLAS_COMPUTE_32F;
  }

 private:
  cublasHandle_t handle_;
  cublasMath_t before_;
  Switches allowed_;
};

// The device of a tensor and its current stream, for the time of a call.
class Device {
 public:
  // tf32: whether products of float32 may round to it.
  explicit Device(const Tensor& x, bool tf32 = false)
      : guard_(x.device()), stream_(at::cuda::getCurrentCUDAStream()), tf32_(tf32) {
    const cudaDeviceProp& p = *at::cuda::getCurrentDeviceProperties();
    TORCH_CHECK(p.major >= 8, "adl_kernels: the CUDA kernels need compute capability 8.0 or newer, ", p.name, " has ",
                p.major, ".", p.minor, "; adl_kernels.revert(model) gives torch's own layers back");
  }

  cudaStream_t stream() const { return stream_; }

  Gpu facts() const { return facts(guard_.current_device().index()); }
  static Gpu facts(int64_t device) {
    const cudaDeviceProp& p = *at::cuda::getDeviceProperties(device);
    static std::mutex mutex;
    static std::map<int64_t, std::pair<int, int> > asked;  // by device
    const std::lock_guard lock(mutex);
    auto found = asked.find(device);
    if (found == asked.end()) {
      const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
      found = asked.try_emplace(device, cuda::clusters_at_once(8), cuda::clusters_at_once(16)).first;
    }
    if (without_clusters()) return {p.multiProcessorCount, p.sharedMemPerBlockOptin};
    return {p.multiProcessorCount, p.sharedMemPerBlockOptin, found->second.first, found->second.second};
  }

  // `rows` of so many bytes, `pitch` bytes apart.
  void fill(void* p, size_t pitch, int byte, size_t width, size_t rows) const {
    if (width && rows) C10_CUDA_CHECK(cudaMemset2DAsync(p, pitch, byte, width, rows, stream_));
  }

  // c = op(a) op(b), or c += that: row-major, c [m, n], op(a) [m, k], op(b) [k, n], rows ld apart as they lie.
  template <class To, class From>
  void product(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, const From* a, int64_t lda,
               const From* b, int64_t ldb, To* c, int64_t ldc, bool accumulate) const {
    if (m == 0 || n == 0) return;
    if (k == 0) {
      if (!accumulate) C10_CUDA_CHECK(cudaMemset2DAsync(c, ldc * sizeof(To), 0, n * sizeof(To), m, stream_));
      return;
    }
    using Scale = Acc<From>;
    const Scale one = 1, beta = accumulate ? 1 : 0;
    if (!products_) products_.emplace(tf32_);
    const cublasComputeType_t compute = products_->begin(type_of<From>());
    // cuBLAS sees columns where we have rows, so it computes the transpose.
    TORCH_CUDABLAS_CHECK(cublasGemmEx_64(
        products_->handle(), transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N, transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N, n, m, k,
        &one, b, type<From>(), ldb, a, type<From>(), lda, &beta, c, type<To>(), ldc, compute, CUBLAS_GEMM_DEFAULT));
  }

 private:
  template <class T>
  static constexpr cudaDataType_t type() {
    return std::is_same_v<T, double>   ? CUDA_R_64F
           : std::is_same_v<T, float>  ? CUDA_R_32F
           : std::is_same_v<T, BFloat> ? CUDA_R_16BF
                                       : CUDA_R_16F;
  }

  c10::cuda::CUDAGuard guard_;
  cudaStream_t stream_;
  bool tf32_;
  mutable std::optional<Products> products_;  // from the first one on
};

}  // namespace
}  // namespace adl

#endif

namespace adl {
namespace {

// Whether a layer of so many steps may multiply float32 as tf32. A single step may be an LSTMCell's, which torch
// computes by ordinary products.
inline bool allows_tf32(int64_t steps) { return allows_tf32() && (steps > 1 || allows_tf32_products()); }

// How numbers of this type are multiplied by the tiers that hold the weights.
inline Arithmetic arithmetic(at::ScalarType type, int64_t steps) {
  if (type == at::kBFloat16 || type == at::kHalf) return kHalfTensorCores;
  return type == at::kFloat && allows_tf32(steps) ? kTf32TensorCores : kFloatFma;
}

}  // namespace
}  // namespace adl
