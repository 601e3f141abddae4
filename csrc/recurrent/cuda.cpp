// Layers on a GPU.
#include "recurrent/cuda_backward.h"
#include "recurrent/cuda_forward.h"
#include "recurrent/ops.h"

namespace adl {
namespace {

struct Cuda final : Engine {
  at::ScalarType compute_type(const char* op, const Tensor& x) const override {
    const at::ScalarType type = x.scalar_type();
    TORCH_CHECK(type == at::kDouble || type == at::kFloat || type == at::kBFloat16 || type == at::kHalf, op,
                ": x must be float64, float32, bfloat16 or float16, got ", type);
    return type;
  }

  Tensor empty(at::IntArrayRef sizes, at::ScalarType type, const Tensor& x) const override {
    return at::empty(sizes, x.options().dtype(type));
  }

  // gates [D, N, pre, H] (with layer norm products [D, N, 2 G, H]) and c [D, N, H]; h_cell [D, N, H] with a projection.
  SavedSizes saved_sizes(const Layer& layer) const override {
    const LayerShape& s = layer.s;
    SavedSizes sizes;
    if (layer.saves_gates()) sizes.gates = {s.D, s.N, layer.saved_per_unit(), s.H};
    if (layer.cell.has_c) sizes.c = {s.D, s.N, s.H};
    if (s.projection) sizes.h_cell = {s.D, s.N, s.H};
    return sizes;
  }

  void forward(const Layer& layer, at::ScalarType, const Outputs& out, const Saved& saved) const override {
    with_gpu_number(layer.type, [&]<class T>(T*) { forward_layer<T>(layer, out, saved); });
  }
  void backward(const Layer& layer, at::ScalarType, const Outputs& grads, const Tensor& y, const Saved& saved,
                const Gradients& out) const override {
    with_gpu_number(layer.type, [&]<class T>(T*) { backward_layer<T>(layer, grads, y, saved, out); });
  }
};

}  // namespace
}  // namespace adl

TORCH_LIBRARY_IMPL(adl_kernels, ADL_GPU_KEY, m) {
  static const adl::Cuda engine;
  adl::implement(m, engine);
}
