// A short cut for calls of modules in eager mode: from the parameters straight to the kernel.
//
// A call of one step is over in a microsecond; the way through Python, views, the op's boxed arguments and an
// autograd function in Python takes thirty. Here plain tensors skip all of it. Whatever is out of the ordinary (wrong
// arguments, a mode, a transform, a device without kernels) gets None, and takes the usual way.
#include "recurrent/eager.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <array>
#include <string>
#include <vector>

#include "recurrent/cells/cells.h"
#include "recurrent/options.h"

namespace adl {
namespace {

namespace py = pybind11;
using ForwardOp = Signature::Forward;
using BackwardOp = Signature::Backward;

// Nothing but torch.nn's own.
const MaybeTensor kNone;
const Asked kPlain{kNone, kNone, kNone, kNone, kNone, kNone, {}, "tanh", "tanh", false, false, false, 0};

template <class Op>
c10::TypedOperatorHandle<Op> find(const std::string& name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(("adl_kernels::" + name).c_str(), "").typed<Op>();
}

struct Ops {
  const char* name;
  int64_t gates;
  size_t states;
  c10::TypedOperatorHandle<ForwardOp> only, saving;
  c10::TypedOperatorHandle<BackwardOp> backward;

  template <class Cell>
  static Ops of() {
    const std::string name = Cell::kName;
    return {Cell::kName,
            Cell::kGates,
            Cell::kHasC ? 2u : 1u,
            find<ForwardOp>(name),
            find<ForwardOp>(name + "_forward"),
            find<BackwardOp>(name + "_backward")};
  }
};

const Ops& ops_of(int64_t cell) {
#define ADL_OPS(Cell) Ops::of<Cell>(),
  static const std::array<Ops, kCells> kOps{ADL_CELLS(ADL_OPS)};
#undef ADL_OPS
  return kOps.at(cell);
}

// The ops by which torch's cuDNN computes a layer.
struct CudnnOps {
  using Prefers = bool(int64_t, int64_t, at::ScalarType, at::IntArrayRef, bool, bool);
  using Forward = Tensors(int64_t, int64_t, const Tensor&, at::TensorList, at::TensorList, const MaybeTensor&);
  using Backward = Tensors(int64_t, int64_t, const c10::List<MaybeTensor>&, const Tensor&, at::TensorList,
                           at::TensorList, const MaybeTensor&, const Tensor&, const Tensor&, const c10::List<bool>&);
  const c10::TypedOperatorHandle<Prefers> prefers = find<Prefers>("prefers_cudnn");
  const c10::TypedOperatorHandle<Forward> only = find<Forward>("cudnn"), saving = find<Forward>("cudnn_forward");
  const c10::TypedOperatorHandle<Backward> backward = find<Backward>("cudnn_backward");
  // Where there are kernels for them: nowhere in a build without CUDA.
  const bool on_cpu = only.hasKernelForDispatchKey(c10::DispatchKey::CPU);
  const bool on_cuda = only.hasKernelForDispatchKey(c10::DispatchKey::CUDA);
};

const CudnnOps& cudnn_ops() {
  static const CudnnOps kOps;
  return kOps;
}

c10::DispatchKey backend(const Tensor& t) { return t.is_cuda() ? c10::DispatchKey::CUDA : c10::DispatchKey::CPU; }
c10::DispatchKeySet backend_keys(const Tensor& t) { return c10::DispatchKeySet(backend(t)); }

template <class Op>
Tensors run_forward(const Op& op, const Tensor& x, at::TensorList hx, at::TensorList weights) {
  const c10::DispatchKeySet keys = backend_keys(x);
  return spread(kPlain, [&](const auto&... extras) { return op.redispatch(keys, x, hx, weights, extras...); });
}

// No mode, transform or other extension has a say in what happens to this tensor.
bool is_plain(const Tensor& t) {
  const c10::impl::LocalDispatchKeySet local = c10::impl::tls_local_dispatch_key_set();
  const auto key = ((t.key_set() | local.included_) - local.excluded_).highestPriorityTypeId();
  return key == c10::DispatchKey::ADInplaceOrView || key == backend(t) ||
         key == (t.is_cuda() ? c10::DispatchKey::AutogradCUDA : c10::DispatchKey::AutogradCPU);
}

// The same tensor with a first dimension of 1, for use below autograd.
Tensor one_step(const Tensor& t) {
  if (!t.is_contiguous()) return t.unsqueeze(0);
  Tensor out = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(t.storage()), backend_keys(t), t.dtype());
  out.unsafeGetTensorImpl()->set_storage_offset(t.storage_offset());
  out.unsafeGetTensorImpl()->set_sizes_contiguous({1, t.size(0), t.size(1)});
  return out;
}

Tensors one_step(at::TensorList list) {
  Tensors out;
  for (const Tensor& t : list) out.push_back(one_step(t));
  return out;
}

// Takes the first dimension off tensors that nobody else has seen yet.
void drop_step(Tensors& list, size_t count) {
  for (size_t k = 0; k < count; ++k)
    list[k].unsafeGetTensorImpl()->set_sizes_contiguous({list[k].size(1), list[k].size(2)});
}

// The gradients of a layer as Python has them from its definition, for gradients that are batched.
PyObject* definition = nullptr;

// What is to be computed: a layer, y, h_n [, c_n] from x [T, B, I], states [D, B, ...], by this package's kernels or
// cuDNN's; or one step, the new states from 2-D tensors.
enum Kind : int64_t { kLayer, kStep, kCudnn };

struct EagerLayer : torch::autograd::Function<EagerLayer> {
  static Tensors forward(torch::autograd::AutogradContext* ctx, int64_t cell, int64_t kind, const Tensor& x,
                         at::TensorList hx, at::TensorList weights) {
    const Ops& ops = ops_of(cell);
    const bool step = kind == kStep;
    Tensors out = step             ? run_forward(ops.saving, one_step(x), one_step(hx), weights)
                  : kind == kCudnn ? cudnn_ops().saving.redispatch(backend_keys(x), cell, hx[0].size(0), x, hx, weights,
                                                                   std::nullopt)
                                   : run_forward(ops.saving, x, hx, weights);
    Tensors kept{out[0], x};
    kept.insert(kept.end(), hx.begin(), hx.end());
    kept.insert(kept.end(), weights.begin(), weights.end());
    kept.insert(kept.end(), out.begin() + 1 + hx.size(), out.end());
    ctx->save_for_backward(std::move(kept));
    ctx->saved_data["call"] = cell << 32 | int64_t(weights.size()) << 2 | kind;
    out.resize(1 + hx.size());
    ctx->set_materialize_grads(false);
    if (!step) return out;
    out.erase(out.begin());
    drop_step(out, out.size());
    return out;
  }

  static Tensors backward(torch::autograd::AutogradContext* ctx, Tensors grads) {
    const int64_t call = ctx->saved_data["call"].toInt();
    const int64_t cell = call >> 32, kind = call & 3;
    const Ops& ops = ops_of(cell);
    const bool step = kind == kStep;
    const size_t weights_count = (call & 0xffffffff) >> 2, inputs = 1 + ops.states + weights_count;
    const Tensors kept = ctx->get_saved_variables();
    const Tensor &y = kept[0], &x = kept[1];
    const at::TensorList hx(kept.data() + 2, ops.states), weights(kept.data() + 2 + ops.states, weights_count);
    const at::TensorList saved(kept.data() + 1 + inputs, kept.size() - 1 - inputs);
    std::vector<bool> needs;
    for (size_t k = 0, edge = 0; k < inputs; ++k) needs.push_back(ctx->needs_input_grad(edge++));

    bool plain = true;
    for (const Tensor& g : grads) plain = plain && (!g.defined() || is_plain(g));
    const bool graph = c10::GradMode::is_enabled();
    Tensors found;
    if (!plain) {
      found = from_definition(ops, step, kept, inputs, grads, needs);
    } else {
      c10::List<bool> wanted;
      wanted.push_back(needs[0]);
      for (size_t k = 0; k < weights_count; ++k) wanted.push_back(needs[1 + ops.states + k]);
      c10::List<std::optional<Tensor>> given;
      if (step) given.push_back(std::nullopt);
      for (const Tensor& g : grads)
        given.push_back(g.defined() ? std::optional(!step ? g : graph ? g.unsqueeze(0) : one_step(g)) : std::nullopt);
      if (kind == kCudnn) {
        const auto& op = cudnn_ops().backward;
        const int64_t D = hx[0].size(0);
        found = graph
                    ? op.call(cell, D, given, x, hx, weights, std::nullopt, y, saved[0], wanted)
                    : op.redispatch(backend_keys(x), cell, D, given, x, hx, weights, std::nullopt, y, saved[0], wanted);
      } else if (graph) {  // which has a derivative of its own
        Tensors states;
        for (const Tensor& h : hx) states.push_back(step ? h.unsqueeze(0) : h);
        found = spread(kPlain, [&](const auto&... extras) {
          return ops.backward.call(given, step ? x.unsqueeze(0) : x, states, weights, extras..., y, saved, wanted);
        });
        for (size_t k = 0; step && k < 1 + ops.states; ++k)
          if (needs[k]) found[k] = found[k].squeeze(0);
      } else if (step) {
        const Tensors states = one_step(hx);
        found = spread(kPlain, [&](const auto&... extras) {
          return ops.backward.redispatch(backend_keys(x), given, one_step(x), states, weights, extras..., y, saved,
                                         wanted);
        });
        if (needs[0]) drop_step(found, 1);
        for (size_t k = 1; k < 1 + ops.states; ++k)
          found[k].unsafeGetTensorImpl()->set_sizes_contiguous({found[k].size(1), found[k].size(2)});
      } else {
        found = spread(kPlain, [&](const auto&... extras) {
          return ops.backward.redispatch(backend_keys(x), given, x, hx, weights, extras..., y, saved, wanted);
        });
      }
    }
    Tensors out(2);
    for (size_t k = 0; k < inputs; ++k) out.push_back(needs[k] ? found[k] : Tensor());
    return out;
  }

  static Tensors from_definition(const Ops& ops, bool step, const Tensors& kept, size_t inputs, const Tensors& grads,
                                 const std::vector<bool>& needs) {
    py::gil_scoped_acquire gil;
    py::list tensors, cotangents, wanted;
    const auto lift = [&](const Tensor& t) { return step ? t.unsqueeze(0) : t; };
    for (size_t k = 0; k < inputs; ++k) tensors.append(py::cast(k < 1 + ops.states ? lift(kept[1 + k]) : kept[1 + k]));
    if (step) cotangents.append(py::none());
    for (const Tensor& g : grads) cotangents.append(g.defined() ? py::cast(lift(g)) : py::none());
    for (bool need : needs) wanted.append(py::bool_(need));
    const py::list found = py::handle(definition)(ops.name, tensors, cotangents, wanted);
    Tensors out;
    for (size_t k = 0; k < inputs; ++k) {
      out.push_back(found[k].is_none() ? Tensor() : found[k].cast<Tensor>());
      if (step && k < 1 + ops.states && out[k].defined()) out[k] = out[k].squeeze(0);
    }
    return out;
  }
};

// Appends a tensor if it is plain; whether it was.
bool take(PyObject* object, const Tensor* like, Tensors& list) {
  if (!THPVariable_CheckExact(object)) return false;
  const Tensor& t = THPVariable_Unpack(object);
  if (!(t.is_cpu() || (t.is_cuda() && cudnn_ops().on_cuda)) || !is_plain(t)) return false;
  if (like && (t.scalar_type() != like->scalar_type() || t.device() != like->device())) return false;
  if (t._fw_grad(0).defined()) return false;
  list.push_back(t);
  return true;
}

bool has_sizes(const Tensor& t, at::IntArrayRef sizes) { return t.sizes() == sizes && t.numel() > 0; }

py::object wrap(const Tensor& t) { return py::reinterpret_steal<py::object>(THPVariable_Wrap(t)); }

}  // namespace

py::object eager(int64_t cell, const py::dict& parameters, const py::sequence& names, const py::handle& input,
                 const py::handle& hx, int64_t directions, bool batch_first, bool step) {
  const Ops& ops = ops_of(cell);
  if (at::impl::torch_function_mode_enabled() || at::hasCallbacks()) return py::none();

  Tensors inputs, states, weights;
  if (!take(input.ptr(), nullptr, inputs)) return py::none();
  Tensor x = inputs[0];
  const auto type = x.scalar_type();
  if (type != at::kFloat && type != at::kDouble && type != at::kBFloat16 && type != at::kHalf) return py::none();
  if (x.dim() != (step ? 2 : 3) || x.numel() == 0) return py::none();
  for (const py::handle& name : names) {
    PyObject* weight = PyDict_GetItem(parameters.ptr(), name.ptr());
    if (!weight) return py::none();
    if (weight != Py_None && !take(weight, &x, weights)) return py::none();
  }
  const size_t per_direction = weights.size() / directions;
  if (per_direction < 2 || per_direction > 5 || weights.size() % directions) return py::none();
  // An odd number: a projection, which only cells with c have, or in a step one bias without the other.
  if (per_direction % 2 && (step || ops.states == 1)) return py::none();
  if (weights[0].dim() != 2 || weights[1].dim() != 2) return py::none();
  const int64_t H = weights[0].size(0) / ops.gates, P = weights[1].size(1), B = x.size(step || batch_first ? 0 : 1);
  if (x.size(-1) != weights[0].size(1)) return py::none();

  if (hx.is_none()) {
    for (size_t k = 0; k < ops.states; ++k)
      states.push_back(step ? at::zeros({B, H}, x.options()) : at::zeros({directions, B, k ? H : P}, x.options()));
  } else if (ops.states == 1) {
    if (!take(hx.ptr(), &x, states)) return py::none();
  } else {
    if (!PyTuple_CheckExact(hx.ptr()) || PyTuple_GET_SIZE(hx.ptr()) != 2) return py::none();
    for (int k = 0; k < 2; ++k)
      if (!take(PyTuple_GET_ITEM(hx.ptr(), k), &x, states)) return py::none();
  }
  for (size_t k = 0; k < ops.states; ++k) {
    const int64_t width = k ? H : P;
    if (!(step ? has_sizes(states[k], {B, width}) : has_sizes(states[k], {directions, B, width}))) return py::none();
  }

  bool graph = false;
  if (c10::GradMode::is_enabled())
    for (const Tensors* list : {&inputs, &states, &weights})
      for (const Tensor& t : *list) graph = graph || t.requires_grad();
  Tensors out;
  {
    py::gil_scoped_release no_gil;
    if (batch_first) x = x.transpose(0, 1);
    if (batch_first && graph && x.is_cuda()) x = x.contiguous();  // once: forward and backward read it
    int64_t kind = step ? kStep : kLayer;
    if (!step && (x.is_cuda() || cudnn_ops().on_cpu) &&
        cudnn_ops().prefers.call(cell, x.is_cuda() ? x.get_device() : 0, type,
                                 {x.size(0), B, x.size(2), H, P, 1, directions}, false, graph))
      kind = kCudnn;
    if (graph) {
      out = EagerLayer::apply(cell, kind, x, at::TensorList(states), at::TensorList(weights));
    } else {
      at::AutoDispatchBelowADInplaceOrView guard;
      out = step ? run_forward(ops.only, one_step(x), one_step(states), weights)
            : kind == kCudnn
                ? cudnn_ops().only.redispatch(backend_keys(x), cell, directions, x, states, weights, std::nullopt)
                : run_forward(ops.only, x, states, weights);
      if (step) {
        out.erase(out.begin());
        drop_step(out, out.size());
      }
    }
    if (batch_first) out[0] = out[0].transpose(0, 1);
  }
  if (step) return ops.states == 1 ? wrap(out[0]) : py::make_tuple(wrap(out[0]), wrap(out[1]));
  return py::make_tuple(wrap(out[0]), ops.states == 1 ? wrap(out[1]) : py::make_tuple(wrap(out[1]), wrap(out[2])));
}

void set_definition(const py::object& callable) { definition = callable.inc_ref().ptr(); }

}  // namespace adl
