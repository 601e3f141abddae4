// GRU with the reset gate applied after the product, exactly torch.nn.GRU (Cho et al. 2014, variant v1).
#pragma once

#include "cells/number.h"

namespace adl {

struct Gru {
  static constexpr const char* kName = "gru";
  static constexpr int kGates = 3;         // blocks of weight_ih and weight_hh: r z n
  static constexpr int kPre = 4;           // pre-activations held per unit: n_x r z n_h
  static constexpr int kIh[] = {1, 2, 0};  // r z n of the input go to r z n_x
  static constexpr int kHh[] = {1, 2, 3};  // r z n of the state go to r z n_h
  static constexpr bool kHasC = false;
  static constexpr bool kSavesGates = true;

  // Leaves n r z n_h in pre; n_h = U_n h + b_hn is what r multiplies.
  template <class V>
  ADL_CELL void forward(V* pre, V& h, V& /*c*/) {
    const V r = sigmoid(pre[1]);
    const V z = sigmoid(pre[2]);
    const V n = tanh(pre[0] + r * pre[3]);
    h = n + z * (h - n);
    pre[0] = n, pre[1] = r, pre[2] = z;
  }

  template <class V>
  ADL_CELL void backward(V* gates, V h_prev, V /*h*/, V /*c_prev*/, V /*c*/, V& dh, V& /*dc*/) {
    const V n = gates[0], r = gates[1], z = gates[2], n_h = gates[3];
    const V dn = dh * (V(1) - z) * (V(1) - n * n);
    gates[0] = dn;
    gates[1] = dn * n_h * r * (V(1) - r);
    gates[2] = dh * (h_prev - n) * z * (V(1) - z);
    gates[3] = dn * r;
    dh = dh * z;
  }
};

}  // namespace adl
