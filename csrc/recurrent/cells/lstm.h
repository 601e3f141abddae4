// The LSTM (Hochreiter & Schmidhuber 1997) and its relatives. A cell with a state c comes in two halves, each with its
// way back: `remember` makes c_t, `emit` makes h_t from it; a layer norm may stand between them.
#pragma once

#include "recurrent/cells/number.h"

namespace adl {

enum class Forget { kLearned, kCoupled, kNone, kChosen };

template <int gates>
struct LstmGates;
template <>
struct LstmGates<4> {  // i f g o
  static constexpr int kIh[] = {0, 1, 2, 3}, kHh[] = {0, 1, 2, 3};
};
template <>
struct LstmGates<3> {  // i g o
  static constexpr int kIh[] = {0, 1, 2}, kHh[] = {0, 1, 2};
};

// kForget: a gate of its own (Gers et al. 2000), 1 - i, none, or which of the last two is chosen at run time.
// kChooses: whether there are peepholes (Gers & Schmidhuber 2000) and squashing functions other than tanh.
template <Forget kForget, bool kChooses>
struct LstmOf : LstmGates<kForget == Forget::kLearned ? 4 : 3> {
  static constexpr bool kLearned = kForget == Forget::kLearned;
  static constexpr int kGates = kLearned ? 4 : 3;  // blocks of weight_ih and weight_hh
  static constexpr int kPre = kGates;              // pre-activations held per unit; kIh and kHh (above): which of them
                                                   // gate k of W_ih x + b_ih and of W_hh h + b_hh adds to
  static constexpr int kPeepholes = kChooses ? kGates - 1 : 0;  // gates that see c: i f o
  static constexpr bool kHasC = true;
  static constexpr bool kSavesGates = true;
  static constexpr bool kResetsBefore = false;
  static constexpr int I = 0, F = 1, G = kLearned ? 2 : 1, O = G + 1;

  ADL_CELL bool coupled(const Choice& choice) {
    return kForget == Forget::kCoupled || (kForget == Forget::kChosen && choice.coupled);
  }

  // c_t from the gates and c_{t-1}.
  template <class V>
  ADL_CELL V candidate(const V* gates, V c, const Choice& choice) {
    if constexpr (kLearned)
      return gates[F] * c + gates[I] * gates[G];
    else
      return c + gates[I] * (coupled(choice) ? gates[G] - c : gates[G]);
  }

  // pre [kPre]: in the pre-activations, out the gates. c: in at t-1, out at t. p [kPeepholes].
  template <class V>
  ADL_CELL void remember(V* pre, V& c, const V* p, const Choice& choice) {
    if constexpr (kChooses) {
      pre[I] = pre[I] + p[0] * c;
      if constexpr (kLearned) pre[F] = pre[F] + p[1] * c;
    }
    pre[I] = sigmoid(pre[I]);
    if constexpr (kLearned) pre[F] = sigmoid(pre[F]);
    pre[G] = kChooses ? squash(choice.cell, pre[G]) : tanh(pre[G]);
    c = candidate(pre, c, choice);
    if constexpr (kChooses) pre[O] = pre[O] + p[kPeepholes - 1] * c;
    pre[O] = sigmoid(pre[O]);
  }

  // h_t from the gates and s, which is c_t or made from it.
  template <class V>
  ADL_CELL V emit(const V* gates, V s, const Choice& choice) {
    return gates[O] * (kChooses ? squash(choice.hidden, s) : tanh(s));
  }

  // Returns dL/ds; gates[O]: out the gradient of its pre-activation.
  template <class V>
  ADL_CELL V emit_backward(V* gates, V s, V dh, const Choice& choice) {
    const V o = gates[O], value = kChooses ? squash(choice.hidden, s) : tanh(s);
    gates[O] = dh * value * o * (V(1) - o);
    return dh * o * slope(kChooses ? choice.hidden : Squash::kTanh, value);
  }

  // gates [kPre]: in what the other three left there, out the gradients of the pre-activations.
  // dc: in dL/dc_t, out dL/dc_{t-1}.
  template <class V>
  ADL_CELL void remember_backward(V* gates, V c_prev, V& dc, const V* p, const Choice& choice) {
    const V i = gates[I], g = gates[G];
    if constexpr (kChooses) dc = dc + p[kPeepholes - 1] * gates[O];
    gates[I] = dc * (coupled(choice) ? g - c_prev : g) * i * (V(1) - i);
    gates[G] = dc * i * slope(kChooses ? choice.cell : Squash::kTanh, g);
    if constexpr (kLearned) {
      const V f = gates[F];
      gates[F] = dc * c_prev * f * (V(1) - f);
      dc = dc * f;
    } else if (coupled(choice)) {
      dc = dc * (V(1) - i);
    }
    if constexpr (kChooses) dc = dc + p[0] * gates[I];
    if constexpr (kChooses && kLearned) dc = dc + p[1] * gates[F];
  }
};

struct LstmGeneral;
struct Lstm : LstmOf<Forget::kLearned, false> {  // exactly torch.nn.LSTM
  static constexpr const char* kName = "lstm";
  using Shared = LstmGeneral;
  ADL_CELL Choice chosen(const Choice&) { return {}; }
};
struct LstmGeneral : LstmOf<Forget::kLearned, true> {
  static constexpr const char* kName = "lstm_general";
};

using LstmOf3Gates = LstmOf<Forget::kChosen, true>;
struct LstmCoupled : LstmOf<Forget::kCoupled, true> {
  static constexpr const char* kName = "lstm_coupled";
  using Shared = LstmOf3Gates;
  ADL_CELL Choice chosen(const Choice& c) { return {c.cell, c.hidden, true}; }
};
struct LstmNoForget : LstmOf<Forget::kNone, true> {
  static constexpr const char* kName = "lstm_no_forget";
  using Shared = LstmOf3Gates;
  ADL_CELL Choice chosen(const Choice& c) { return {c.cell, c.hidden, false}; }
};

}  // namespace adl
