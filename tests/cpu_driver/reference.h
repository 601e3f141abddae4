// One direction of a layer in plain loops over double, from the cell's own two functions.
#pragma once

#include <cmath>
#include <vector>

#include "recurrent/cpu/plan.h"

struct Real {
  double v = 0;
  Real() = default;
  explicit Real(double value) : v(value) {}
  friend Real operator+(Real a, Real b) { return Real(a.v + b.v); }
  friend Real operator-(Real a, Real b) { return Real(a.v - b.v); }
  friend Real operator*(Real a, Real b) { return Real(a.v * b.v); }
  friend Real sigmoid(Real x) { return Real(1 / (1 + std::exp(-x.v))); }
  friend Real tanh(Real x) { return Real(std::tanh(x.v)); }
  friend Real relu(Real x) { return Real(x.v > 0 ? x.v : 0); }
  friend Real where_positive(Real x, Real value) { return Real(x.v > 0 ? value.v : 0); }
};

using Reals = std::vector<double>;

// The arrays of recurrent.h that go in and come out, all of them in double.
struct Arrays {
  Reals x, h_0, c_0, w_ih, w_hh, b_ih, b_hh, w_hr, dy, dh_n, dc_n;
  Reals y, h_n, c_n, dx, dh_0, dc_0, dw_ih, dw_hh, db_ih, db_hh, dw_hr;
};

template <class Cell>
void reference(const adl::Sequence& s, int64_t I, int64_t H, int64_t P, Arrays& a) {
  constexpr int kGates = Cell::kGates, kPre = Cell::kPre;
  const bool projected = !a.w_hr.empty();
  Reals gates(s.N * H * kPre), c(s.N * H), h_cell(s.N * H), h_before(s.N * P), c_before(s.N * H);
  const auto each_row = [&](bool back, auto visit) {
    for (int64_t k = 0; k < s.T; ++k) {
      const int64_t t = adl::step_at(s, back ? s.T - 1 - k : k);
      for (int64_t b = 0; b < s.batch_sizes[t]; ++b)
        visit(s.offsets[t] + b, b, adl::row_before(s, t, b), adl::last_row(s, b) == s.offsets[t] + b);
    }
  };

  each_row(false, [&](int64_t row, int64_t b, int64_t before, bool ends) {
    for (int64_t k = 0; k < P; ++k) h_before[row * P + k] = before < 0 ? a.h_0[b * P + k] : a.y[before * P + k];
    for (int64_t j = 0; j < H; ++j) {
      if (Cell::kHasC) c_before[row * H + j] = before < 0 ? a.c_0[b * H + j] : c[before * H + j];
      Real pre[kPre];
      for (int g = 0; g < kGates; ++g) {
        double &ih = pre[Cell::kIh[g]].v, &hh = pre[Cell::kHh[g]].v;
        const int64_t unit = g * H + j;
        ih += a.b_ih[unit];
        hh += a.b_hh[unit];
        for (int64_t k = 0; k < I; ++k) ih += a.w_ih[unit * I + k] * a.x[row * I + k];
        for (int64_t k = 0; k < P; ++k) hh += a.w_hh[unit * P + k] * h_before[row * P + k];
      }
      Real h(projected ? 0 : h_before[row * P + j]), next(c_before[row * H + j]);
      const Real none[3];
      adl::cell_forward<Cell, Real>(pre, h, next, none, {});
      for (int g = 0; g < kPre; ++g) gates[(row * H + j) * kPre + g] = pre[g].v;
      c[row * H + j] = next.v;
      h_cell[row * H + j] = h.v;
      if (!projected) a.y[row * P + j] = h.v;
      if (Cell::kHasC && ends) a.c_n[b * H + j] = next.v;
    }
    for (int64_t k = 0; projected && k < P; ++k)
      for (int64_t j = 0; j < H; ++j) a.y[row * P + k] += a.w_hr[k * H + j] * h_cell[row * H + j];
    for (int64_t k = 0; ends && k < P; ++k) a.h_n[b * P + k] = a.y[row * P + k];
  });

  Reals dh = a.dh_n, dc = a.dc_n;  // of each sequence, on the way to its first step
  dc.resize(s.B * H);
  each_row(true, [&](int64_t row, int64_t b, int64_t, bool) {
    Reals dh_row(dh.begin() + b * P, dh.begin() + (b + 1) * P);
    for (int64_t k = 0; k < P; ++k) dh_row[k] += a.dy[row * P + k], dh[b * P + k] = 0;
    for (int64_t j = 0; j < H; ++j) {
      double dh_cell = projected ? 0 : dh_row[j];
      for (int64_t k = 0; projected && k < P; ++k) {
        dh_cell += a.w_hr[k * H + j] * dh_row[k];
        a.dw_hr[k * H + j] += dh_row[k] * h_cell[row * H + j];
      }
      Real d[kPre], dhv(dh_cell), dcv(dc[b * H + j]);
      for (int g = 0; g < kPre; ++g) d[g].v = gates[(row * H + j) * kPre + g];
      const Real none[3];
      adl::cell_backward<Cell, Real>(d, Real(projected ? 0 : h_before[row * P + j]), Real(h_cell[row * H + j]),
                                     Real(c_before[row * H + j]), Real(c[row * H + j]), dhv, dcv, none, {});
      dc[b * H + j] = dcv.v;
      if (!projected) dh[b * P + j] += dhv.v;
      for (int g = 0; g < kGates; ++g) {
        const double d_ih = d[Cell::kIh[g]].v, d_hh = d[Cell::kHh[g]].v;
        const int64_t unit = g * H + j;
        a.db_ih[unit] += d_ih;
        a.db_hh[unit] += d_hh;
        for (int64_t k = 0; k < I; ++k) a.dx[row * I + k] += d_ih * a.w_ih[unit * I + k];
        for (int64_t k = 0; k < I; ++k) a.dw_ih[unit * I + k] += d_ih * a.x[row * I + k];
        for (int64_t k = 0; k < P; ++k) dh[b * P + k] += d_hh * a.w_hh[unit * P + k];
        for (int64_t k = 0; k < P; ++k) a.dw_hh[unit * P + k] += d_hh * h_before[row * P + k];
      }
    }
  });
  a.dh_0 = dh;
  if (Cell::kHasC) a.dc_0 = dc;
}
