// What all rows need alike of a block of units: biases, peepholes, gains of the layer norms.
#pragma once

#include "recurrent/cpu/plan.h"

namespace adl {
namespace {

template <class Cell, class T>
struct UnitNumbers {
  using L = Layout<Cell>;
  using V = Simd<T>;
  static constexpr int kUnits = L::kUnits, kRow = L::kRow, kGates = Cell::kGates;

  T* bias;       // [J, pre, U]
  T* peepholes;  // [J, peepholes, U]
  T* gains;      // [J, 2, G, U] of W_ih x and W_hh h; only with layer norm, as what follows
  T* gains_c;    // [J, 2, U] gain and shift

  void take(Arena& arena, int64_t J, bool normed) {
    bias = arena.take<T>(J * kRow);
    peepholes = arena.take<T>(J * Cell::kPeepholes * kUnits);
    gains = arena.take<T>(normed ? J * 2 * L::kColumns : 0);
    gains_c = arena.take<T>(normed && Cell::kHasC ? J * 2 * kUnits : 0);
  }

  template <class Io>
  void pack(const Weights<Io>& w, int64_t j) {
    const int64_t first = j * kUnits, n = min_of(kUnits, w.H - first);
    T* b = bias + j * kRow;
    std::memset(b, 0, kRow * sizeof(T));
    for (int g = 0; g < kGates; ++g) {
      for (int64_t u = 0; u < n && w.b_ih; ++u) {
        b[Cell::kIh[g] * kUnits + u] += convert<T>(w.b_ih[g * w.H + first + u]);
        b[Cell::kHh[g] * kUnits + u] += convert<T>(w.b_hh[g * w.H + first + u]);
      }
      if (w.ln_ih) {
        convert_row(w.ln_ih + g * w.H + first, n, gains + (j * 2 * kGates + g) * kUnits, kUnits);
        convert_row(w.ln_hh + g * w.H + first, n, gains + ((j * 2 + 1) * kGates + g) * kUnits, kUnits);
      }
    }
    for (int k = 0; k < Cell::kPeepholes; ++k)
      convert_row(w.w_ch + k * w.H + first, w.w_ch ? n : 0, peepholes + (j * Cell::kPeepholes + k) * kUnits, kUnits);
    if (w.ln_c) {
      convert_row(w.ln_c + first, n, gains_c + j * 2 * kUnits, kUnits);
      convert_row(w.ln_c_shift + first, n, gains_c + (j * 2 + 1) * kUnits, kUnits);
    }
  }

  // Of gate g in the product of x (side 0) or of h.
  V gain(int64_t j, int side, int g, int u) const {
    return V::load(gains + ((j * 2 + side) * kGates + g) * kUnits + u);
  }

  void load_peepholes(int64_t j, int u, V* peep) const {
    for (int k = 0; k < Cell::kPeepholes; ++k) peep[k] = V::load(peepholes + (j * Cell::kPeepholes + k) * kUnits + u);
  }
};

}  // namespace
}  // namespace adl
