// Philox4x32-10, a random generator that counts instead of remembering (Salmon et al. 2011, "Parallel random numbers:
// as easy as 1, 2, 3"): any number of the sequence at once, the same on every device.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define ADL_ANYWHERE __host__ __device__ inline
#else
#define ADL_ANYWHERE inline
#endif

namespace adl {

struct Words {
  uint32_t of[4];
};

// Words 4 * block .. 4 * block + 3 of the numbers that belong to a seed and a stream.
ADL_ANYWHERE Words philox(uint64_t seed, uint64_t stream, uint64_t block) {
  uint32_t key[2] = {uint32_t(seed), uint32_t(seed >> 32)};
  Words c{{uint32_t(block), uint32_t(block >> 32), uint32_t(stream), uint32_t(stream >> 32)}};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(0xD2511F53u) * c.of[0], b = uint64_t(0xCD9E8D57u) * c.of[2];
    c = {{uint32_t(b >> 32) ^ c.of[1] ^ key[0], uint32_t(b), uint32_t(a >> 32) ^ c.of[3] ^ key[1], uint32_t(a)}};
    key[0] += 0x9E3779B9u, key[1] += 0xBB67AE85u;
  }
  return c;
}

// What dropout makes of a tensor: element i is kept where word i of the stream is at least `threshold`.
struct Dropout {
  uint64_t stream;
  uint64_t threshold;  // p * 2^32
  double scale;        // 1 / (1 - p)

  static Dropout of(double p, int64_t stream) {
    return {uint64_t(stream), uint64_t(p * 4294967296.0), p < 1 ? 1 / (1 - p) : 0};
  }
};

}  // namespace adl
