// A short cut for calls of modules in eager mode: from the parameters straight to the kernel.
//
// A call of one step is over in a microsecond; the way through Python, views, the op's boxed arguments and an
// autograd function in Python takes thirty. Here plain tensors on the CPU skip all of it. Whatever is out of the
// ordinary (wrong arguments, a mode, a transform, another device) gets None, and takes the usual way.
#include "ops/eager.h"

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

#include "cells/cells.h"
#include "ops/signature.h"

namespace adl {
namespace {

namespace py = pybind11;
using ForwardOp = Signature::Forward;
using BackwardOp = Signature::Backward;

// Nothing but torch.nn's own.
const MaybeTensor kNone;
const Asked kPlain{kNone, kNone, kNone, kNone, kNone, kNone, {}, "tanh", "tanh", false, false, false, 0};

struct Ops {
  const char* name;
  int64_t gates;
  size_t states;
  c10::TypedOperatorHandle<ForwardOp> only, saving;
  c10::TypedOperatorHandle<BackwardOp> backward;

  template <class Op>
  static c10::TypedOperatorHandle<Op> find(const std::string& name) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(("adl_kernels::" + name).c_str(), "").typed<Op>();
  }
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

const c10::DispatchKeySet kCpu(c10::DispatchKey::CPU);

template <class Op>
Tensors run_forward(const Op& op, const Tensor& x, at::TensorList hx, at::TensorList weights) {
  return spread(kPlain, [&](const auto&... extras) { return op.redispatch(kCpu, x, hx, weights, extras...); });
}

// No mode, transform or other extension has a say in what happens to this tensor.
bool is_plain(const Tensor& t) {
  const c10::impl::LocalDispatchKeySet local = c10::impl::tls_local_dispatch_key_set();
  const auto key = ((t.key_set() | local.included_) - local.excluded_).highestPriorityTypeId();
  return key == c10::DispatchKey::AutogradCPU || key == c10::DispatchKey::ADInplaceOrView ||
         key == c10::DispatchKey::CPU;
}

// The same tensor with a first dimension of 1, for use below autograd.
Tensor one_step(const Tensor& t) {
  if (!t.is_contiguous()) return t.unsqueeze(0);
  Tensor out = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(t.storage()), kCpu, t.dtype());
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

// Either a layer: y, h_n [, c_n] from x [T, B, I], states [D, B, ...]. Or one step: the new states from 2-D tensors.
struct EagerLayer : torch::autograd::Function<EagerLayer> {
  static Tensors forward(torch::autograd::AutogradContext* ctx, int64_t cell, bool step, const Tensor& x,
                         at::TensorList hx, at::TensorList weights) {
    const Ops& ops = ops_of(cell);
    Tensors out =
        step ? run_forward(ops.saving, one_step(x), one_step(hx), weights) : run_forward(ops.saving, x, hx, weights);
    Tensors kept{out[0], x};
    kept.insert(kept.end(), hx.begin(), hx.end());
    kept.insert(kept.end(), weights.begin(), weights.end());
    kept.insert(kept.end(), out.begin() + 1 + hx.size(), out.end());
    ctx->save_for_backward(std::move(kept));
    ctx->saved_data["call"] = cell << 32 | int64_t(weights.size()) << 1 | int64_t(step);
    out.resize(1 + hx.size());
    ctx->set_materialize_grads(false);
    if (!step) return out;
    out.erase(out.begin());
    drop_step(out, out.size());
    return out;
  }

  static Tensors backward(torch::autograd::AutogradContext* ctx, Tensors grads) {
    const int64_t call = ctx->saved_data["call"].toInt();
    const Ops& ops = ops_of(call >> 32);
    const bool step = call & 1;
    const size_t weights_count = (call & 0xffffffff) >> 1, inputs = 1 + ops.states + weights_count;
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
      if (graph) {  // which has a derivative of its own
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
          return ops.backward.redispatch(kCpu, given, one_step(x), states, weights, extras..., y, saved, wanted);
        });
        if (needs[0]) drop_step(found, 1);
        for (size_t k = 1; k < 1 + ops.states; ++k)
          found[k].unsafeGetTensorImpl()->set_sizes_contiguous({found[k].size(1), found[k].size(2)});
      } else {
        found = spread(kPlain, [&](const auto&... extras) {
          return ops.backward.redispatch(kCpu, given, x, hx, weights, extras..., y, saved, wanted);
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
  if (!is_plain(t) || (like && t.scalar_type() != like->scalar_type())) return false;
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
    if (graph) {
      out = EagerLayer::apply(cell, step, x, at::TensorList(states), at::TensorList(weights));
    } else {
      at::AutoDispatchBelowADInplaceOrView guard;
      out = step ? run_forward(ops.only, one_step(x), one_step(states), weights)
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
