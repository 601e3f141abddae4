// The module _C: importing it registers the ops; it also answers facts about the build and the cells.
#include <pybind11/pybind11.h>

#include "cells/cells.h"
#include "cpu/kernels.h"
#include "ops/eager.h"

namespace py = pybind11;

namespace {

template <class Cell>
py::dict facts() {
  using namespace py::literals;
  return py::dict("name"_a = Cell::kName, "gates"_a = int(Cell::kGates), "pre_activations"_a = int(Cell::kPre),
                  "unit_block"_a = adl::unit_block(Cell::kGates), "has_c"_a = bool(Cell::kHasC),
                  "saves_gates"_a = bool(Cell::kSavesGates), "peepholes"_a = int(Cell::kPeepholes),
                  "chooses"_a = Cell::kPeepholes > 0);
}

py::list cells() {
  py::list list;
#define ADL_FACTS(Cell) list.append(facts<adl::Cell>());
  ADL_CELLS(ADL_FACTS)
#undef ADL_FACTS
  return list;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("eager", &adl::eager, "One call of a plain module straight to its kernel, or None: see csrc/ops/eager.cpp.");
  m.def("set_definition", &adl::set_definition, "What eager calls for gradients that are batched by vmap.");
  m.def("cells", &cells, "The cells of this build, with the facts that fix the shapes of their ops.");
  m.def("isa", &adl::instruction_set, "The CPU instruction set in use: default, avx2, avx512 or avx512bf16.");
  m.def("fma_gflops", &adl::fma_gflops, py::arg("threads"), py::arg("seconds"),
        py::call_guard<py::gil_scoped_release>(),
        "Measured peak of float32 fused multiply-adds in GFLOP/s: the ceiling of any product.");
  m.def("bf16_gflops", &adl::bf16_gflops, py::arg("threads"), py::arg("seconds"),
        py::call_guard<py::gil_scoped_release>(), "The same for operands in bfloat16.");
  m.def("read_gbytes", &adl::read_gbytes, py::arg("bytes"), py::arg("threads"), py::arg("seconds"),
        py::call_guard<py::gil_scoped_release>(),
        "Measured rate in GB/s at which all threads read, each a buffer of so many bytes again and again.");
}
