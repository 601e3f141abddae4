// LSTM, exactly torch.nn.LSTM (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000).
#pragma once

#include "cells/number.h"

namespace adl {

struct Lstm {
  static constexpr const char* kName = "lstm";
  static constexpr int kGates = 4;            // blocks of weight_ih and weight_hh: i f g o
  static constexpr int kPre = 4;              // pre-activations held per unit: i f g o
  static constexpr int kIh[] = {0, 1, 2, 3};  // the pre-activation that gate k of W_ih x + b_ih adds to
  static constexpr int kHh[] = {0, 1, 2, 3};  // the pre-activation that gate k of W_hh h + b_hh adds to
  static constexpr bool kHasC = true;
  static constexpr bool kSavesGates = true;

  // pre [kPre]: in the pre-activations, out the gates i f g o. h and c: in at t-1, out at t.
  template <class V>
  ADL_CELL void forward(V* pre, V& h, V& c) {
    const V i = sigmoid(pre[0]);
    const V f = sigmoid(pre[1]);
    const V g = tanh(pre[2]);
    const V o = sigmoid(pre[3]);
    c = f * c + i * g;
    h = o * tanh(c);
    pre[0] = i, pre[1] = f, pre[2] = g, pre[3] = o;
  }

  // gates [kPre]: in what forward left there, out the gradients of the pre-activations.
  // dh: in dL/dh_t, out the part of dL/dh_{t-1} that bypasses W_hh. dc: in dL/dc_t, out dL/dc_{t-1}.
  template <class V>
  ADL_CELL void backward(V* gates, V /*h_prev*/, V /*h*/, V c_prev, V c, V& dh, V& dc) {
    const V i = gates[0], f = gates[1], g = gates[2], o = gates[3];
    const V tanh_c = tanh(c);
    dc = dc + dh * o * (V(1) - tanh_c * tanh_c);
    gates[0] = dc * g * i * (V(1) - i);
    gates[1] = dc * c_prev * f * (V(1) - f);
    gates[2] = dc * i * (V(1) - g * g);
    gates[3] = dh * tanh_c * o * (V(1) - o);
    dc = dc * f;
    dh = V(0);
  }
};

}  // namespace adl
