// The kernels of one number type and instruction set, for the isa_*.cpp.
#pragma once

#include "recurrent/cpu/backward_phases.h"
#include "recurrent/cpu/forward_phases.h"
#include "recurrent/cpu/gradients.h"
#include "recurrent/cpu/kernels.h"

namespace adl {
namespace {

// A cell has loops of its own where it is all that is asked for; the others it may share.
template <class Cell, class Io, class Mul>
struct Entry {
  using Other = typename Shared<Cell>::Type;
  using ForwardWork = ForwardScan<Io, Mul>;
  using BackwardWork = Gradients<Io, Mul>;

  template <class Loops>
  static constexpr auto alone() {
    if constexpr (Cell::kPeepholes == 0)
      return Loops::cells;
    else
      return nullptr;
  }

  static constexpr ForwardCell<Io, Mul> kForward{GateLayout::of<Other>(), alone<ForwardLoops<Cell, Io, Mul>>(),
                                                 ForwardLoops<Other, Io, Mul>::cells_with_options,
                                                 ForwardPhases<Other, Io, Mul>::run, Shared<Cell>::chosen};
  static constexpr BackwardCell<Io, Mul> kBackward{GateLayout::of<Other>(), alone<BackwardLoops<Cell, Io, Mul>>(),
                                                   BackwardLoops<Other, Io, Mul>::cells_with_options,
                                                   BackwardPhases<Other, Io, Mul>::run, Shared<Cell>::chosen};

  static int64_t forward_scratch(const Forward<Io>& p) { return scratch_of<ForwardWork>(p, kForward); }
  static void forward(const Forward<Io>& p, void* scratch) { run<ForwardWork>(p, scratch, kForward); }
  static int64_t packed_weights(const Forward<Io>& p) { return ForwardWork(p, kForward).take_weights(nullptr); }
  static int64_t backward_scratch(const Backward<Io>& p) { return scratch_of<BackwardWork>(p, kBackward); }
  static void backward(const Backward<Io>& p, void* scratch) { run<BackwardWork>(p, scratch, kBackward); }
};

// Io: the numbers of the tensors; Mul: those that are multiplied.
template <class Cell, class Io, class Mul>
constexpr CellKernels<Io> entry() {
  using E = Entry<Cell, Io, Mul>;
  return {E::forward_scratch, E::forward, E::packed_weights, E::backward_scratch, E::backward};
}
template <class Io, class Mul>
constexpr Kernels<Io> table() {
#define ADL_ENTRY(Cell) entry<Cell, Io, Mul>(),
  return {{ADL_CELLS(ADL_ENTRY)}};
#undef ADL_ENTRY
}

}  // namespace
}  // namespace adl
