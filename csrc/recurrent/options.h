// THE list of what a call of a layer may ask for besides what torch.nn has. Schemas, arguments, the struct and the
// Python tuple are made of it.
//
// Rows are those of x: [T, B], or [N] with batch_sizes. D directions, P the width of h.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <string_view>
#include <vector>

// Kind, name, default, what it is.
#define ADL_LAYER_OPTIONS(_)                                                                                         \
  _(OptionalTensor, batch_sizes, {}, "[T] int64 on the CPU, those of a PackedSequence: x is [N, I], y [N, D P]")     \
  _(OptionalTensor, lengths, {},                                                                                     \
    "[B] integers on the CPU or with x: steps of each sequence of a padded batch; past its end y is zero")           \
  _(OptionalTensor, reset, {},                                                                                       \
    "bool [T, B]: true where a new sequence begins; in both directions the state starts from zero there")            \
  _(OptionalTensor, recurrent_mask, {}, "[D, B, P] multiplies h_{t-1} in the product with W_hh")                     \
  _(OptionalTensor, zoneout_h, {}, "uint8 [D, rows.., P]: where 1, h stays as it was")                               \
  _(OptionalTensor, zoneout_c, {}, "uint8 [D, rows.., H]: likewise c, for cells that have it")                       \
  _(Floats, zoneout, {}, "shares of h and of c that stay, where there are no masks")                                 \
  _(String, cell_activation, "tanh", "of the candidate: tanh, sigmoid, relu or identity; for cells with peepholes")  \
  _(String, hidden_activation, "tanh", "of c where it makes h, of the same")                                         \
  _(Bool, peephole, false, "the weights hold weight_ch [gates that see c, H]")                                       \
  _(Bool, layer_norm, false,                                                                                         \
    "the weights end with gains [G H] of W_ih x and W_hh h and, for cells with c, "                                  \
    "gain and bias [H] of c")                                                                                        \
  _(Bool, all_states, false, "an output more: c of every step, [rows.., D H]")                                       \
  _(Int, bptt_steps, 0, "gradients do not pass from a multiple of so many steps to the step before; 0: they all do") \
  _(Int, frozen, 0, "not 0: a promise that the weights are as in the last call with this number; see freeze()")

namespace adl {

using at::Tensor;
using Tensors = std::vector<Tensor>;
using MaybeTensor = std::optional<Tensor>;

// A kind of option: its type in a schema, as an argument of an op and in the struct, and the text of a default.
namespace option {
struct OptionalTensor {
  using Argument = const MaybeTensor&;
  using Member = MaybeTensor;
  static constexpr const char* kSchema = "Tensor?";
  static std::string text(const Member&) { return "None"; }
};
struct Floats {
  using Argument = at::ArrayRef<double>;
  struct Member : std::vector<double> {
    Member() = default;
    Member(at::ArrayRef<double> given) : std::vector<double>(given.begin(), given.end()) {}
  };
  static constexpr const char* kSchema = "float[]";
  static std::string text(const Member&) { return "[]"; }
};
struct String {
  using Argument = std::string_view;
  struct Member : std::string {
    Member(const char* given) : std::string(given) {}
    Member(std::string_view given) : std::string(given) {}
  };
  static constexpr const char* kSchema = "str";
  static std::string text(const Member& value) { return "'" + value + "'"; }
};
struct Bool {
  using Argument = bool;
  using Member = bool;
  static constexpr const char* kSchema = "bool";
  static std::string text(bool value) { return value ? "True" : "False"; }
};
struct Int {
  using Argument = int64_t;
  using Member = int64_t;
  static constexpr const char* kSchema = "int";
  static std::string text(int64_t value) { return std::to_string(value); }
};

// Whether an option has another value than its default.
inline bool differs(const MaybeTensor& value, const MaybeTensor&) { return value.has_value(); }
template <class T>
bool differs(const T& value, const T& fallback) {
  return value != fallback;
}
}  // namespace option

struct LayerOptions {
#define ADL_MEMBER(Kind, name, fallback, doc) option::Kind::Member name = fallback;
  ADL_LAYER_OPTIONS(ADL_MEMBER)
#undef ADL_MEMBER

  bool has_zoneout() const { return zoneout_h || !zoneout.empty(); }

  // Calls f(name, option, default) for each, in order.
  template <class F>
  void each(F f) {
    static const LayerOptions kNone;
#define ADL_EACH(Kind, name, fallback, doc) f(#name, name, kNone.name);
    ADL_LAYER_OPTIONS(ADL_EACH)
#undef ADL_EACH
  }

  // Whether a layer of torch.nn does the same.
  bool is_plain() const {
    static const LayerOptions kNone;
    const auto torch_has = [&](const void* option) { return option == &batch_sizes || option == &frozen; };
#define ADL_SAME(Kind, name, fallback, doc) &&(torch_has(&name) || !option::differs(name, kNone.name))
    return true ADL_LAYER_OPTIONS(ADL_SAME);
#undef ADL_SAME
  }
};

// What follows x, hx and weights in the ops: types, parameters, these as arguments, and the values of some `options`.
#define ADL_OPTION_TYPE(Kind, name, fallback, doc) , option::Kind::Argument
#define ADL_OPTION_PARAMETER(Kind, name, fallback, doc) , option::Kind::Argument name
#define ADL_OPTION_ARGUMENT(Kind, name, fallback, doc) , name
#define ADL_OPTION_VALUE(Kind, name, fallback, doc) , options.name
#define ADL_OPTION_NAME(Kind, name, fallback, doc) name,  // to make a LayerOptions of

using ForwardOp = Tensors(const Tensor& x, at::TensorList hx,
                          at::TensorList weights ADL_LAYER_OPTIONS(ADL_OPTION_TYPE));
using BackwardOp = Tensors(const c10::List<MaybeTensor>& grads, const Tensor& x, at::TensorList hx,
                           at::TensorList weights ADL_LAYER_OPTIONS(ADL_OPTION_TYPE), const Tensor& y,
                           at::TensorList saved, const c10::List<bool>& needs);

}  // namespace adl
