// One direction of a recurrent layer, scanned in double and without any tricks: what the kernels must agree with.
//
// Rows and layouts are those of cuda/recurrent.h. The cells are written again, as their papers have them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "recurrent/cells/cells.h"

namespace {

using Doubles = std::vector<double>;

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// ---- a unit: pre [kPre] in, what is kept for backward out; h and c in at t - 1, out at t

inline void forward(adl::Lstm, double* pre, double& h, double& c) {
  for (int k : {0, 1, 3}) pre[k] = sigmoid(pre[k]);
  pre[2] = std::tanh(pre[2]);
  c = pre[1] * c + pre[0] * pre[2];
  h = pre[3] * std::tanh(c);
}

inline void forward(adl::Gru, double* pre, double& h, double&) {
  const double r = sigmoid(pre[1]), z = sigmoid(pre[2]), n = std::tanh(pre[0] + r * pre[3]);
  h = (1 - z) * n + z * h;
  pre[0] = n, pre[1] = r, pre[2] = z;
}

inline void forward(adl::RnnTanh, double* pre, double& h, double&) { h = std::tanh(pre[0]); }

// ---- and backward: `kept` in, the gradients of pre out; dh and dc in at t, out at t - 1 but for W_hh

struct States {
  double h_prev, c_prev, h, c;
};

inline void backward(adl::Lstm, double* kept, const States& s, double& dh, double& dc) {
  const double i = kept[0], f = kept[1], g = kept[2], o = kept[3], tanh_c = std::tanh(s.c);
  const double all = dc + dh * o * (1 - tanh_c * tanh_c);
  kept[0] = all * g * i * (1 - i);
  kept[1] = all * s.c_prev * f * (1 - f);
  kept[2] = all * i * (1 - g * g);
  kept[3] = dh * tanh_c * o * (1 - o);
  dc = all * f;
  dh = 0;
}

inline void backward(adl::Gru, double* kept, const States& s, double& dh, double&) {
  const double n = kept[0], r = kept[1], z = kept[2], u_n = kept[3];
  const double dn = dh * (1 - z) * (1 - n * n);
  kept[0] = dn;
  kept[1] = dn * u_n * r * (1 - r);
  kept[2] = dh * (s.h_prev - n) * z * (1 - z);
  kept[3] = dn * r;
  dh *= z;
}

inline void backward(adl::RnnTanh, double* kept, const States& s, double& dh, double&) {
  kept[0] = dh * (1 - s.h * s.h);
  dh = 0;
}

// ---- the scan

struct Sizes {
  int64_t T, B, H;
  std::vector<int64_t> counts;  // sequences of each step; empty: always B

  int64_t count(int64_t t) const { return counts.empty() ? B : counts[t]; }
  std::vector<int64_t> offsets() const {
    std::vector<int64_t> rows(1, 0);
    for (int64_t t = 0; t < T; ++t) rows.push_back(rows.back() + count(t));
    return rows;
  }
  int64_t N() const { return offsets().back(); }
};

inline Doubles uniform(int64_t n, unsigned& seed, double largest) {
  Doubles v;
  for (int64_t i = 0; i < n; ++i) {
    seed = seed * 1664525u + 1013904223u;
    v.push_back(largest * (static_cast<double>(seed >> 8) / (1 << 23) - 1));
  }
  return v;
}

template <class Cell>
struct Reference {
  static constexpr int G = Cell::kGates, P = Cell::kPre;
  const Sizes s;
  const bool reverse;
  double (*const round)(double);  // to a number such as the kernels can have
  const std::vector<int64_t> offsets;
  Doubles w_hh, b_ih, b_hh, gx, h_0, c_0, dy, dh_n, dc_n;  // given
  Doubles y, gates, c, h_n, c_n;                           // of forward; rounded, since backward reads them
  Doubles dgates, dh_0, dc_0;

  Reference(const Sizes& sizes, bool reverse, double (*round)(double), unsigned seed)
      : s(sizes), reverse(reverse), round(round), offsets(sizes.offsets()) {
    const int64_t rows = offsets.back(), H = s.H, state = s.B * H;
    const double w = 2 / std::sqrt(static_cast<double>(H));
    const auto numbers = [&](int64_t n, double largest) { return rounded(uniform(n, seed, largest)); };
    w_hh = numbers(G * H * H, w), b_ih = numbers(G * H, 1), b_hh = numbers(G * H, 1), gx = numbers(rows * G * H, 2);
    h_0 = numbers(state, 1), c_0 = numbers(Cell::kHasC ? state : 0, 1);
    dy = numbers(rows * H, 1), dh_n = numbers(state, 1), dc_n = numbers(c_0.size(), 1);
    scan();
    for (Doubles* kept : {&y, &gates, &c}) *kept = rounded(*kept);
    scan_back();
  }

  int64_t step(int64_t i) const { return reverse ? s.T - 1 - i : i; }
  // Rows of the steps begin .. end - 1 of the scan: the first, and that after the last.
  std::pair<int64_t, int64_t> rows(int64_t begin, int64_t end) const {
    const auto [first, last] = std::minmax({step(begin), step(end - 1)});
    return {offsets[first], offsets[last + 1]};
  }

 private:
  Doubles rounded(Doubles v) const {
    for (double& x : v) x = round(x);
    return v;
  }

  void scan() {
    const int64_t H = s.H;
    y.resize(s.N() * H), gates.resize(s.N() * P * H), c.resize(Cell::kHasC ? s.N() * H : 0);
    h_n = h_0, c_n = c_0;
    for (int64_t i = 0; i < s.T; ++i)
      for (int64_t b = 0; b < s.count(step(i)); ++b) {
        const int64_t row = offsets[step(i)] + b;
        const Doubles h_prev(h_n.begin() + b * H, h_n.begin() + (b + 1) * H);
        for (int64_t u = 0; u < H; ++u) forward_unit(h_prev, row, b, u);
      }
  }

  void forward_unit(const Doubles& h_prev, int64_t row, int64_t b, int64_t u) {
    const int64_t H = s.H;
    double pre[P] = {}, none = 0;
    for (int k = 0; k < G; ++k) {
      pre[Cell::kIh[k]] += gx[(row * G + k) * H + u] + b_ih[k * H + u];
      double gh = b_hh[k * H + u];
      for (int64_t j = 0; j < H; ++j) gh += w_hh[(k * H + u) * H + j] * h_prev[j];
      pre[Cell::kHh[k]] += gh;
    }
    forward(Cell(), pre, h_n[b * H + u], Cell::kHasC ? c_n[b * H + u] : none);
    y[row * H + u] = h_n[b * H + u];
    for (int p = 0; p < P; ++p) gates[(row * P + p) * H + u] = pre[p];
    if (Cell::kHasC) c[row * H + u] = c_n[b * H + u];
  }

  void scan_back() {
    const int64_t H = s.H;
    dgates.resize(gates.size());
    dh_0 = dh_n, dc_0 = dc_n;
    for (int64_t i = s.T - 1; i >= 0; --i)
      for (int64_t b = 0; b < s.count(step(i)); ++b) {
        const int64_t row = offsets[step(i)] + b;
        const bool begun = i > 0 && b < s.count(step(i - 1));
        for (int64_t u = 0; u < H; ++u) backward_unit(row, begun ? offsets[step(i - 1)] + b : -1, b, u);
        for (int k = 0; k < G; ++k)
          for (int64_t j = 0; j < H; ++j) {
            const double d = dgates[(row * P + Cell::kHh[k]) * H + j];
            for (int64_t u = 0; u < H; ++u) dh_0[b * H + u] += w_hh[(k * H + j) * H + u] * d;
          }
      }
  }

  // `prev`: the row of the step before; -1 for none.
  void backward_unit(int64_t row, int64_t prev, int64_t b, int64_t u) {
    const int64_t H = s.H;
    const auto at = [&](const Doubles& rows, const Doubles& first) {
      return prev < 0 ? first[b * H + u] : rows[prev * H + u];
    };
    States states{at(y, h_0), 0, y[row * H + u], 0};
    if (Cell::kHasC) states.c_prev = at(c, c_0), states.c = c[row * H + u];
    double kept[P], none = 0, &dh = dh_0[b * H + u];
    for (int p = 0; p < P; ++p) kept[p] = gates[(row * P + p) * H + u];
    dh += dy[row * H + u];
    backward(Cell(), kept, states, dh, Cell::kHasC ? dc_0[b * H + u] : none);
    for (int p = 0; p < P; ++p) dgates[(row * P + p) * H + u] = kept[p];
  }
};

}  // namespace
