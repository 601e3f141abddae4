// The recurrent kernels as the ops see them.
#pragma once

#include "common/cpu/isa.h"
#include "recurrent/cells/cells.h"
#include "recurrent/params.h"

namespace adl {

template <class T>
struct CellKernels {
  int64_t (*forward_scratch)(const Forward<T>&);  // bytes
  void (*forward)(const Forward<T>&, void* scratch);
  int64_t (*backward_scratch)(const Backward<T>&);  // bytes
  void (*backward)(const Backward<T>&, void* scratch);
};

template <class T>
struct Kernels {
  CellKernels<T> cells[kCells];
};

// For tensors of float, double or BFloat16, of the instruction set in use.
template <class T>
const Kernels<T>& kernels();

// For tensors of float whose products round their operands to bfloat16; null where that would not be faster.
const Kernels<float>* rounding_kernels();

}  // namespace adl

ADL_FOR_EACH_ISA(template <class T> const Kernels<T>& kernels(); const Kernels<float>& rounding();)
