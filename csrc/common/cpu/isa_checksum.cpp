// The checksum; compiled once per instruction set. Each 64-bit word w adds w + lo(v) hi(v) to the sum of its lane, v =
// w xor a key of its place and lo, hi its halves, as XXH3 has it (Collet 2019); after 16 words the sums are mixed.
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cstring>

#include "common/cpu/checksum.h"
#include "common/cpu/simd.h"

namespace adl::ADL_ISA_NAMESPACE {
namespace {

typedef uint64_t Words __attribute__((vector_size(kVectorBytes)));

constexpr int kLanes = 8, kStripes = 16, kVectors = kLanes * 8 / kVectorBytes;
constexpr uint64_t kPrime = 0x9E3779B185EBCA87;

struct Keys {
  uint64_t of[kLanes + kStripes];
};

constexpr Keys random_keys() {  // by SplitMix64
  Keys keys{};
  uint64_t state = 0;
  for (uint64_t& key : keys.of) {
    uint64_t z = state += 0x9E3779B97F4A7C15;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    key = z ^ z >> 31;
  }
  return keys;
}
constexpr Keys kKeys = random_keys();

ADL_INLINE Words load(const void* from) {
  Words words;
  std::memcpy(&words, from, sizeof words);
  return words;
}
ADL_INLINE Words keys(int first, int vector) { return load(kKeys.of + first + vector * (kVectorBytes / 8)); }

ADL_INLINE Words product_of_halves(Words v) {
#if defined(__AVX512F__)
  return Words(_mm512_mul_epu32(__m512i(v), __m512i(v >> 32)));
#elif defined(__AVX2__)
  return Words(_mm256_mul_epu32(__m256i(v), __m256i(v >> 32)));
#else
  return (v & 0xffffffff) * (v >> 32);
#endif
}

ADL_INLINE void add(Words (&sums)[kVectors], const char* from, int stripe) {
  for (int n = 0; n < kVectors; ++n) {
    const Words words = load(from + n * kVectorBytes);
    sums[n] += words + product_of_halves(words ^ keys(stripe, n));
  }
}

}  // namespace

uint64_t checksum(const void* memory, int64_t bytes) {
  constexpr int64_t kStripe = kLanes * 8;
  const char* from = static_cast<const char*>(memory);
  uint64_t all = bytes;
  Words sums[kVectors];
  for (int n = 0; n < kVectors; ++n) sums[n] = keys(0, n);
  for (; bytes >= kStripes * kStripe; bytes -= kStripes * kStripe, from += kStripes * kStripe) {
#pragma GCC unroll 16
    for (int k = 0; k < kStripes; ++k) add(sums, from + k * kStripe, k);
    for (int n = 0; n < kVectors; ++n) sums[n] = (sums[n] ^ sums[n] >> 47 ^ keys(kStripes, n)) * (Words{} + kPrime);
  }
  int stripe = 0;
  for (; bytes >= kStripe; bytes -= kStripe, from += kStripe) add(sums, from, stripe++);
  char rest[kStripe] = {};
  std::memcpy(rest, from, bytes);
  add(sums, rest, stripe);
  uint64_t lanes[kLanes];
  std::memcpy(lanes, sums, sizeof lanes);
  for (uint64_t lane : lanes) all = (all ^ lane) * kPrime, all ^= all >> 29;
  return all;
}

}  // namespace adl::ADL_ISA_NAMESPACE
