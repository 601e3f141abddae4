// How cuBLAS multiplies for us: as torch's own products do, by the switches of torch.backends.
#pragma once

#include <ATen/Context.h>

namespace adl {
namespace {

// What the user allows. That torch.backends.cuda.matmul.allow_fp16_accumulation allows more is never used: here sums
// are in float.
struct Switches {
  bool tf32;  // as for nn.LSTM: torch.backends.cudnn.rnn.fp32_precision, or cudnn.allow_tf32
  // torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction, and allow_fp16_..
  at::CuBLASReductionOption bf16, f16;
};

inline Switches switches(bool tf32) {
  const at::Context& context = at::globalContext();
  return {tf32, context.allowBF16ReductionCuBLAS(), context.allowFP16ReductionCuBLAS()};
}

struct Precision {
  bool tf32;     // factors are rounded to tf32
  bool reduced;  // parts of a sum may be added in the type of the factors
  bool splits;   // a sum may be made in parts

  bool operator==(const Precision&) const = default;
};

// Of a product of matrices of this type.
constexpr Precision precision_of(at::ScalarType type, const Switches& s) {
  using Option = at::CuBLASReductionOption;
  const Option option = type == at::kBFloat16 ? s.bf16
                        : type == at::kHalf   ? s.f16
                                              : Option::AllowReducedPrecisionWithSplitK;
  return {type == at::kFloat && s.tf32, option == Option::AllowReducedPrecisionWithSplitK,
          option != Option::DisallowReducedPrecisionDisallowSplitK};
}

inline Precision checked_precision_of(at::ScalarType type, const Switches& s) {
  const Precision precision = precision_of(type, s);
  TORCH_CHECK(precision.splits, "adl_kernels: allow_splitk=False of torch.backends.cuda.matmul.allow_",
              type == at::kHalf ? "fp16" : "bf16",
              "_reduced_precision_reduction needs cuBLASLt, these kernels use cuBLAS: set it to False alone");
  return precision;
}

}  // namespace
}  // namespace adl
