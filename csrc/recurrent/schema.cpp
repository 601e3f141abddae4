// The schemas of all ops, cell by cell.
//
//   hx           h_0 [D, B, P] and, for cells that have one, c_0 [D, B, H]; D directions
//   weights      per direction: weight_ih, weight_hh, then bias_ih, bias_hh and weight_hr where there are any
//   batch_sizes  of a PackedSequence, int64 on the CPU: x is [N, I] and y is [N, D * P]; else [T, B, ...]
//   needs        whether the gradients of x and of each weight are wanted; the others come back empty
//
// Without them a layer is torch.nn's; rows are those of x, [T, B] or [N]:
//   lengths         steps of each sequence of a padded batch, [B] int64, on the CPU or with x: past its end y is zero
//   reset           [T, B] bool: true where a new sequence begins; in both directions the state starts from zero there
//   recurrent_mask  [D, B, P] multiplies h_{t-1} where W_hh does
//   zoneout_h, _c   uint8 [D, rows.., P] and for cells with c [D, rows.., H]: where 1, the state stays as it was
//   zoneout         instead of these masks, the share of h (and of c) that stays
//   cell_activation, hidden_activation   of lstm_general, lstm_coupled, lstm_no_forget: tanh, sigmoid, relu, identity
//   peephole        of the same: weights hold weight_ch [gates that see c, H] for i [f] o, after weight_hr
//   layer_norm      weights end with gains [G H] for W_ih x and W_hh h and, for cells with c, gain and bias [H] for c
//   all_states      an output more: c of every step, [rows.., D H]
//   bptt_steps      gradients do not pass from a step that is a multiple of it to the step before; 0: they all pass
//
//   cudnn            layers that torch.nn has too, by torch's cuDNN layer: y, h_n [, c_n]; hx and weights of all layers
//                    as torch.nn has them, `cell` its place in csrc/recurrent/cells/cells.h
//   cudnn_forward    the same, and what cudnn_backward wants as `reserve`
//   cudnn_backward   as <cell>_backward
//   prefers_cudnn    whether layers of such sizes (T, B, I, H, P, layers, directions) are computed so
//
//   <cell>           y, h_n [, c_n] [, all c]; keeps nothing
//   <cell>_forward   the same, and what <cell>_backward wants as `saved`
//   <cell>_backward  dx, dh_0 [, dc_0], then one gradient per weight
#include <torch/library.h>

#include <regex>
#include <string>

#include "recurrent/cells/cells.h"

namespace {

void define(torch::Library& m, const std::string& cell) {
  const std::string inputs = "Tensor x, Tensor[] hx, Tensor[] weights, ";
  const std::string extras =
      "Tensor? batch_sizes=None, Tensor? lengths=None, Tensor? reset=None, Tensor? recurrent_mask=None, "
      "Tensor? zoneout_h=None, Tensor? zoneout_c=None, float[] zoneout=[], str cell_activation='tanh', str "
      "hidden_activation='tanh', "
      "bool peephole=False, bool layer_norm=False, bool all_states=False, int bptt_steps=0";
  const std::string required = std::regex_replace(extras, std::regex("=[^,]+"), "");
  m.def((cell + "(" + inputs + extras + ") -> Tensor[]").c_str());
  m.def((cell + "_forward(" + inputs + extras + ") -> Tensor[]").c_str());
  m.def((cell + "_backward(Tensor?[] grads, " + inputs + required +
         ", Tensor y, Tensor[] saved, bool[] needs) -> Tensor[]")
            .c_str());
}

}  // namespace

TORCH_LIBRARY(adl_kernels, m) {
#define ADL_DEFINE(Cell) define(m, adl::Cell::kName);
  ADL_CELLS(ADL_DEFINE)
#undef ADL_DEFINE
  const std::string layers = "Tensor x, Tensor[] hx, Tensor[] weights, Tensor? batch_sizes";
  m.def(("cudnn(int cell, int directions, " + layers + ") -> Tensor[]").c_str());
  m.def(("cudnn_forward(int cell, int directions, " + layers + ") -> Tensor[]").c_str());
  m.def(("cudnn_backward(int cell, int directions, Tensor?[] grads, " + layers +
         ", Tensor y, Tensor reserve, bool[] needs) -> Tensor[]")
            .c_str());
  m.def("prefers_cudnn(int cell, int device, ScalarType dtype, int[] sizes, bool packed, bool training) -> bool");
}
