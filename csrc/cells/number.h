// What a cell may ask of the number type it is instantiated with.
//
// A cell is a template over a number type V (a SIMD register, on a GPU one number) that has + - * and,
// found by argument-dependent lookup, sigmoid(V), tanh(V), relu(V) and where_positive(V, V).
#pragma once

#ifdef __CUDACC__
#define ADL_CELL static __device__ __forceinline__
#else
#define ADL_CELL static inline __attribute__((always_inline))
#endif
