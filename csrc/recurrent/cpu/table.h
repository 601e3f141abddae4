// The kernels of one instruction set and number type, for the isa_*.cpp.
#pragma once

#include "recurrent/cpu/forward.h"
#include "recurrent/cpu/gradients.h"
#include "recurrent/cpu/kernels.h"

namespace adl {
namespace {

template <class Cell, class Io, class Mul>
constexpr CellKernels<Io> entry() {
  using Scan = ForwardScan<Cell, Io, Mul>;
  using Bptt = Gradients<Cell, Io, Mul>;
  return {scratch_of<Scan, Forward<Io>>, run<Scan, Forward<Io>>, scratch_of<Bptt, Backward<Io>>,
          run<Bptt, Backward<Io>>};
}

// Io: the numbers of the tensors; Mul: those that are multiplied.
template <class Io, class Mul>
constexpr Kernels<Io> table() {
#define ADL_ENTRY(Cell) entry<Cell, Io, Mul>(),
  return {{ADL_CELLS(ADL_ENTRY)}};
#undef ADL_ENTRY
}

}  // namespace
}  // namespace adl
