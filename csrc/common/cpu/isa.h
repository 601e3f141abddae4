// The instruction sets that kernels are compiled for, and the choice among them at run time.
#pragma once

#include <type_traits>

#include "common/cpu/number.h"

namespace adl {

enum class Isa { kDefault, kAvx2, kAvx512, kAvx512Bf16 };

Isa isa();  // the widest that this build holds and this CPU runs, or the narrower one that the user asks for
const char* instruction_set();  // its name: "default", "avx2", "avx512" or "avx512bf16"

// A kernel as its callers see it.
template <class Params>
struct Kernel {
  int64_t (*scratch)(const Params&);  // bytes
  void (*run)(const Params&, void* scratch);
};

}  // namespace adl

// Declares in the namespace of each set what there is one of for each.
#define ADL_FOR_EACH_ISA(...)     \
  namespace adl::isa_default {    \
  __VA_ARGS__                     \
  }                               \
  namespace adl::isa_avx2 {       \
  __VA_ARGS__                     \
  }                               \
  namespace adl::isa_avx512 {     \
  __VA_ARGS__                     \
  }                               \
  namespace adl::isa_avx512bf16 { \
  __VA_ARGS__                     \
  }

// Returns an expression's value in the namespace of the set in use. What there is for a type T: the last set has but
// what multiplies in BFloat16.
#if defined(ADL_ISA_AVX512)
#define ADL_CASES_AVX512(T, ...)                                                        \
  case adl::Isa::kAvx512Bf16:                                                           \
    if constexpr (std::is_same_v<T, adl::BFloat16>) return isa_avx512bf16::__VA_ARGS__; \
    [[fallthrough]];                                                                    \
  case adl::Isa::kAvx512:                                                               \
    return isa_avx512::__VA_ARGS__;
#else
#define ADL_CASES_AVX512(T, ...)
#endif
#if defined(ADL_ISA_AVX2)
#define ADL_CASES_AVX2(...) \
  case adl::Isa::kAvx2:     \
    return isa_avx2::__VA_ARGS__;
#else
#define ADL_CASES_AVX2(...)
#endif
#define ADL_RETURN_OF_ISA(T, ...)                                                                           \
  switch (adl::isa()) {                                                                                     \
    ADL_CASES_AVX512(T, __VA_ARGS__) ADL_CASES_AVX2(__VA_ARGS__) default : return isa_default::__VA_ARGS__; \
  }
