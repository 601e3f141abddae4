// THE list of cells. Schemas, kernels, fakes, autograd, tests and benches follow it.
#pragma once

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"

#define ADL_CELLS(_) _(Lstm) _(Gru) _(RnnTanh) _(RnnRelu)

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

// Gate columns of this many units lie side by side, so that one block product gives every gate of a unit.
constexpr int unit_block(int gates) { return gates == 1 ? 64 : gates == 2 ? 32 : 16; }

constexpr long blocks(long size, long block) { return (size + block - 1) / block; }

}  // namespace adl
