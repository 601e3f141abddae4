// Picks the widest instruction set that this build holds and this CPU runs. ADL_ISA=default|avx2|avx512
// asks for a narrower one.
#include "common/cpu/isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace adl {
namespace {

constexpr const char* kNames[] = {"default", "avx2", "avx512", "avx512bf16"};

Isa widest() {
#if defined(ADL_ISA_AVX512)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    return __builtin_cpu_supports("avx512bf16") ? Isa::kAvx512Bf16 : Isa::kAvx512;
#endif
#if defined(ADL_ISA_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::kAvx2;
#endif
  return Isa::kDefault;
}

Isa choose() {
  const Isa best = widest();
  const char* asked = std::getenv("ADL_ISA");
  if (!asked || !*asked) return best;
  for (int isa = 0; isa <= int(best); ++isa)
    if (!std::strcmp(asked, kNames[isa])) return Isa(isa);
  throw std::runtime_error(std::string("ADL_ISA must be one that this build and this CPU have, at most ") +
                           kNames[int(best)] + ", got " + asked);
}

}  // namespace

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

const char* instruction_set() { return kNames[int(isa())]; }

}  // namespace adl
