// THE list of cells. Schemas, kernels, fakes, autograd, tests and benches follow it.
#pragma once

#include "recurrent/cells/gru.h"
#include "recurrent/cells/lstm.h"
#include "recurrent/cells/rnn.h"

#define ADL_CELLS(_) \
  _(Lstm) _(Gru) _(RnnTanh) _(RnnRelu) _(RnnSigmoid) _(LstmGeneral) _(LstmCoupled) _(LstmNoForget) _(GruResetBefore)

namespace adl {

#define ADL_COUNT(Cell) +1
inline constexpr int kCells = 0 ADL_CELLS(ADL_COUNT);
#undef ADL_COUNT

// Place of a cell in the list.
template <class Cell>
constexpr int index_of() {
  int index = 0, found = -1;
#define ADL_MATCH(Other)                     \
  if (__is_same(Cell, Other)) found = index; \
  ++index;
  ADL_CELLS(ADL_MATCH)
#undef ADL_MATCH
  return found;
}

// One step of one unit without anything between its halves: h and c in at t-1, out at t; p [kPeepholes].
template <class Cell, class V>
ADL_CELL void cell_forward(V* pre, V& h, V& c, const V* p, const Choice& choice) {
  if constexpr (Cell::kHasC) {
    Cell::remember(pre, c, p, choice);
    h = Cell::emit(pre, c, choice);
  } else {
    Cell::forward(pre, h, choice);
  }
}

// dh: in dL/dh_t, out the part of dL/dh_{t-1} that bypasses W_hh. dc: in dL/dc_t but by h_t, out dL/dc_{t-1}.
template <class Cell, class V>
ADL_CELL void cell_backward(V* gates, V h_prev, V h, V c_prev, V c, V& dh, V& dc, const V* p, const Choice& choice) {
  if constexpr (Cell::kHasC) {
    dc = dc + Cell::emit_backward(gates, c, dh, choice);
    Cell::remember_backward(gates, c_prev, dc, p, choice);
    dh = V(0);
  } else {
    Cell::backward(gates, h_prev, h, dh, choice);
  }
}

// Gate columns of this many units lie side by side, so that one block product gives every gate of a unit.
constexpr int unit_block(int gates) { return gates == 1 ? 64 : gates == 2 ? 32 : 16; }

}  // namespace adl
