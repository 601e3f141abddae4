// Measured ceilings of this processor: multiply-adds in float and in bfloat16, reading a buffer of so many bytes per
// thread.
#pragma once

#include "common/cpu/isa.h"

namespace adl {

double fma_gflops(int threads, double seconds);
double bf16_gflops(int threads, double seconds);
double read_gbytes(int64_t bytes, int threads, double seconds);

}  // namespace adl

ADL_FOR_EACH_ISA(
    // Does independent fused multiply-adds; returns how many floating-point operations that were.
    template <class Mul> double multiply_add(int64_t rounds);
    // Reads a buffer of floats; returns some of their sum, so that nothing can be left out.
    double read(const void* from, int64_t bytes);)
