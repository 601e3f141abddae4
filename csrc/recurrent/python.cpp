#include "recurrent/python.h"

#include <torch/csrc/utils/pybind.h>

#include <string>

#include "recurrent/autograd.h"

namespace adl {
namespace {

namespace py = pybind11;

py::object cast(const MaybeTensor& t) { return t ? py::cast(*t) : py::none(); }
py::object cast(const std::vector<double>& numbers) {
  py::tuple out(numbers.size());
  for (size_t k = 0; k < numbers.size(); ++k) out[k] = numbers[k];
  return out;
}
py::object cast(const std::string& text) { return py::str(text); }
py::object cast(bool value) { return py::bool_(value); }
py::object cast(int64_t value) { return py::int_(value); }

using Take = bool (*)(PyObject*, Tensors&);

bool read(PyObject* from, MaybeTensor& to, Take take) {
  if (from == Py_None) return true;
  Tensors found;
  if (!take(from, found)) return false;
  to = std::move(found[0]);
  return true;
}
bool read(PyObject* from, option::Floats::Member& to, Take) {
  if (!PyTuple_Check(from)) return false;
  for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(from); ++k) {
    PyObject* number = PyTuple_GET_ITEM(from, k);
    if (!PyFloat_Check(number)) return false;
    to.push_back(PyFloat_AS_DOUBLE(number));
  }
  return true;
}
bool read(PyObject* from, option::String::Member& to, Take) {
  if (!PyUnicode_Check(from)) return false;
  Py_ssize_t size = 0;
  const char* text = PyUnicode_AsUTF8AndSize(from, &size);
  if (!text) throw py::error_already_set();
  to.assign(text, size);
  return true;
}
bool read(PyObject* from, bool& to, Take) {
  to = from == Py_True;
  return PyBool_Check(from);
}
bool read(PyObject* from, int64_t& to, Take) {
  if (!PyLong_CheckExact(from)) return false;
  int overflow = 0;
  to = PyLong_AsLongLongAndOverflow(from, &overflow);
  return !overflow;
}

PyObject* fallback = nullptr;

}  // namespace

py::list list_options() {
  const LayerOptions none;
  py::list all;
#define ADL_ROW(Kind, name, fallback, doc) \
  all.append(py::make_tuple(#name, option::Kind::kSchema, cast(none.name), doc));
  ADL_LAYER_OPTIONS(ADL_ROW)
#undef ADL_ROW
  return all;
}

py::tuple to_python(const LayerOptions& options) {
#define ADL_CAST(Kind, name, fallback, doc) out.append(cast(options.name));
  py::list out;
  ADL_LAYER_OPTIONS(ADL_CAST)
#undef ADL_CAST
  return py::tuple(out);
}

std::optional<LayerOptions> from_python(const py::handle& tuple, Take take) {
  LayerOptions options;
  Py_ssize_t k = 0;
  const Py_ssize_t size = PyTuple_Check(tuple.ptr()) ? PyTuple_GET_SIZE(tuple.ptr()) : 0;
  bool fits = true;
  options.each([&](const char*, auto& option, const auto&) {
    fits = fits && k < size && read(PyTuple_GET_ITEM(tuple.ptr(), k), option, take);
    ++k;
  });
  if (!fits || k != size) return std::nullopt;
  return options;
}

Tensors batched_gradients(const CellFacts& cell, int64_t directions, const Tensors& inputs, const LayerOptions& options,
                          const Tensors& grads, const std::vector<bool>& needs) {
  py::gil_scoped_acquire gil;
  const auto list = [](const Tensors& tensors) {
    py::list out;
    for (const Tensor& t : tensors) out.append(t.defined() ? py::cast(t) : py::none());
    return out;
  };
  py::list wanted;
  for (bool need : needs) wanted.append(py::bool_(need));
  const py::list found =
      py::handle(fallback)(cell.name, directions, list(inputs), to_python(options), list(grads), wanted);
  Tensors out;
  for (const py::handle& each : found) out.push_back(each.is_none() ? Tensor() : each.cast<Tensor>());
  return out;
}

bool prefers_cudnn(int64_t cell, int64_t directions, const Tensor& x, const Tensors& hx, const Tensors& weights,
                   const MaybeTensor& batch_sizes, const py::object& dtype) {
  LayerOptions options;
  options.batch_sizes = batch_sizes;
  return prefers_cudnn(cell_at(cell), directions, x, hx, weights, options, dtype.cast<at::ScalarType>());
}

void set_batched_grad_fallback(const py::object& callable) { fallback = callable.inc_ref().ptr(); }

}  // namespace adl
