// Elman RNN (Elman 1990): with tanh or ReLU exactly torch.nn.RNN, and with the logistic sigmoid. Its output is all that
// backward needs.
#pragma once

#include "recurrent/cells/number.h"

namespace adl {

// With the function that is chosen at run time.
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
  ADL_CELL void forward(V* pre, V& h, const Choice& choice) {
    h = pre[0] = squash(choice.cell, pre[0]);
  }

  template <class V>
  ADL_CELL void backward(V* gates, V /*h_prev*/, V h, V& dh, const Choice& choice) {
    gates[0] = choice.cell == Squash::kRelu ? where_positive(h, dh) : dh * slope(choice.cell, h);
    dh = V(0);
  }
};

template <Squash kSquash>
struct RnnOf : Rnn {
  using Shared = Rnn;
  ADL_CELL Choice chosen(const Choice&) { return {.cell = kSquash}; }

  template <class V>
  ADL_CELL void forward(V* pre, V& h, const Choice& choice) {
    Rnn::forward(pre, h, chosen(choice));
  }

  template <class V>
  ADL_CELL void backward(V* gates, V h_prev, V h, V& dh, const Choice& choice) {
    Rnn::backward(gates, h_prev, h, dh, chosen(choice));
  }
};

struct RnnTanh : RnnOf<Squash::kTanh> {
  static constexpr const char* kName = "rnn_tanh";
};
struct RnnRelu : RnnOf<Squash::kRelu> {
  static constexpr const char* kName = "rnn_relu";
};
struct RnnSigmoid : RnnOf<Squash::kSigmoid> {
  static constexpr const char* kName = "rnn_sigmoid";
};

}  // namespace adl
