// The float kernels; compiled once per instruction set.
#include "recurrent/cpu/table.h"

namespace adl::ADL_ISA_NAMESPACE {

template <>
const Kernels<float>& kernels<float>() {
  static constexpr Kernels<float> kTable = table<float, float>();
  return kTable;
}

// Reads a buffer of floats; returns some of their sum, so that nothing can be left out.
double read(const void* from, int64_t bytes) {
  constexpr int kVectors = 8;
  typename Simd<float>::Register sum[kVectors] = {};
  const float* p = static_cast<const float*>(from);
  const float* end = p + bytes / sizeof(float);
  for (; p + kVectors * Simd<float>::kLanes <= end; p += kVectors * Simd<float>::kLanes) {
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n) sum[n] += Simd<float>::load(p + n * Simd<float>::kLanes).v;
  }
  for (int n = 1; n < kVectors; ++n) sum[0] += sum[n];
  return sum[0][0];
}

// Sets to[0 .. 4 count) to whether each word of blocks block.. of a seed and stream (see philox.h) is below a
// threshold.
void draw(uint64_t seed, uint64_t stream, uint64_t block, int64_t count, uint64_t threshold, uint8_t* to) {
  constexpr int kAtOnce = 32;
  const uint32_t below = threshold ? uint32_t(threshold - 1) : 0;  // the threshold may be 2^32
  const uint8_t any = threshold != 0;
  for (int64_t first = 0; first < count; first += kAtOnce, block += kAtOnce) {
    uint32_t c[4][kAtOnce], key[2] = {uint32_t(seed), uint32_t(seed >> 32)};
    for (int n = 0; n < kAtOnce; ++n) {
      c[0][n] = uint32_t(block + n), c[1][n] = uint32_t((block + n) >> 32);
      c[2][n] = uint32_t(stream), c[3][n] = uint32_t(stream >> 32);
    }
    for (int round = 0; round < 10; ++round) {
      for (int n = 0; n < kAtOnce; ++n) {
        const uint64_t a = uint64_t(0xD2511F53u) * c[0][n], b = uint64_t(0xCD9E8D57u) * c[2][n];
        c[0][n] = uint32_t(b >> 32) ^ c[1][n] ^ key[0], c[1][n] = uint32_t(b);
        c[2][n] = uint32_t(a >> 32) ^ c[3][n] ^ key[1], c[3][n] = uint32_t(a);
      }
      key[0] += 0x9E3779B9u, key[1] += 0xBB67AE85u;
    }
    const int64_t blocks = count - first < kAtOnce ? count - first : kAtOnce;
    for (int64_t n = 0; n < blocks; ++n)
      for (int k = 0; k < 4; ++k) to[4 * (first + n) + k] = uint8_t(c[k][n] <= below) & any;
  }
}

}  // namespace adl::ADL_ISA_NAMESPACE
