// The schemas of the recurrent ops, cell by cell.
//
//   hx           h_0 [D, B, P] and, for cells that have one, c_0 [D, B, H]; D directions
//   weights      per direction: weight_ih, weight_hh, then those of WeightPlaces that there are
//   options      those of options.h
//   needs        whether the gradients of x and of each weight are wanted; the others come back empty
//
//   <cell>           y, h_n [, c_n] [, all c]; keeps nothing
//   <cell>_forward   the same, and what <cell>_backward wants as `saved`
//   <cell>_backward  dx, dh_0 [, dc_0], then one gradient per weight
//
//   cudnn            layers that torch.nn has too, by torch's cuDNN layer: y, h_n [, c_n]; hx and weights of all layers
//                    as torch.nn has them, `cell` its place in the list of cells
//   cudnn_forward    the same, and what cudnn_backward wants as `reserve`
//   cudnn_backward   as <cell>_backward
//   prefers_cudnn    whether layers of such sizes (T, B, I, H, P, layers, directions) are computed so
#include <torch/library.h>

#include <string>

#include "recurrent/cell_facts.h"
#include "recurrent/options.h"

TORCH_LIBRARY(adl_kernels, m) {
  const std::string inputs = "Tensor x, Tensor[] hx, Tensor[] weights";
  const adl::LayerOptions options;
  std::string optional, required;
#define ADL_SCHEMA(Kind, name, fallback, doc)                                 \
  required += std::string(", ") + adl::option::Kind::kSchema + " " #name;     \
  optional += std::string(", ") + adl::option::Kind::kSchema + " " #name "="; \
  optional += adl::option::Kind::text(options.name);
  ADL_LAYER_OPTIONS(ADL_SCHEMA)
#undef ADL_SCHEMA
  for (const adl::CellFacts& cell : adl::kCellFacts) {
    const std::string name = cell.name;
    m.def((name + "(" + inputs + optional + ") -> Tensor[]").c_str());
    m.def((name + "_forward(" + inputs + optional + ") -> Tensor[]").c_str());
    m.def((name + "_backward(Tensor?[] grads, " + inputs + required +
           ", Tensor y, Tensor[] saved, bool[] needs) -> Tensor[]")
              .c_str());
  }
  const std::string layers = inputs + ", Tensor? batch_sizes";
  m.def(("cudnn(int cell, int directions, " + layers + ") -> Tensor[]").c_str());
  m.def(("cudnn_forward(int cell, int directions, " + layers + ") -> Tensor[]").c_str());
  m.def(("cudnn_backward(int cell, int directions, Tensor?[] grads, " + layers +
         ", Tensor y, Tensor reserve, bool[] needs) -> Tensor[]")
            .c_str());
  m.def("prefers_cudnn(int cell, int device, ScalarType dtype, int[] sizes, bool packed, bool training) -> bool");
}
