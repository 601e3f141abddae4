// GRU (Cho et al. 2014): exactly torch.nn.GRU, which resets after the product, and the form that resets before it.
#pragma once

#include "recurrent/cells/number.h"

namespace adl {

struct GruGates {
  static constexpr int kGates = 3;  // blocks of weight_ih and weight_hh: r z n
  static constexpr int kPeepholes = 0;
  static constexpr bool kHasC = false;
  static constexpr bool kSavesGates = true;
};

// n = tanh(W_n x + b_in + r (U_n h + b_hn))
struct Gru : GruGates {
  static constexpr const char* kName = "gru";
  static constexpr int kPre = 4;           // pre-activations held per unit: n_x r z n_h
  static constexpr int kIh[] = {1, 2, 0};  // r z n of the input go to r z n_x
  static constexpr int kHh[] = {1, 2, 3};  // r z n of the state go to r z n_h
  static constexpr bool kResetsBefore = false;

  // pre [kPre]: in the pre-activations, out n r z n_h with n_h = U_n h + b_hn, what r multiplies. h: in at t-1, out at
  // t.
  template <class V>
  ADL_CELL void forward(V* pre, V& h, const Choice&) {
    const V r = sigmoid(pre[1]);
    const V z = sigmoid(pre[2]);
    const V n = tanh(pre[0] + r * pre[3]);
    h = n + z * (h - n);
    pre[0] = n, pre[1] = r, pre[2] = z;
  }

  // gates [kPre]: in what forward left there, out the gradients of the pre-activations.
  // dh: in dL/dh_t, out the part of dL/dh_{t-1} that bypasses W_hh.
  template <class V>
  ADL_CELL void backward(V* gates, V h_prev, V /*h*/, V& dh, const Choice&) {
    const V n = gates[0], r = gates[1], z = gates[2], n_h = gates[3];
    const V dn = dh * (V(1) - z) * (V(1) - n * n);
    gates[0] = dn;
    gates[1] = dn * n_h * r * (V(1) - r);
    gates[2] = dh * (h_prev - n) * z * (V(1) - z);
    gates[3] = dn * r;
    dh = dh * z;
  }
};

// n = tanh(W_n x + b_in + U_n (r h) + b_hn): the product of the last gate waits for the first.
struct GruResetBefore : GruGates {
  static constexpr const char* kName = "gru_reset_before";
  static constexpr int kPre = 3;  // r z n
  static constexpr int kIh[] = {0, 1, 2}, kHh[] = {0, 1, 2};
  static constexpr bool kResetsBefore = true;

  // Between the products: returns r, which stays in pre[0].
  template <class V>
  ADL_CELL V reset(V* pre) {
    return pre[0] = sigmoid(pre[0]);
  }

  template <class V>
  ADL_CELL void forward(V* pre, V& h, const Choice&) {
    const V z = sigmoid(pre[1]);
    const V n = tanh(pre[2]);
    h = n + z * (h - n);
    pre[1] = z, pre[2] = n;
  }

  // Leaves r in gates[0].
  template <class V>
  ADL_CELL void backward(V* gates, V h_prev, V /*h*/, V& dh, const Choice&) {
    const V z = gates[1], n = gates[2];
    gates[1] = dh * (h_prev - n) * z * (V(1) - z);
    gates[2] = dh * (V(1) - z) * (V(1) - n * n);
    dh = dh * z;
  }

  // Of r h: d its gradient, h what r multiplied. Returns the part of dL/dh that came this way.
  template <class V>
  ADL_CELL V reset_backward(V* gates, V h, V d) {
    const V r = gates[0];
    gates[0] = d * h * r * (V(1) - r);
    return d * r;
  }
};

}  // namespace adl
