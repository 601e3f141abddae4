// A call of a module in eager mode: from the parameters straight to the graph's node.
//
// A call of one step is over in a microsecond; the way through Python, views and the op's boxed arguments takes many
// times that. Here plain tensors skip all of it. Whatever is out of the ordinary (wrong arguments, a mode, a transform,
// a device without kernels) gets None, and takes the usual way, which says what is wrong.
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/SavedTensorHooks.h>
#include <ATen/ops/zeros.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include "recurrent/autograd.h"
#include "recurrent/python.h"

namespace adl {
namespace {

namespace py = pybind11;

// Strided numbers in memory that no mode, transform or other extension has a say in: only what is known here counts, so
// that ZeroTensors, negated and conjugated views, fake and functional tensors, and kinds to come take the usual way.
bool is_plain(const Tensor& t) {
  using enum c10::DispatchKey;
  static constexpr c10::DispatchKeySet kCpu({CPU, ADInplaceOrView, AutogradCPU, AutocastCPU});
  static constexpr c10::DispatchKeySet kCuda({CUDA, ADInplaceOrView, AutogradCUDA, AutocastCUDA});
  if (!(t.is_cuda() ? kCuda : kCpu).has_all(t.key_set())) return false;
  const c10::impl::LocalDispatchKeySet local = c10::impl::tls_local_dispatch_key_set();
  const auto key = ((t.key_set() | local.included_) - local.excluded_).highestPriorityTypeId();
  return key == ADInplaceOrView || key == (t.is_cuda() ? CUDA : CPU) ||
         key == (t.is_cuda() ? AutogradCUDA : AutogradCPU);
}

// Appends a tensor if it is plain; whether it was.
bool take(PyObject* object, Tensors& list) {
  if (!THPVariable_CheckExact(object)) return false;
  const Tensor& t = THPVariable_Unpack(object);
  if (!(t.is_cpu() || (t.is_cuda() && has_cudnn_ops(t))) || !is_plain(t) || t._fw_grad(0).defined()) return false;
  list.push_back(t);
  return true;
}

bool take_like(PyObject* object, const Tensor& x, Tensors& list) {
  return take(object, list) && list.back().scalar_type() == x.scalar_type() && list.back().device() == x.device();
}

py::object wrap(const Tensor& t) { return py::reinterpret_steal<py::object>(THPVariable_Wrap(t)); }

}  // namespace

py::object eager(int64_t index, const py::dict& parameters, const py::sequence& names, const py::handle& input,
                 const py::handle& hx, int64_t directions, bool batch_first, bool step,
                 const py::handle& given_options) {
  const CellFacts& cell = cell_at(index);
  const int64_t count = cell.states();
  if (at::impl::torch_function_mode_enabled() || at::hasCallbacks()) return py::none();
  // A checkpoint's second forward may run under a mode that the first did not have. A step keeps other views than the
  // usual way, and both have to keep the same.
  if (step && !at::SavedTensorDefaultHooks::get_tls_state().stack.empty()) return py::none();

  Tensors inputs, states, weights;
  if (!take(input.ptr(), inputs)) return py::none();
  Tensor x = inputs[0];
  const auto type = x.scalar_type();
  if (type != at::kFloat && type != at::kDouble && type != at::kBFloat16 && type != at::kHalf) return py::none();
  if (x.dim() != (step ? 2 : 3) || x.numel() == 0) return py::none();
  for (const py::handle& name : names) {
    PyObject* weight = PyDict_GetItem(parameters.ptr(), name.ptr());
    if (!weight) return py::none();
    if (weight == Py_None && step) continue;  // a cell without biases
    if (!take_like(weight, x, weights)) return py::none();
  }
  if (weights.size() < 2 || weights[0].dim() != 2 || weights[1].dim() != 2) return py::none();
  if (step && weights.size() % 2) return py::none();  // one bias without the other
  const int64_t H = weights[0].size(0) / cell.gates, P = weights[1].size(1), B = x.size(step || batch_first ? 0 : 1);

  if (hx.is_none()) {
    for (int64_t k = 0; k < count; ++k)
      states.push_back(step ? at::zeros({B, H}, x.options()) : at::zeros({directions, B, k ? H : P}, x.options()));
  } else if (count == 1) {
    if (!take_like(hx.ptr(), x, states)) return py::none();
  } else {
    if (!PyTuple_CheckExact(hx.ptr()) || PyTuple_GET_SIZE(hx.ptr()) != 2) return py::none();
    for (int k = 0; k < 2; ++k)
      if (!take_like(PyTuple_GET_ITEM(hx.ptr(), k), x, states)) return py::none();
  }
  for (const Tensor& state : states)
    if (state.dim() != (step ? 2 : 3) || state.size(0) != (step ? B : directions)) return py::none();
  static const LayerOptions kPlain;
  std::optional<LayerOptions> asked;
  if (!given_options.is_none() && !(asked = from_python(given_options, take))) return py::none();
  const LayerOptions& options = asked ? *asked : kPlain;

  Tensors out;
  try {
    py::gil_scoped_release no_gil;
    if (batch_first) {
      x = x.transpose(0, 1);
      if (x.is_cuda()) x = x.contiguous();  // once: forward and backward read it
      if (options.reset) asked->reset = options.reset->transpose(0, 1);
    }
    const Kind kind = step                                                           ? Kind::kStep
                      : prefers_cudnn(cell, directions, x, states, weights, options) ? Kind::kCudnn
                                                                                     : Kind::kLayer;
    out = run(kind, cell, directions, x, states, weights, options);
    for (size_t k = 0; k < out.size() && batch_first; ++k)
      if (k == 0 || int64_t(k) > count) out[k] = out[k].transpose(0, 1);
  } catch (const c10::Error&) {
    return py::none();
  }
  if (step) return count == 1 ? wrap(out[0]) : py::make_tuple(wrap(out[0]), wrap(out[1]));
  const py::object last = count == 1 ? wrap(out[1]) : py::make_tuple(wrap(out[1]), wrap(out[2]));
  if (options.all_states) return py::make_tuple(wrap(out[0]), last, wrap(out.back()));
  return py::make_tuple(wrap(out[0]), last);
}

}  // namespace adl
