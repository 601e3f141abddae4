// What is known of a cell at run time: only kernels are compiled for each cell.
#pragma once

#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdint>

#include "recurrent/cells/cells.h"

namespace adl {

struct CellFacts {
  int index;  // place in the list
  const char* name;
  int gates, pre;      // blocks of weight_ih; values held per unit
  int peepholes;       // gates that can see c; cells with some leave the choice of their activations
  int unit_block;      // units of a block of what the CPU saves
  bool has_c;          // hx is (h_0, c_0)
  bool saves_gates;    // even where the output tells what the cell made
  bool resets_before;  // see cells/gru.h
  int ih[4], hh[4];    // which pre-activation each gate of a product adds to

  int64_t states() const { return has_c ? 2 : 1; }
};

template <class Cell>
constexpr CellFacts facts_of() {
  CellFacts f{index_of<Cell>(),
              Cell::kName,
              Cell::kGates,
              Cell::kPre,
              Cell::kPeepholes,
              unit_block(Cell::kGates),
              Cell::kHasC,
              Cell::kSavesGates,
              Cell::kResetsBefore,
              {},
              {}};
  std::copy_n(Cell::kIh, Cell::kGates, f.ih);
  std::copy_n(Cell::kHh, Cell::kGates, f.hh);
  return f;
}

#define ADL_FACTS_OF(Cell) facts_of<Cell>(),
inline constexpr CellFacts kCellFacts[kCells] = {ADL_CELLS(ADL_FACTS_OF)};
#undef ADL_FACTS_OF

inline const CellFacts& cell_at(int64_t index) {
  TORCH_CHECK(index >= 0 && index < kCells, "adl_kernels: a cell must be between 0 and ", kCells - 1, ", got ", index);
  return kCellFacts[index];
}

}  // namespace adl
