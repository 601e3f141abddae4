// The short cut for modules in eager mode, see eager.cpp.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace adl {

// One layer or, with `step`, one step of a cell (its place in the list); its weights by name from a module's
// parameters. What the module returns, or None where the usual way has to be taken.
pybind11::object eager(int64_t cell, const pybind11::dict& parameters, const pybind11::sequence& names,
                       const pybind11::handle& input, const pybind11::handle& hx, int64_t directions, bool batch_first,
                       bool step);

// definition(cell, inputs, gradients, needs): the gradients of inputs, for gradients that are batched by vmap.
void set_definition(const pybind11::object& callable);

}  // namespace adl
