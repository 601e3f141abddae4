// The ops on a GPU.
#include "recurrent/cuda_backward.h"
#include "recurrent/cuda_forward.h"
#include "recurrent/ops.h"

namespace adl {
namespace {

struct Cuda {
  static at::ScalarType compute_type(const char* op, const Tensor& x) {
    const at::ScalarType type = x.scalar_type();
    TORCH_CHECK(type == at::kDouble || type == at::kFloat || type == at::kBFloat16 || type == at::kHalf, op,
                ": x must be float64, float32, bfloat16 or float16, got ", type);
    return type;
  }

  static Tensor empty(at::IntArrayRef sizes, at::ScalarType type, const Tensor& x) {
    return at::empty(sizes, x.options().dtype(type));
  }

  // gates [D, N, pre, H] (with layer norm products [D, N, 2 G, H]) and c [D, N, H]; h_cell [D, N, H] with a projection.
  template <class Cell>
  static std::vector<std::vector<int64_t>> saved_sizes(const Layer<Cell>& layer) {
    const LayerShape& s = layer.s;
    std::vector<std::vector<int64_t>> sizes;
    if (layer.saves_gates()) sizes.push_back({s.D, s.N, layer.saved_per_unit(), s.H});
    if (Cell::kHasC) sizes.push_back({s.D, s.N, s.H});
    if (s.projection) sizes.push_back({s.D, s.N, s.H});
    return sizes;
  }

  template <class Cell>
  static void forward(const Layer<Cell>& layer, at::ScalarType, const Tensor& y, const Tensors& h_n,
                      const Tensor& all_c, const Tensors& saved) {
    with_gpu_number(layer.type, [&]<class T>(T*) { forward_layer<Cell, T>(layer, y, h_n, all_c, saved); });
  }

  template <class Cell>
  static void backward(const Layer<Cell>& layer, at::ScalarType, const Tensors& grads, const Tensor& y,
                       at::TensorList saved, const Tensors& out) {
    with_gpu_number(layer.type, [&]<class T>(T*) { backward_layer<Cell, T>(layer, grads, y, saved, out); });
  }
};

}  // namespace
}  // namespace adl

TORCH_LIBRARY_IMPL(adl_kernels, ADL_GPU_KEY, m) {
#define ADL_IMPLEMENT(Cell) adl::implement<adl::Cuda, adl::Cell>(m);
  ADL_CELLS(ADL_IMPLEMENT)
#undef ADL_IMPLEMENT
}
