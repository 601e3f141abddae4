// What the recurrent layers exchange with Python.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>

#include "recurrent/cell_facts.h"
#include "recurrent/options.h"

namespace adl {

// The list of options: tuples (name, type in a schema, default, what it is).
pybind11::list list_options();

// As the Python tuple of the options, and from it. `take` appends a tensor to its list if it may be used, and says
// whether it may; nothing comes back where one may not, or a value is of another type.
pybind11::tuple to_python(const LayerOptions& options);
std::optional<LayerOptions> from_python(const pybind11::handle& tuple, bool (*take)(PyObject*, Tensors&));

// The gradients of inputs (x, hx, weights) by the layer's definition; directions: 0 for one layer, else of a stack.
Tensors batched_gradients(const CellFacts& cell, int64_t directions, const Tensors& inputs, const LayerOptions& options,
                          const Tensors& grads, const std::vector<bool>& needs);
// What computes them: callable(cell, directions, inputs, options, grads, needs).
void set_batched_grad_fallback(const pybind11::object& callable);

// A module's call straight from its parameters, or None where the usual way has to be taken, see eager.cpp.
pybind11::object eager(int64_t cell, const pybind11::dict& parameters, const pybind11::sequence& names,
                       const pybind11::handle& input, const pybind11::handle& hx, int64_t directions, bool batch_first,
                       bool step, const pybind11::handle& options);

// Whether cuDNN computes such layers in this dtype.
bool prefers_cudnn(int64_t cell, int64_t directions, const Tensor& x, const Tensors& hx, const Tensors& weights,
                   const MaybeTensor& batch_sizes, const pybind11::object& dtype);

}  // namespace adl
