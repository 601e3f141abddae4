// The ops on the CPU: check, allocate, fill the structs, call the scan.
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "ops/layer.h"

namespace adl {
namespace {

template <class Cell, class T>
void scan_forward(const Layer<Cell>& layer, at::ScalarType type, const Tensor& y, const Tensors& h_n,
                  const Tensors& saved) {
  const LayerShape& s = layer.s;
  const CellKernels<T>& kernel = kernels_for<T>(type).cells[index_of<Cell>()];
  const bool save = !saved.empty();
  for (int64_t d = 0; d < s.D; ++d) {
    Forward<T> p{};
    p.sequence = layer.sequence(d);
    p.weights = layer.template weights_of<T>(d);
    p.x = pointer<T>(layer.x);
    p.h_0 = pointer<T>(layer.hx[0], d);
    p.y = pointer<T>(y) + d * s.P;
    p.y_stride = s.D * s.P;
    p.h_n = pointer<T>(h_n[0], d);
    if (Cell::kHasC) p.c_0 = pointer<T>(layer.hx[1], d), p.c_n = pointer<T>(h_n[1], d);
    if (Cell::kSavesGates && save) p.gates = pointer<T>(saved[0], d);
    if (Cell::kHasC && save) p.c = pointer<T>(saved[1], d);
    if (s.projection && save) p.h_cell = pointer<T>(saved[2], d);
    call(kernel.forward_scratch, kernel.forward, p);
  }
}

template <class Cell>
Tensors forward(const Tensor& x, at::TensorList hx, at::TensorList weights, const std::optional<Tensor>& batch_sizes,
                bool save) {
  const Layer<Cell> layer(Cell::kName, x, hx, weights, batch_sizes);
  const Tensor y = empty(layer.y_sizes(), layer.type);
  Tensors h_n, saved;
  for (const Tensor& h : layer.hx) h_n.push_back(layer.empty() ? h.clone() : empty(h.sizes(), layer.type));
  if (save)
    for (const auto& sizes : layer.saved_sizes()) saved.push_back(empty(sizes, layer.type));
  if (!layer.empty())
    with_number(layer.type, [&]<class T>(T) { scan_forward<Cell, T>(layer, x.scalar_type(), y, h_n, saved); });
  Tensors out{to_type(y, x.scalar_type())};
  for (const Tensor& h : h_n) out.push_back(to_type(h, x.scalar_type()));
  out.insert(out.end(), saved.begin(), saved.end());
  return out;
}

template <class Cell>
Tensors forward_only(const Tensor& x, at::TensorList hx, at::TensorList weights,
                     const std::optional<Tensor>& batch_sizes) {
  return forward<Cell>(x, hx, weights, batch_sizes, false);
}

template <class Cell>
Tensors forward_saving(const Tensor& x, at::TensorList hx, at::TensorList weights,
                       const std::optional<Tensor>& batch_sizes) {
  return forward<Cell>(x, hx, weights, batch_sizes, true);
}

template <class Cell, class T>
void scan_backward(const Layer<Cell>& layer, at::ScalarType type, const Tensors& grads, const Tensor& y,
                   at::TensorList saved, const Tensors& out) {
  const LayerShape& s = layer.s;
  const CellKernels<T>& kernel = kernels_for<T>(type).cells[index_of<Cell>()];
  for (int64_t d = 0; d < s.D; ++d) {
    Backward<T> p{};
    p.sequence = layer.sequence(d);
    p.weights = layer.template weights_of<T>(d);
    p.x = pointer<T>(layer.x);
    p.h_0 = pointer<T>(layer.hx[0], d);
    p.y = pointer<T>(y) + d * s.P;
    p.y_stride = s.D * s.P;
    if (grads[0].defined()) p.dy = pointer<T>(grads[0]) + d * s.P;
    p.dh_n = pointer<T>(grads[1], d);
    p.dx = pointer<T>(out[0]);
    p.accumulate_dx = d > 0;
    p.dh_0 = pointer<T>(out[1], d);
    if (Cell::kSavesGates) p.gates = pointer<T>(saved[0], d);
    if (Cell::kHasC) {
      p.c_0 = pointer<T>(layer.hx[1], d);
      p.c = pointer<T>(saved[1], d);
      p.dc_n = pointer<T>(grads[2], d);
      p.dc_0 = pointer<T>(out[2], d);
    }
    if (s.projection) p.h_cell = pointer<T>(saved[2], d);
    const Tensor* dw = out.data() + (Cell::kHasC ? 3 : 2) + d * s.per_direction;
    p.dw_ih = pointer<T>(dw[0]);
    p.dw_hh = pointer<T>(dw[1]);
    if (s.bias) p.db_ih = pointer<T>(dw[2]), p.db_hh = pointer<T>(dw[3]);
    if (s.projection) p.dw_hr = pointer<T>(dw[s.per_direction - 1]);
    call(kernel.backward_scratch, kernel.backward, p);
  }
}

void check_tensor_of_forward(const char* op, const char* name, const Tensor& t, at::IntArrayRef sizes,
                             const Tensor& x) {
  TORCH_CHECK(t.sizes() == sizes && t.scalar_type() == x.scalar_type() && t.device() == x.device() && t.is_contiguous(),
              op, ": ", name, " must be as the forward op left it, contiguous ", x.scalar_type(), " ", sizes, ", got ",
              t.scalar_type(), " ", t.sizes());
}

template <class Cell>
Tensors backward(const c10::List<std::optional<Tensor>>& grads_in, const Tensor& x, at::TensorList hx,
                 at::TensorList weights, const std::optional<Tensor>& batch_sizes, const Tensor& y_in,
                 at::TensorList saved, const c10::List<bool>& needs) {
  static const std::string name = std::string(Cell::kName) + "_backward";
  const char* op = name.c_str();
  const Layer<Cell> layer(op, x, hx, weights, batch_sizes);
  const Tensor y = prepare(y_in, layer.type);
  check_tensor_of_forward(op, "y", y, layer.y_sizes(), layer.x);
  const auto saved_sizes = layer.saved_sizes();
  TORCH_CHECK(saved.size() == saved_sizes.size(), op, ": saved must hold ", saved_sizes.size(), " tensors, got ",
              saved.size());
  for (size_t k = 0; k < saved.size(); ++k) check_tensor_of_forward(op, "saved", saved[k], saved_sizes[k], layer.x);
  TORCH_CHECK(needs.size() == 1 + weights.size(), op, ": needs must have an entry for x and each of the ",
              weights.size(), " weights, got ", needs.size());
  TORCH_CHECK(grads_in.size() == 1 + hx.size(), op, ": grads must have an entry for y and each final state, ",
              1 + hx.size(), " in all, got ", grads_in.size());
  Tensors grads;
  for (size_t k = 0; k < grads_in.size(); ++k) {
    const std::optional<Tensor> grad = grads_in.get(k);
    grads.push_back(grad && grad->defined() ? prepare(*grad, layer.type) : Tensor());
    if (grads[k].defined())
      check_tensor_of_forward(op, "a gradient", grads[k], k == 0 ? y.sizes() : hx[k - 1].sizes(), layer.x);
  }

  Tensors out;
  const auto allocate = [&](const Tensor& like, bool wanted) {
    if (!wanted)
      out.push_back(empty({0}, layer.type));
    else if (layer.empty())
      out.push_back(at::zeros(like.sizes(), layer.x.options()));
    else
      out.push_back(empty(like.sizes(), layer.type));
  };
  allocate(x, needs.get(0));
  for (const Tensor& h : hx) allocate(h, true);
  for (size_t k = 0; k < weights.size(); ++k) allocate(weights[k], needs.get(k + 1));
  if (layer.empty()) {
    for (size_t k = 1; k < grads.size(); ++k)
      if (grads[k].defined()) out[k].copy_(grads[k]);
  } else {
    with_number(layer.type, [&]<class T>(T) { scan_backward<Cell, T>(layer, x.scalar_type(), grads, y, saved, out); });
  }
  for (Tensor& t : out) t = to_type(t, x.scalar_type());
  return out;
}

template <class Cell>
void implement(torch::Library& m) {
  const std::string name = Cell::kName;
  m.impl(name.c_str(), forward_only<Cell>);
  m.impl((name + "_forward").c_str(), forward_saving<Cell>);
  m.impl((name + "_backward").c_str(), backward<Cell>);
}

}  // namespace
}  // namespace adl

TORCH_LIBRARY_IMPL(adl_kernels, CPU, m) {
#define ADL_IMPLEMENT(Cell) adl::implement<adl::Cell>(m);
  ADL_CELLS(ADL_IMPLEMENT)
#undef ADL_IMPLEMENT
}
