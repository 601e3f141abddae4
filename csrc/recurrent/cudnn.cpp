// Layers that torch.nn has too, computed by torch's own cuDNN layer where no tier of this package is faster by its
// model. A stack of layers is one call, because cuDNN begins a layer before the one below it has ended.
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <array>
#include <map>
#include <mutex>

#include "recurrent/cuda_tier.h"

#ifdef ADL_CUDA_ON_CPU  // in the tests
#include "cudnn_on_cpu.h"
#else
#include <ATen/ops/_cudnn_rnn.h>
#include <ATen/ops/_cudnn_rnn_backward.h>
#include <ATen/ops/_cudnn_rnn_flatten_weight.h>
namespace adl::cudnn {
using namespace at;
}
#endif

namespace adl {
namespace {

// cudnnRNNMode_t of a cell; -1: torch has no such cell.
int64_t mode_of(const CellFacts& cell) {
  constexpr std::string_view kNames[] = {"rnn_relu", "rnn_tanh", "lstm", "gru"};
  const auto found = std::find(std::begin(kNames), std::end(kNames), cell.name);
  return found == std::end(kNames) ? -1 : found - std::begin(kNames);
}

// The arguments of a call, checked as those of each layer's own op, and made contiguous.
struct Stack {
  const CellFacts& cell;
  int64_t mode, H, P, I, D, L, per_direction;
  Tensor x;
  Tensors hx, weights;
  std::vector<int64_t> batch_sizes;  // none for a padded batch

  Stack(int64_t index, int64_t directions, const Tensor& x_in, at::TensorList hx_in, at::TensorList weights_in,
        const MaybeTensor& sizes)
      : cell(cell_at(index)), mode(mode_of(cell)), D(directions), L(1) {
    const char* op = cell.name;
    TORCH_CHECK(mode >= 0, "cudnn: torch.nn has no ", op);
    TORCH_CHECK(D == 1 || D == 2, "cudnn: directions must be 1 or 2, got ", D);
    if (!hx_in.empty() && hx_in[0].dim() == 3) L = hx_in[0].size(0) / D;
    const size_t each = L > 0 ? weights_in.size() / L : 0;
    TORCH_CHECK(L > 0 && each * L == weights_in.size(), op, ": weights must hold equally many tensors for each of ", L,
                " layers, got ", weights_in.size());
    LayerOptions options;
    options.batch_sizes = sizes;
    LayerShape s{};
    for (int64_t k = 0; k < L; ++k) {
      Tensor in = x_in;  // of a layer above the first, a tensor that has the right sizes, but no memory
      if (k > 0) {
        std::vector<int64_t> rows = x_in.sizes().vec();
        rows.back() = D * s.P;
        in = at::empty({1}, x_in.options()).expand(rows);
      }
      Tensors states;
      for (const Tensor& h : hx_in) {
        TORCH_CHECK(L == 1 || (h.dim() == 3 && h.size(0) == L * D), op, ": states must be of ", L, " layers x ", D,
                    " directions, got ", h.sizes());
        states.push_back(L == 1 ? h : h.narrow(0, k * D, D));
      }
      s = check_layer(op, cell, in, states, weights_in.slice(k * each, each), options);
    }
    TORCH_CHECK(s.D == D, op, ": h_0 must be of ", D, " directions, got ", hx_in[0].sizes());
    H = s.H, P = s.P, I = x_in.size(-1), per_direction = s.at.count;
    x = x_in.contiguous();
    const std::vector<int64_t> counts = check_batch_sizes(op, x, hx_in[0], sizes);
    if (sizes) batch_sizes = counts;
    for (const Tensor& h : hx_in) hx.push_back(h.contiguous());
    for (const Tensor& w : weights_in) weights.push_back(w.contiguous());
  }

  bool is_projected() const { return per_direction % 2; }
  MaybeTensor c_0() const { return cell.has_c ? MaybeTensor(hx[1]) : MaybeTensor(); }
  int64_t proj_size() const { return is_projected() ? P : 0; }
};

// The weights in one buffer, as cuDNN wants them: the buffer of flatten_parameters(), or a copy. Only cuDNN knows their
// places in the buffer. The first copy for given sizes shows them.
Tensor flat_weights(const Stack& s) {
  using Key = std::array<int64_t, 8>;
  struct Places {
    std::vector<int64_t> of;
    int64_t all;
  };
  static std::mutex mutex;
  static std::map<Key, Places> known;
  const Key key{s.mode, s.I, s.H, s.proj_size(), s.L, s.D, s.per_direction, int64_t(s.x.scalar_type())};
  std::optional<Places> places;
  {
    const std::lock_guard lock(mutex);
    if (const auto found = known.find(key); found != known.end()) places = found->second;
  }
  if (places) {
    const Tensor& w = s.weights[0];
    const int64_t begin = w.storage_offset() - places->of[0];
    bool flat = begin >= 0 && size_t(begin + places->all) * w.element_size() <= w.storage().nbytes();
    for (size_t k = 0; flat && k < s.weights.size(); ++k)
      flat = s.weights[k].is_alias_of(w) && s.weights[k].storage_offset() == begin + places->of[k];
    if (flat) return at::empty({0}, w.options()).set_(w.storage(), begin, {places->all}, {1});
  }
  Tensors copies;  // flattening makes these views of the buffer, without touching the weights or their versions
  for (const Tensor& w : s.weights)
    copies.push_back(at::empty({0}, w.options()).set_(w.storage(), w.storage_offset(), w.sizes(), w.strides()));
  const Tensor flat =
      cudnn::_cudnn_rnn_flatten_weight(copies, s.per_direction, s.I, s.mode, s.H, s.proj_size(), s.L, false, s.D == 2);
  if (!places) {
    places.emplace(Places{{}, flat.numel()});
    for (const Tensor& w : copies) places->of.push_back(w.storage_offset());
    const std::lock_guard lock(mutex);
    known.emplace(key, *places);
  }
  return flat;
}

// y, h_n [, c_n], and if it is kept cuDNN's reserve.
Tensors run(const Stack& s, const Tensor& flat, bool save) {
  auto [y, h_n, c_n, reserve, unused] =
      cudnn::_cudnn_rnn(s.x, s.weights, s.per_direction, flat, s.hx[0], s.c_0(), s.mode, s.H, s.proj_size(), s.L, false,
                        0.0, save, s.D == 2, s.batch_sizes, std::nullopt);
  Tensors out{y, h_n};
  if (s.cell.has_c) out.push_back(c_n);
  if (save) out.push_back(reserve);
  return out;
}

Tensors forward(int64_t cell, int64_t directions, const Tensor& x, at::TensorList hx, at::TensorList weights,
                const MaybeTensor& batch_sizes) {
  const Stack s(cell, directions, x, hx, weights, batch_sizes);
  const Device device(x);
  return run(s, flat_weights(s), false);
}

// Only cuDNN knows the size of its reserve, so a fake of the op could not return it. The op therefore returns a tensor
// without elements on the reserve's memory. A copy of that tensor has no memory, and cuDNN's backward overwrites the
// memory, after which it is marked as empty. In both cases backward runs forward again.
Tensors saving_forward(int64_t cell, int64_t directions, const Tensor& x, at::TensorList hx, at::TensorList weights,
                       const MaybeTensor& batch_sizes) {
  const Stack s(cell, directions, x, hx, weights, batch_sizes);
  const Device device(x);
  Tensors out = run(s, flat_weights(s), true);
  out.back() = out.back().narrow(0, 0, 0);
  return out;
}

Tensor taken(const Tensor& reserve) {
  const size_t bytes = reserve.storage().nbytes();
  const Tensor whole = at::empty({0}, reserve.options()).set_(reserve.storage(), 0, {int64_t(bytes)}, {1});
  // In a storage of its own, which keeps the memory alive, so that the other storage can be marked as empty.
  Tensor own = at::from_blob(whole.mutable_data_ptr(), {int64_t(bytes)}, [whole](void*) {}, whole.options());
  reserve.storage().unsafeGetStorageImpl()->set_nbytes(0);
  return own;
}

Tensors backward(int64_t cell, int64_t directions, const c10::List<MaybeTensor>& grads, const Tensor& x,
                 at::TensorList hx, at::TensorList weights, const MaybeTensor& batch_sizes, const Tensor& y_in,
                 const Tensor& reserve_in, const c10::List<bool>& needs) {
  constexpr const char* op = "cudnn_backward";
  const Stack s(cell, directions, x, hx, weights, batch_sizes);
  const Device device(x);
  TORCH_CHECK(needs.size() == 1 + weights.size(), op, ": needs must have an entry for x and each of the ",
              weights.size(), " weights, got ", needs.size());
  TORCH_CHECK(grads.size() == 1 + hx.size(), op, ": grads must have an entry for y and each final state, ",
              1 + hx.size(), " in all, got ", grads.size());
  MaybeTensor given[3];
  bool any = false;
  for (size_t k = 0; k < grads.size(); ++k) {
    const MaybeTensor grad = grads.get(k);
    if (grad && grad->defined()) given[k] = *grad, any = true;
  }
  bool wanted = false;  // of any weight
  for (size_t k = 1; k < needs.size(); ++k) wanted = wanted || needs.get(k);

  Tensor dx, dh, dc;
  Tensors dw;
  if (any) {
    const Tensor flat = flat_weights(s);
    const bool kept = reserve_in.storage().nbytes() > 0;
    const Tensor reserve = kept ? taken(reserve_in) : run(s, flat, true).back();
    std::tie(dx, dh, dc, dw) =
        cudnn::_cudnn_rnn_backward(s.x, s.weights, s.per_direction, flat, s.hx[0], s.c_0(), y_in.contiguous(), given[0],
                                   given[1], given[2], s.mode, s.H, s.proj_size(), s.L, false, 0.0, true, s.D == 2,
                                   s.batch_sizes, std::nullopt, reserve, {needs.get(0), true, s.cell.has_c, wanted});
  }
  const auto result = [&](const Tensor& like, const Tensor& found, bool need) {
    if (!need) return at::empty({0}, like.options());
    if (!found.defined()) return at::zeros_like(like, at::MemoryFormat::Contiguous);
    // cuDNN's gradients are views of one buffer, but compiled code expects tensors at multiples of 16 bytes.
    return reinterpret_cast<uintptr_t>(found.const_data_ptr()) % 16 ? found.clone() : found;
  };
  Tensors out{result(s.x, dx, needs.get(0)), result(s.hx[0], dh, true)};
  if (s.cell.has_c) out.push_back(result(s.hx[1], dc, true));
  for (size_t k = 0; k < weights.size(); ++k)
    out.push_back(result(weights[k], wanted && any ? dw[k] : Tensor(), needs.get(1 + k)));
  return out;
}

// sizes: T, B, I, H, P, layers, directions. ADL_CUDA_TIER overrides the model.
bool prefers(int64_t cell, int64_t device, at::ScalarType type, at::IntArrayRef sizes, bool packed, bool training) {
  const CellFacts& c = cell_at(cell);
  TORCH_CHECK(sizes.size() == 7, "prefers_cudnn: sizes must be T, B, I, H, P, layers, directions, got ", sizes);
  if (mode_of(c) < 0 || !has_cudnn(type) || std::any_of(sizes.begin(), sizes.end(), [](int64_t n) { return n <= 0; }))
    return false;
  if (const std::optional<Tier> wanted = wanted_tier("prefers_cudnn")) return *wanted == Tier::kCudnn;
  const bool is_double = type == at::kDouble, own = !is_double && sizes[3] == sizes[4];
  const Scanned scanned{sizes[0],
                        sizes[1],
                        sizes[3],
                        int(sizes[6]),
                        c.gates,
                        c.pre,
                        arithmetic(type, sizes[0]),
                        false,
                        own,
                        own,
                        {true, type == at::kHalf, is_double, packed, sizes[3] != sizes[4], int(sizes[5]), sizes[2]}};
  const Gpu gpu = Device::facts(device);
  static thread_local Recent<std::tuple<Scanned, bool, Gpu>, bool> recent;
  return recent.of({scanned, training, gpu}, [&] { return cudnn_is_faster(scanned, training, gpu); });
}

}  // namespace
}  // namespace adl

TORCH_LIBRARY_IMPL(adl_kernels, ADL_GPU_KEY, m) {
  m.impl("cudnn", adl::forward);
  m.impl("cudnn_forward", adl::saving_forward);
  m.impl("cudnn_backward", adl::backward);
}

TORCH_LIBRARY_IMPL(adl_kernels, CompositeExplicitAutograd, m) { m.impl("prefers_cudnn", adl::prefers); }
