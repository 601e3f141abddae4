// Philox (common/philox.h), block by block side by side; compiled once per instruction set.
#include "common/cpu/simd.h"
#include "dropout/cpu/draw.h"

namespace adl::ADL_ISA_NAMESPACE {

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
