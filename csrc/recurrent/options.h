// The arguments of the ops, in the order of their schemas.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace adl {

using at::Tensor;
using Tensors = std::vector<Tensor>;
using MaybeTensor = std::optional<Tensor>;

// E: what a call may ask for besides torch.nn's own.
template <class... E>
struct OpsWith {
  using Forward = Tensors(const Tensor& x, at::TensorList hx, at::TensorList weights, E... extras);
  using Backward = Tensors(const c10::List<MaybeTensor>& grads, const Tensor& x, at::TensorList hx,
                           at::TensorList weights, E... extras, const Tensor& y, at::TensorList saved,
                           const c10::List<bool>& needs);

  // Implementations, from a template on the same arguments.
  template <class Body>
  static Tensors forward(const Tensor& x, at::TensorList hx, at::TensorList weights, E... extras) {
    return Body::call(x, hx, weights, {extras...});
  }
  template <class Body>
  static Tensors backward(const c10::List<MaybeTensor>& grads, const Tensor& x, at::TensorList hx,
                          at::TensorList weights, E... extras, const Tensor& y, at::TensorList saved,
                          const c10::List<bool>& needs) {
    return Body::call(grads, x, hx, weights, {extras...}, y, saved, needs);
  }
};

using Signature =
    OpsWith<const MaybeTensor&, const MaybeTensor&, const MaybeTensor&, const MaybeTensor&, const MaybeTensor&,
            const MaybeTensor&, at::ArrayRef<double>, c10::string_view, c10::string_view, bool, bool, bool, int64_t>;

struct Asked {
  const MaybeTensor& batch_sizes;
  const MaybeTensor& lengths;
  const MaybeTensor& reset;
  const MaybeTensor& recurrent_mask;
  const MaybeTensor& zoneout_h;
  const MaybeTensor& zoneout_c;
  at::ArrayRef<double> zoneout;
  c10::string_view cell_activation, hidden_activation;
  bool peephole, layer_norm, all_states;
  int64_t bptt_steps;
};

// f of what is asked, one by one.
template <class F>
auto spread(const Asked& a, F f) {
  return f(a.batch_sizes, a.lengths, a.reset, a.recurrent_mask, a.zoneout_h, a.zoneout_c, a.zoneout, a.cell_activation,
           a.hidden_activation, a.peephole, a.layer_norm, a.all_states, a.bptt_steps);
}

}  // namespace adl
