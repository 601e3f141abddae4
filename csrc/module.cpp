// The module _C: importing it registers the ops; it also answers facts about the build and the cells.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <string>
#include <vector>

#include "common/checksum.h"
#include "common/cpu/ceilings.h"
#include "recurrent/cuda/tiers.h"
#include "recurrent/python.h"

namespace py = pybind11;

namespace {

py::list cells() {
  using namespace py::literals;
  py::list list;
  for (const adl::CellFacts& f : adl::kCellFacts)
    list.append(py::dict("name"_a = f.name, "gates"_a = f.gates, "pre_activations"_a = f.pre,
                         "unit_block"_a = f.unit_block, "has_c"_a = f.has_c, "saves_gates"_a = f.saves_gates,
                         "peepholes"_a = f.peepholes, "chooses"_a = f.peepholes > 0));
  return list;
}

py::dict cuda_plan(int gates, int pre_activations, int64_t hidden_size, int64_t sequences, int64_t steps,
                   int directions, int layers, int64_t input_size, const std::string& dtype, bool backward,
                   bool training, bool cudnn, const std::string& tier, int multiprocessors, size_t shared_bytes,
                   int clusters_of_8, int clusters_of_16) {
  using namespace py::literals;
  const bool half = dtype == "bf16" || dtype == "f16", exact = dtype == "f32" || dtype == "f64";
  if (!half && !exact && dtype != "tf32")
    throw py::value_error("dtype must be bf16, f16, tf32, f32 or f64, not " + dtype);
  adl::Scanned s{steps,
                 sequences,
                 hidden_size,
                 directions,
                 gates,
                 pre_activations,
                 half    ? adl::kHalfTensorCores
                 : exact ? adl::kFloatFma
                         : adl::kTf32TensorCores,
                 backward,
                 dtype != "f64",
                 dtype != "f64",
                 {cudnn, dtype == "f16", dtype == "f64", false, false, layers, input_size}};
  const adl::Gpu gpu{multiprocessors, shared_bytes, clusters_of_8, clusters_of_16};
  adl::Plan p = adl::cudnn_is_faster(s, training || backward, gpu) ? adl::cudnn_plan(s) : adl::choose(s, gpu);
  if (!tier.empty()) {
    const auto found = std::find(std::begin(adl::kTierNames), std::end(adl::kTierNames), tier);
    if (found == std::end(adl::kTierNames)) throw py::value_error("there is no tier " + tier);
    p = adl::plan_of(adl::Tier(found - std::begin(adl::kTierNames)), s, gpu);
  }
  const bool serves = p.microseconds < adl::kNever;
  return py::dict("tier"_a = adl::kTierNames[int(p.tier)], "serves"_a = serves, "microseconds"_a = p.microseconds,
                  "start"_a = p.start, "blocks"_a = p.blocks, "rows"_a = p.team.rows, "units"_a = p.team.units);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("eager", &adl::eager,
        "One call of a plain module straight to its kernel, or None: see csrc/recurrent/eager.cpp.");
  m.def("set_batched_grad_fallback", &adl::set_batched_grad_fallback,
        "What computes the gradients of a layer where those of its outputs are batched by vmap.");
  m.def("prefers_cudnn",
        py::overload_cast<int64_t, int64_t, const at::Tensor&, const adl::Tensors&, const adl::Tensors&,
                          const adl::MaybeTensor&, const py::object&>(&adl::prefers_cudnn),
        "Whether cuDNN computes such layers in this dtype.");
  m.def("options", &adl::list_options,
        "What a call of a layer may ask for: (name, type in the ops' schemas, default, what it is), in order.");
  m.attr("tiers") = py::cast(std::vector<std::string>(std::begin(adl::kTierNames), std::end(adl::kTierNames)));
  m.def("cells", &cells, "The cells of this build, with the facts that fix the shapes of their ops.");
  m.def(
      "checksum", py::overload_cast<const std::vector<at::Tensor>&>(&adl::checksum_of),
      py::call_guard<py::gil_scoped_release>(),
      "Of the numbers, types, sizes and strides of tensors on the CPU, for one read of them: csrc/common/checksum.h.");
  m.def("isa", &adl::instruction_set, "The CPU instruction set in use: default, avx2, avx512 or avx512bf16.");
  m.def("cuda_plan", &cuda_plan, py::kw_only(), py::arg("gates"), py::arg("pre_activations"), py::arg("hidden_size"),
        py::arg("sequences"), py::arg("steps"), py::arg("directions"), py::arg("layers") = 1, py::arg("input_size") = 0,
        py::arg("dtype"), py::arg("backward"), py::arg("training") = false, py::arg("cudnn") = true,
        py::arg("tier") = "", py::arg("multiprocessors") = 132, py::arg("shared_bytes") = 227 << 10,
        py::arg("clusters_of_8") = 15, py::arg("clusters_of_16") = 7,
        "Which CUDA kernels would scan a plain layer on such a GPU, by default an H100, and the predicted microseconds "
        "of a step, and of the start of a scan: csrc/recurrent/cuda/tiers.h. dtype: bf16, f16, tf32, f32 or f64. "
        "backward: the "
        "scan of the gradients, else the one before it, in training or not. cudnn: whether torch has the layer and "
        "would call cuDNN for it. tier: asks for that one, which may not serve the layer.");
  m.def("fma_gflops", &adl::fma_gflops, py::arg("threads"), py::arg("seconds"),
        py::call_guard<py::gil_scoped_release>(),
        "Measured peak of float32 fused multiply-adds in GFLOP/s: the ceiling of any product.");
  m.def("bf16_gflops", &adl::bf16_gflops, py::arg("threads"), py::arg("seconds"),
        py::call_guard<py::gil_scoped_release>(), "The same for operands in bfloat16.");
  m.def("read_gbytes", &adl::read_gbytes, py::arg("bytes"), py::arg("threads"), py::arg("seconds"),
        py::call_guard<py::gil_scoped_release>(),
        "Measured rate in GB/s at which all threads read, each a buffer of so many bytes again and again.");
}
