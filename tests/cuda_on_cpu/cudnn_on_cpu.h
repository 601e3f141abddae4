// TEST ONLY: what csrc/recurrent/cudnn.cpp calls of torch's cuDNN layer, by torch's layers on the CPU in double. As
// strict as cuDNN: the weights lie in one buffer, and a reserve serves one backward.
#pragma once

#include <ATen/core/grad_mode.h>
#include <ATen/ops/gru.h>
#include <ATen/ops/lstm.h>
#include <ATen/ops/rnn_relu.h>
#include <ATen/ops/rnn_tanh.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/autograd.h>

namespace adl::cudnn {

// Matrices first, then biases, with numbers in between that belong to nobody.
inline Tensor _cudnn_rnn_flatten_weight(at::TensorList weights, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                                        bool, bool) {
  constexpr int64_t kBetween = 8;
  int64_t all = kBetween;
  for (const Tensor& w : weights) all += w.numel() + kBetween;
  const Tensor flat = at::zeros({all}, weights[0].options());
  int64_t at = kBetween;
  for (int64_t dim : {2, 1})
    for (const Tensor& w : weights) {
      if (w.dim() != dim) continue;
      const Tensor place = flat.narrow(0, at, w.numel()).view(w.sizes());
      place.copy_(w);
      const_cast<Tensor&>(w).set_(place);
      at += w.numel() + kBetween;
    }
  return flat;
}

struct Call {
  const Tensor& x;
  at::TensorList weights;
  int64_t mode, layers, proj_size;
  bool bidirectional;
  at::IntArrayRef batch_sizes;

  Tensors run(const Tensor& in, at::TensorList hx, at::TensorList w) const {
    const int64_t D = bidirectional ? 2 : 1, per = int64_t(w.size()) / (layers * D);
    const bool biases = per >= 4, packed = !batch_sizes.empty();
    const Tensor sizes = packed ? at::tensor(batch_sizes) : Tensor();
    const auto as_list = [](auto&& t) {
      Tensors out;
      std::apply([&](auto&... one) { (out.push_back(one), ...); }, t);
      return out;
    };
    const auto one_state = [&](auto layer) {
      return as_list(packed ? layer(in, sizes, hx[0], w, biases, layers, 0.0, true, bidirectional)
                            : layer(in, hx[0], w, biases, layers, 0.0, true, bidirectional, false));
    };
    if (mode == 2)
      return as_list(packed ? at::lstm(in, sizes, hx, w, biases, layers, 0.0, true, bidirectional)
                            : at::lstm(in, hx, w, biases, layers, 0.0, true, bidirectional, false));
    if (mode == 3) return one_state([](const auto&... a) { return at::gru(a...); });
    if (mode == 1) return one_state([](const auto&... a) { return at::rnn_tanh(a...); });
    return one_state([](const auto&... a) { return at::rnn_relu(a...); });
  }

  static Tensors wide(at::TensorList list) {
    Tensors out;
    for (const Tensor& t : list) out.push_back(t.to(at::kDouble, false, true));
    return out;
  }
  static Tensors states(const Tensor& hx, const MaybeTensor& cx) { return cx ? Tensors{hx, *cx} : Tensors{hx}; }

  // That the buffer holds these weights.
  void check(const Tensor& flat) const {
    Tensors copies;
    for (const Tensor& w : weights) copies.push_back(w.clone());
    const Tensor expected = cudnn::_cudnn_rnn_flatten_weight(copies, 0, 0, 0, 0, 0, 0, false, false);
    TORCH_CHECK(flat.equal(expected), "cuDNN: the buffer does not hold the weights");
  }
};

constexpr int64_t kReserveBytes = 96;

inline std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> _cudnn_rnn(const Tensor& x, at::TensorList weights, int64_t,
                                                                     const MaybeTensor& flat, const Tensor& hx,
                                                                     const MaybeTensor& cx, int64_t mode, int64_t,
                                                                     int64_t proj_size, int64_t layers, bool, double,
                                                                     bool train, bool bidirectional,
                                                                     at::IntArrayRef batch_sizes, const MaybeTensor&) {
  const Call call{x, weights, mode, layers, proj_size, bidirectional, batch_sizes};
  call.check(*flat);
  Tensors out = call.run(x.to(at::kDouble), Call::wide(Call::states(hx, cx)), Call::wide(weights));
  for (Tensor& t : out) t = t.to(x.scalar_type()).contiguous();
  const Tensor reserve = at::empty({train ? kReserveBytes : 0}, x.options().dtype(at::kByte)).fill_(0xa5);
  return {out[0], out[1], out.size() > 2 ? out[2] : at::empty({0}, x.options()), reserve, *flat};
}

inline std::tuple<Tensor, Tensor, Tensor, Tensors> _cudnn_rnn_backward(
    const Tensor& x, at::TensorList weights, int64_t, const Tensor& flat, const Tensor& hx, const MaybeTensor& cx,
    const Tensor&, const MaybeTensor& dy, const MaybeTensor& dh, const MaybeTensor& dc, int64_t mode, int64_t,
    int64_t proj_size, int64_t layers, bool, double, bool, bool bidirectional, at::IntArrayRef batch_sizes,
    const MaybeTensor&, const Tensor& reserve, std::array<bool, 4>) {
  const Call call{x, weights, mode, layers, proj_size, bidirectional, batch_sizes};
  call.check(flat);
  TORCH_CHECK(reserve.numel() == kReserveBytes && reserve.eq(0xa5).all().item<bool>(),
              "cuDNN: a reserve that backward has used, or no reserve at all");
  reserve.zero_();
  // With autograd, below which the ops run.
  const c10::impl::ForceDispatchKeyGuard everything{
      c10::impl::LocalDispatchKeySet(c10::impl::PODLocalDispatchKeySet{})};
  const at::AutoGradMode with_grad(true);
  Tensors inputs = Call::wide({x}), given{};
  for (const Tensor& t : Call::wide(Call::states(hx, cx))) inputs.push_back(t);
  for (const Tensor& t : Call::wide(weights)) inputs.push_back(t);
  for (Tensor& t : inputs) t = t.detach().requires_grad_();
  const size_t states = cx ? 2 : 1;
  const at::TensorList all(inputs);
  const Tensors out = call.run(all[0], all.slice(1, states), all.slice(1 + states));
  Tensors used;
  const MaybeTensor* grads[] = {&dy, &dh, &dc};
  for (size_t k = 0; k < out.size(); ++k)
    if (*grads[k] && (*grads[k])->defined()) used.push_back(out[k]), given.push_back((*grads[k])->to(at::kDouble));
  Tensors found = torch::autograd::grad(used, inputs, given, std::nullopt, false, true);
  for (Tensor& t : found)
    if (t.defined()) t = t.detach().to(x.scalar_type()).contiguous();
  return {found[0], found[1], cx ? found[2] : Tensor(), Tensors(found.begin() + 1 + states, found.end())};
}

}  // namespace adl::cudnn
