// The schemas of all ops, cell by cell.
//
//   hx           h_0 [D, B, P] and, for cells that have one, c_0 [D, B, H]; D directions
//   weights      per direction: weight_ih, weight_hh, then bias_ih, bias_hh and weight_hr where there are any
//   batch_sizes  of a PackedSequence, int64 on the CPU: x is [N, I] and y is [N, D * P]; else [T, B, ...]
//   needs        whether the gradients of x and of each weight are wanted; the others come back empty
//
//   <cell>           y, h_n [, c_n]; keeps nothing
//   <cell>_forward   y, h_n [, c_n], and what <cell>_backward wants as `saved`
//   <cell>_backward  dx, dh_0 [, dc_0], then one gradient per weight
#include <torch/library.h>

#include <string>

#include "cells/cells.h"

namespace {

void define(torch::Library& m, const std::string& cell) {
  const std::string inputs = "(Tensor x, Tensor[] hx, Tensor[] weights, Tensor? batch_sizes=None) -> Tensor[]";
  const std::string gradients =
      "(Tensor?[] grads, Tensor x, Tensor[] hx, Tensor[] weights, Tensor? batch_sizes, Tensor y, Tensor[] saved, "
      "bool[] needs) -> Tensor[]";
  m.def((cell + inputs).c_str());
  m.def((cell + "_forward" + inputs).c_str());
  m.def((cell + "_backward" + gradients).c_str());
}

}  // namespace

TORCH_LIBRARY(adl_kernels, m) {
#define ADL_DEFINE(Cell) define(m, adl::Cell::kName);
  ADL_CELLS(ADL_DEFINE)
#undef ADL_DEFINE
}
