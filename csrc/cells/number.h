// What a cell may ask of the number type it is instantiated with.
//
// A cell is a template over a number type V (a SIMD register, later a device float) that has + - * and,
// found by argument-dependent lookup, sigmoid(V), tanh(V), relu(V) and where_positive(V, V).
#pragma once

#define ADL_CELL static inline __attribute__((always_inline))
