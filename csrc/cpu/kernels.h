// What every instruction set offers, and the choice among them at run time.
#pragma once

#include "cells/cells.h"
#include "recurrent.h"

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
  // Does independent fused multiply-adds; returns how many floating-point operations that were.
  double (*multiply_add)(int64_t rounds);
};

template <class T>
const Kernels<T>& kernels();  // of the instruction set chosen

const char* instruction_set();                   // "default", "avx2" or "avx512"
double fma_gflops(int threads, double seconds);  // measured peak in float, GFLOP/s

#define ADL_DECLARE(isa)       \
  namespace isa {              \
  template <class T>           \
  const Kernels<T>& kernels(); \
  }
ADL_DECLARE(isa_default)
ADL_DECLARE(isa_avx2)
ADL_DECLARE(isa_avx512)
#undef ADL_DECLARE

}  // namespace adl
