// The only order of a layer's weights, of what the ops return, and of what they keep for backward.
#pragma once

#include <string>

#include "recurrent/cell_facts.h"
#include "recurrent/options.h"

namespace adl {

// Where each weight of a direction stands in its list; -1 for what there is not.
struct WeightPlaces {
  int w_ih = 0, w_hh = 1, b_ih = -1, b_hh = -1, w_hr = -1, w_ch = -1, ln_ih = -1, ln_hh = -1, ln_c = -1, b_ln_c = -1;
  int count = 2;

  // Of a direction with so many weights; `count` is another where these cannot be.
  static WeightPlaces of(const CellFacts& cell, const LayerOptions& options, int64_t given) {
    const int norms = options.layer_norm ? (cell.has_c ? 4 : 2) : 0;
    const int64_t basic = given - options.peephole - norms;
    WeightPlaces p;
    const auto next = [&](int& place) { place = p.count++; };
    if (basic >= 4) next(p.b_ih), next(p.b_hh);
    if (basic % 2) next(p.w_hr);
    if (options.peephole) next(p.w_ch);
    if (norms) next(p.ln_ih), next(p.ln_hh);
    if (norms == 4) next(p.ln_c), next(p.b_ln_c);
    return p;
  }

  static std::string names(const CellFacts& cell, const LayerOptions& options) {
    std::string all = "weight_ih, weight_hh [, bias_ih, bias_hh] [, weight_hr]";
    if (options.peephole) all += ", weight_ch";
    if (options.layer_norm) all += ", weight_ln_ih, weight_ln_hh";
    if (options.layer_norm && cell.has_c) all += ", weight_ln_c, bias_ln_c";
    return all;
  }
};

// y and the final states, then c of every step where it is asked for; or, undefined for zeros, their gradients.
struct Outputs {
  Tensor y, h_n, c_n, all_c;

  static size_t count(const CellFacts& cell, const LayerOptions& options) {
    return 1 + cell.states() + options.all_states;
  }
  static Outputs of(const CellFacts& cell, const LayerOptions& options, at::TensorList list) {
    Outputs out{list[0], list[1], {}, {}};
    if (cell.has_c) out.c_n = list[2];
    if (options.all_states) out.all_c = list[3];
    return out;
  }
  Tensors list() const {
    Tensors out{y, h_n};
    if (c_n.defined()) out.push_back(c_n);
    if (all_c.defined()) out.push_back(all_c);
    return out;
  }
  // h_n and c_n.
  const Tensor& state(int64_t k) const { return k == 0 ? h_n : c_n; }
};

// What forward keeps for backward, and its sizes; empty where it keeps no such thing.
struct SavedSizes {
  std::vector<int64_t> gates, c, h_cell;
};

struct Saved {
  Tensor gates, c, h_cell;

  // From tensor(sizes), called for those that there are, in their order.
  template <class F>
  static Saved of(const SavedSizes& sizes, F tensor) {
    Saved out;
    if (!sizes.gates.empty()) out.gates = tensor(sizes.gates);
    if (!sizes.c.empty()) out.c = tensor(sizes.c);
    if (!sizes.h_cell.empty()) out.h_cell = tensor(sizes.h_cell);
    return out;
  }
  Tensors list() const {
    Tensors out;
    for (const Tensor* t : {&gates, &c, &h_cell})
      if (t->defined()) out.push_back(*t);
    return out;
  }
};

// What the backward op returns: dx, dh_0 [, dc_0], then one gradient per weight.
struct Gradients {
  Tensor dx, dh_0, dc_0;
  Tensors dweights;

  Tensors list() const {
    Tensors out{dx, dh_0};
    if (dc_0.defined()) out.push_back(dc_0);
    out.insert(out.end(), dweights.begin(), dweights.end());
    return out;
  }
  const Tensor& state(int64_t k) const { return k == 0 ? dh_0 : dc_0; }
};

}  // namespace adl
