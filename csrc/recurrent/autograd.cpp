// The first derivative of recurrent layers, fused. That of the backward ops, and gradients that are batched, go through
// the definition in Python.
#include "recurrent/autograd.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "recurrent/python.h"
#include "recurrent/results.h"

namespace adl {
namespace {

using torch::autograd::AutogradContext;

template <class Op>
c10::TypedOperatorHandle<Op> find(const std::string& name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(("adl_kernels::" + name).c_str(), "").typed<Op>();
}

// The ops by which torch's cuDNN computes layers.
struct CudnnOps {
  using Prefers = bool(int64_t, int64_t, at::ScalarType, at::IntArrayRef, bool, bool);
  using Forward = Tensors(int64_t, int64_t, const Tensor&, at::TensorList, at::TensorList, const MaybeTensor&);
  using Backward = Tensors(int64_t, int64_t, const c10::List<MaybeTensor>&, const Tensor&, at::TensorList,
                           at::TensorList, const MaybeTensor&, const Tensor&, const Tensor&, const c10::List<bool>&);
  c10::TypedOperatorHandle<Prefers> prefers = find<Prefers>("prefers_cudnn");
  c10::TypedOperatorHandle<Forward> only = find<Forward>("cudnn"), saving = find<Forward>("cudnn_forward");
  c10::TypedOperatorHandle<Backward> backward = find<Backward>("cudnn_backward");
  bool on_cpu = only.hasKernelForDispatchKey(c10::DispatchKey::CPU);
  bool on_cuda = only.hasKernelForDispatchKey(c10::DispatchKey::CUDA);
};

const CudnnOps& cudnn_ops() {
  static const CudnnOps kOps;
  return kOps;
}

bool wants_graph(const Tensor& x, at::TensorList hx, at::TensorList weights) {
  if (!at::GradMode::is_enabled()) return false;
  const auto wants = [](const Tensor& t) { return t.requires_grad(); };
  return wants(x) || std::any_of(hx.begin(), hx.end(), wants) || std::any_of(weights.begin(), weights.end(), wants);
}

// The same plain tensor with a first dimension of 1; without a graph at less than the cost of a view.
Tensor unsqueeze_time(const Tensor& t) {
  if (at::GradMode::is_enabled() || !t.is_contiguous()) return t.unsqueeze(0);
  const c10::DispatchKey backend = t.is_cuda() ? c10::DispatchKey::CUDA : c10::DispatchKey::CPU;
  Tensor out =
      at::detail::make_tensor<c10::TensorImpl>(c10::Storage(t.storage()), c10::DispatchKeySet(backend), t.dtype());
  out.unsafeGetTensorImpl()->set_storage_offset(t.storage_offset());
  out.unsafeGetTensorImpl()->set_sizes_contiguous({1, t.size(0), t.size(1)});
  return out;
}

Tensors unsqueeze_time(at::TensorList list) {
  Tensors out;
  out.reserve(list.size());
  for (const Tensor& t : list) out.push_back(unsqueeze_time(t));
  return out;
}

// Of a result that nobody else has seen yet.
void squeeze_time(Tensor& t) {
  if (at::GradMode::is_enabled())
    t = t.squeeze(0);
  else
    t.unsafeGetTensorImpl()->set_sizes_contiguous({t.size(1), t.size(2)});
}

c10::IValue to_ivalue(const std::vector<double>& numbers) { return numbers; }
c10::IValue to_ivalue(const std::string& text) { return text; }
c10::IValue to_ivalue(bool value) { return value; }
c10::IValue to_ivalue(int64_t value) { return value; }
void from_ivalue(const c10::IValue& from, option::Floats::Member& to) {
  to = at::ArrayRef<double>(from.toDoubleVector());
}
void from_ivalue(const c10::IValue& from, std::string& to) { to = from.toStringRef(); }
void from_ivalue(const c10::IValue& from, bool& to) { to = from.toBool(); }
void from_ivalue(const c10::IValue& from, int64_t& to) { to = from.toInt(); }

// What a node computes.
struct Call {
  Kind kind;
  const CellFacts& cell;
  int64_t directions;
  size_t weights;
  LayerOptions options;
  size_t option_tensors = 0;

  size_t inputs() const { return 1 + cell.states() + weights; }

  // Keeps all of it in ctx, but the tensors among the options, which it appends to `kept`. Plain values, not an object:
  // torch's compiled autograd compares them.
  void save(AutogradContext* ctx, Tensors& kept) {
    int64_t given = 0, bit = 1;  // options that are not the default
    options.each([&](const char* name, const auto& option, const auto& fallback) {
      if (option::differs(option, fallback)) {
        given |= bit;
        if constexpr (std::is_same_v<decltype(option), const MaybeTensor&>)
          kept.push_back(*option), ++option_tensors;
        else
          ctx->saved_data[name] = to_ivalue(option);
      }
      bit <<= 1;
    });
    ctx->saved_data["call"] =
        std::vector<int64_t>{int64_t(kind), cell.index, directions, int64_t(weights), given, int64_t(option_tensors)};
  }

  static Call of(AutogradContext* ctx, const Tensors& kept) {
    const std::vector<int64_t> saved = ctx->saved_data["call"].toIntVector();
    Call call{Kind(saved[0]), cell_at(saved[1]), saved[2], size_t(saved[3]), {}, 0};
    call.option_tensors = saved[5];
    const Tensor* tensor = kept.data() + kept.size() - call.option_tensors;
    int64_t given = saved[4];
    call.options.each([&](const char* name, auto& option, const auto&) {
      if (given & 1) {
        if constexpr (std::is_same_v<decltype(option), MaybeTensor&>)
          option = *tensor++;
        else
          from_ivalue(ctx->saved_data[name], option);
      }
      given >>= 1;
    });
    return call;
  }
};

Tensors call_forward(Kind kind, const CellFacts& cell, int64_t directions, const Tensor& x, at::TensorList hx,
                     at::TensorList weights, const LayerOptions& options, bool save) {
  if (kind == Kind::kCudnn) {
    const CudnnOps& ops = cudnn_ops();
    return (save ? ops.saving : ops.only).call(cell.index, directions, x, hx, weights, options.batch_sizes);
  }
  const auto& op = save ? ops_of(cell).saving : ops_of(cell).only;
  if (kind == Kind::kLayer) return op.call(x, hx, weights ADL_LAYER_OPTIONS(ADL_OPTION_VALUE));
  return op.call(unsqueeze_time(x), unsqueeze_time(hx), weights ADL_LAYER_OPTIONS(ADL_OPTION_VALUE));
}

// A step returns its new states alone.
void keep_states(Tensors& out) {
  at::NoGradGuard fresh;
  out.erase(out.begin());
  for (Tensor& t : out) squeeze_time(t);
}

// Gradients that vmap has batched, or that carry a tangent.
bool needs_definition(const Tensors& grads) {
  constexpr c10::DispatchKeySet kBatched({c10::DispatchKey::Batched, c10::DispatchKey::FuncTorchBatched,
                                          c10::DispatchKey::FuncTorchBatchedDecomposition,
                                          c10::DispatchKey::FuncTorchGradWrapper});
  return std::any_of(grads.begin(), grads.end(), [](const Tensor& g) {
    return g.defined() && (g.key_set().has_any(kBatched) || g._fw_grad(0).defined());
  });
}

struct LayerNode : torch::autograd::Function<LayerNode> {
  static Tensors forward(AutogradContext* ctx, Kind kind, const CellFacts* cell, int64_t directions, const Tensor& x,
                         at::TensorList hx, at::TensorList weights, const LayerOptions& options, bool all) {
    at::AutoDispatchBelowADInplaceOrView below;
    Tensors out = call_forward(kind, *cell, directions, x, hx, weights, options, true);
    const size_t outputs = Outputs::count(*cell, options);
    const at::TensorList saved = at::TensorList(out).slice(outputs);
    Tensors kept{out[0], x};
    kept.reserve(2 + hx.size() + weights.size() + saved.size());
    for (const at::TensorList list : {hx, weights, saved}) kept.insert(kept.end(), list.begin(), list.end());
    Call{kind, *cell, directions, weights.size(), options, 0}.save(ctx, kept);
    ctx->save_for_backward(std::move(kept));
    ctx->set_materialize_grads(false);
    if (all)
      ctx->mark_non_differentiable(saved.vec());
    else
      out.resize(outputs);
    if (kind == Kind::kStep) keep_states(out);
    return out;
  }

  static Tensors backward(AutogradContext* ctx, Tensors grads) {
    const Tensors kept = ctx->get_saved_variables();
    const Call call = Call::of(ctx, kept);
    const CellFacts& cell = call.cell;
    const Tensor &y = kept[0], &x = kept[1];
    const size_t states = cell.states(), inputs = call.inputs();
    const at::TensorList all(kept), hx = all.slice(2, states), weights = all.slice(2 + states, call.weights);
    const at::TensorList saved = all.slice(1 + inputs, all.size() - 1 - inputs - call.option_tensors);
    const LayerOptions& options = call.options;
    grads.resize(Outputs::count(cell, options) - (call.kind == Kind::kStep));
    std::vector<bool> needs(inputs);
    for (size_t k = 0; k < inputs; ++k) needs[k] = ctx->needs_input_grad(k);

    Tensors found = needs_definition(grads) ? from_definition(call, all.slice(1, inputs), grads, needs)
                                            : fused(call, x, hx, weights, y, saved, grads, needs);
    Tensors out(3);  // what precedes x has no gradient, nor has what follows the weights
    for (size_t k = 0; k < inputs; ++k) out.push_back(needs[k] ? std::move(found[k]) : Tensor());
    out.resize(out.size() + 2);
    return out;
  }

  static Tensors fused(const Call& call, const Tensor& x, at::TensorList hx, at::TensorList weights, const Tensor& y,
                       at::TensorList saved, const Tensors& grads, const std::vector<bool>& needs) {
    // The backward op has a derivative of its own, if one is wanted.
    std::optional<at::AutoDispatchBelowADInplaceOrView> below;
    if (!at::GradMode::is_enabled()) below.emplace();
    const LayerOptions& options = call.options;
    const bool step = call.kind == Kind::kStep;
    const size_t states = hx.size();
    c10::List<bool> wanted;
    wanted.reserve(1 + weights.size());
    wanted.push_back(needs[0]);
    for (size_t k = 0; k < weights.size(); ++k) wanted.push_back(needs[1 + states + k]);
    c10::List<MaybeTensor> given;
    given.reserve(grads.size() + step);
    if (step) given.push_back(std::nullopt);
    for (const Tensor& g : grads)
      given.push_back(!g.defined() ? std::nullopt : MaybeTensor(step ? unsqueeze_time(g) : g));
    if (call.kind == Kind::kCudnn)
      return cudnn_ops().backward.call(call.cell.index, call.directions, given, x, hx, weights, options.batch_sizes, y,
                                       saved[0], wanted);
    const auto& op = ops_of(call.cell).backward;
    if (!step) return op.call(given, x, hx, weights ADL_LAYER_OPTIONS(ADL_OPTION_VALUE), y, saved, wanted);
    Tensors found = op.call(given, unsqueeze_time(x), unsqueeze_time(hx), weights ADL_LAYER_OPTIONS(ADL_OPTION_VALUE),
                            y, saved, wanted);
    for (size_t k = 0; k < 1 + states; ++k)
      if (needs[k]) squeeze_time(found[k]);
    return found;
  }

  static Tensors from_definition(const Call& call, at::TensorList inputs, const Tensors& grads,
                                 const std::vector<bool>& needs) {
    const bool step = call.kind == Kind::kStep;
    const size_t lifted = step ? 1 + call.cell.states() : 0;
    Tensors tensors = inputs.vec(), cotangents = grads;
    for (size_t k = 0; k < lifted; ++k) tensors[k] = tensors[k].unsqueeze(0);
    for (Tensor& g : cotangents)
      if (step && g.defined()) g = g.unsqueeze(0);
    if (step) cotangents.insert(cotangents.begin(), Tensor());
    const int64_t directions = call.kind == Kind::kCudnn ? call.directions : 0;
    Tensors found = batched_gradients(call.cell, directions, tensors, call.options, cotangents, needs);
    for (size_t k = 0; k < lifted; ++k)
      if (found[k].defined()) found[k] = found[k].squeeze(0);
    return found;
  }
};

// The size as a number; for a symbol, the one that it was traced with. The choice of kernels needs no guard: both ways
// compute every size correctly.
int64_t hint(const c10::SymInt& size) {
  if (const auto number = size.maybe_as_int()) return *number;
  pybind11::gil_scoped_acquire gil;
  const pybind11::object found = pybind11::cast(size).attr("node").attr("hint");
  return PyLong_Check(found.ptr()) ? found.cast<int64_t>() : 0;
}

}  // namespace

const CellOps& ops_of(const CellFacts& cell) {
  static const auto kOps = [] {
    std::vector<CellOps> all;
    for (const CellFacts& each : kCellFacts) {
      const std::string name = each.name;
      all.push_back({find<ForwardOp>(name), find<ForwardOp>(name + "_forward"), find<BackwardOp>(name + "_backward")});
    }
    return all;
  }();
  return kOps[cell.index];
}

Tensors run(Kind kind, const CellFacts& cell, int64_t directions, const Tensor& x, at::TensorList hx,
            at::TensorList weights, const LayerOptions& options, bool saved) {
  // A wrong number of states is the backend's to report.
  if (int64_t(hx.size()) == cell.states() && wants_graph(x, hx, weights))
    return LayerNode::apply(kind, &cell, directions, x, hx, weights, options, saved);
  at::AutoDispatchBelowADInplaceOrView below;
  Tensors out = call_forward(kind, cell, directions, x, hx, weights, options, saved);
  if (kind == Kind::kStep) keep_states(out);
  return out;
}

bool has_cudnn_ops(const Tensor& x) {
  const c10::Device device = x.device();
  return (device.is_cuda() && cudnn_ops().on_cuda) || (device.is_cpu() && cudnn_ops().on_cpu);
}

bool prefers_cudnn(const CellFacts& cell, int64_t directions, const Tensor& x, at::TensorList hx,
                   at::TensorList weights, const LayerOptions& options, std::optional<at::ScalarType> type) {
  if (!has_cudnn_ops(x) || !options.is_plain()) return false;
  const bool packed = options.batch_sizes.has_value();
  if (int64_t(hx.size()) != cell.states() || weights.size() < 2 || x.dim() != (packed ? 2 : 3)) return false;
  for (const Tensor& h : hx)
    if (h.dim() != 3) return false;
  const int64_t count = hint(hx[0].sym_size(0)), layers = directions > 0 ? count / directions : 0;
  const int64_t each = layers ? int64_t(weights.size()) / (layers * directions) : 0;
  const c10::SymInt H = weights[0].sym_size(0) / cell.gates, P = hx[0].sym_size(2);
  if (each < 2 || each > (cell.has_c ? 5 : 4) || (each == 3 && !cell.has_c)) return false;
  const bool projected = each % 2;
  if (!projected && hint(H) != hint(P)) return false;
  const c10::SymInt steps = packed ? options.batch_sizes->sym_numel() : x.sym_size(0);
  const std::array<int64_t, 7> sizes{
      hint(steps), hint(hx[0].sym_size(1)), hint(x.sym_size(-1)), hint(H), hint(P), layers, directions};
  c10::impl::ExcludeDispatchKeyGuard no_modes(
      c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot}));
  const int64_t device = x.device().has_index() ? x.device().index() : 0;
  return cudnn_ops().prefers.call(cell.index, device, type.value_or(x.scalar_type()), sizes, packed,
                                  wants_graph(x, hx, weights));
}

namespace {

template <bool saved>
Tensors cudnn(int64_t cell, int64_t directions, const Tensor& x, at::TensorList hx, at::TensorList weights,
              const MaybeTensor& batch_sizes) {
  LayerOptions options;
  options.batch_sizes = batch_sizes;
  return run(Kind::kCudnn, cell_at(cell), directions, x, hx, weights, options, saved);
}

// The derivative of <cell>_backward and cudnn_backward is Python's.
void implement_autograd(torch::Library& m) {
  for (const CellFacts& cell : kCellFacts)
    for (const bool saved : {false, true})
      m.impl((std::string(cell.name) + (saved ? "_forward" : "")).c_str(),
             [&cell, saved](const Tensor& x, at::TensorList hx,
                            at::TensorList weights ADL_LAYER_OPTIONS(ADL_OPTION_PARAMETER)) {
               const LayerOptions options{ADL_LAYER_OPTIONS(ADL_OPTION_NAME)};
               const int64_t D = hx.empty() || hx[0].dim() != 3 ? 1 : hint(hx[0].sym_size(0));
               const bool cudnn = !saved && prefers_cudnn(cell, D, x, hx, weights, options);
               return run(cudnn ? Kind::kCudnn : Kind::kLayer, cell, D, x, hx, weights, options, saved);
             });
  m.impl("cudnn", adl::cudnn<false>);
  m.impl("cudnn_forward", adl::cudnn<true>);
}

}  // namespace
}  // namespace adl

TORCH_LIBRARY_IMPL(adl_kernels, Autograd, m) { adl::implement_autograd(m); }
