// Elman RNN (Elman 1990): with tanh or ReLU exactly torch.nn.RNN, and with the logistic sigmoid. Its output is all that
// backward needs.
#pragma once

#include "recurrent/cells/number.h"

namespace adl {

template <Squash kSquash>
struct Rnn {
  static constexpr int kGates = 1;
  static constexpr int kPre = 1;
  static constexpr int kIh[] = {0};
  static constexpr int kHh[] = {0};
  static constexpr int kPeepholes = 0;
  static constexpr bool kHasC = false;
  static constexpr bool kSavesGates = false;  // unless h_t is not what the cell made
  static constexpr bool kResetsBefore = false;

  template <class V>
  ADL_CELL void forward(V* pre, V& h) {
    h = pre[0] = squash(kSquash, pre[0]);
  }

  template <class V>
  ADL_CELL void backward(V* gates, V /*h_prev*/, V h, V& dh) {
    if constexpr (kSquash == Squash::kRelu)
      gates[0] = where_positive(h, dh);
    else
      gates[0] = dh * slope(kSquash, h);
    dh = V(0);
  }
};

struct RnnTanh : Rnn<Squash::kTanh> {
  static constexpr const char* kName = "rnn_tanh";
};
struct RnnRelu : Rnn<Squash::kRelu> {
  static constexpr const char* kName = "rnn_relu";
};
struct RnnSigmoid : Rnn<Squash::kSigmoid> {
  static constexpr const char* kName = "rnn_sigmoid";
};

}  // namespace adl
