// What all rows need alike of a block of units: biases, peepholes, gains of the layer norms.
#pragma once

#include "recurrent/cpu/plan.h"

namespace adl {
namespace {

template <class T>
struct UnitNumbers {
  using V = Simd<T>;

  const GateLayout& l;
  T* bias = nullptr;       // [J, pre, U]
  T* peepholes = nullptr;  // [J, peepholes, U], or null where the cell alone is asked for
  T* gains = nullptr;      // [J, 2, G, U] of W_ih x and W_hh h; only with layer norm, as what follows
  T* gains_c = nullptr;    // [J, 2, U] gain and shift

  void take(Arena& arena, int64_t J, bool normed, bool plain) {
    bias = arena.take<T>(J * l.row);
    peepholes = plain ? nullptr : arena.take<T>(J * l.peepholes * l.units);
    gains = arena.take<T>(normed ? J * 2 * l.columns : 0);
    gains_c = arena.take<T>(normed && l.has_c ? J * 2 * l.units : 0);
  }

  template <class Io>
  void pack(const Weights<Io>& w, int64_t j) {
    const int64_t U = l.units, first = j * U, n = min_of(U, w.H - first);
    T* b = bias + j * l.row;
    for (int k = 0; k < l.row; k += V::kLanes) V(0).store(b + k);
    for (int g = 0; g < l.gates; ++g) {
      for (int64_t u = 0; u < n && w.b_ih; ++u) {
        b[l.ih[g] * U + u] += convert<T>(w.b_ih[g * w.H + first + u]);
        b[l.hh[g] * U + u] += convert<T>(w.b_hh[g * w.H + first + u]);
      }
      if (w.ln_ih) {
        convert_row(w.ln_ih + g * w.H + first, n, gains + (j * 2 * l.gates + g) * U, U);
        convert_row(w.ln_hh + g * w.H + first, n, gains + ((j * 2 + 1) * l.gates + g) * U, U);
      }
    }
    for (int k = 0; k < l.peepholes && peepholes; ++k)
      convert_row(w.w_ch + k * w.H + first, w.w_ch ? n : 0, peepholes + (j * l.peepholes + k) * U, U);
    if (w.ln_c) {
      convert_row(w.ln_c + first, n, gains_c + j * 2 * U, U);
      convert_row(w.ln_c_shift + first, n, gains_c + (j * 2 + 1) * U, U);
    }
  }

  // Of gate g in the product of x (side 0) or of h.
  template <class Cell>
  V gain(int64_t j, int side, int g, int u) const {
    return V::load(gains + ((j * 2 + side) * Cell::kGates + g) * Layout<Cell>::kUnits + u);
  }

  // peep [kPeepholes]
  template <class Cell>
  void load_peepholes(int64_t j, int u, V* peep) const {
    constexpr int kPeepholes = Cell::kPeepholes;
    for (int k = 0; k < kPeepholes; ++k) peep[k] = V::load(peepholes + (j * kPeepholes + k) * Layout<Cell>::kUnits + u);
  }
};

}  // namespace
}  // namespace adl
