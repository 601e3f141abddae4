// How fast tensor cores multiply a matrix A that stays where it is, by few columns: mma.sync with A in registers, and
// with A read from shared memory in every step.
#include "measure.cuh"

namespace calibrate {
namespace {

constexpr int kWarps = 8, kHeld = 16;  // fragments of A per warp: 64 registers of a thread, or 64 KB of a block

__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool tf32) {
  if (tf32)
    adl::mma_tf32(c, a, b);
  else
    adl::mma_bf16(c, a, b);
}

// A fragment is 16 rows by 16 numbers of 2 bytes, or by 8 of tf32: 512 bytes. A warp has kTiles rows of them, and so
// kTiles * kColumns sums that do not wait for each other.
template <bool tf32, int kTiles, int kColumns, bool shared>
__global__ void __launch_bounds__(32 * kWarps, 1) products(uint32_t one, int rounds, float* out, Times* times) {
  ADL_DYNAMIC_SHARED(memory);
  uint4* own = reinterpret_cast<uint4*>(memory) + threadIdx.x / 32 * kHeld * 32 + threadIdx.x % 32;
  uint32_t a[kHeld][4];
  if (shared)
    for (int i = 0; i < kHeld; ++i) own[32 * i] = {one, one, one, one};
  else
#pragma unroll
    for (int i = 0; i < kHeld; ++i)
#pragma unroll
      for (int r = 0; r < 4; ++r) a[i][r] = one + static_cast<uint32_t>(i) * (rounds < 0);  // as if they were different
  const uint32_t b[2] = {one, one};
  float c[kTiles][kColumns][4] = {};
  __syncthreads();
  Stopwatch watch;
  watch.start();
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (shared) {
        const uint4 v = own[32 * i];
        a[i][0] = v.x, a[i][1] = v.y, a[i][2] = v.z, a[i][3] = v.w;
      }
#pragma unroll
      for (int n = 0; n < kColumns; ++n) multiply(c[i % kTiles][n], a[i], b, tf32);
    }
    if (shared) __syncwarp();  // or else the compiler would read A once
  }
  __syncthreads();
  watch.stop(times);
  float sum = 0;
#pragma unroll
  for (int m = 0; m < kTiles; ++m)
#pragma unroll
    for (int n = 0; n < kColumns; ++n)
#pragma unroll
      for (int r = 0; r < 4; ++r) sum += c[m][n][r];
  // Ones by ones: every fragment adds 16, or 8, to each of the sums.
  const float expected = 4.0f * kColumns * kHeld * (tf32 ? 8 : 16) * static_cast<float>(rounds);
  judge(times, false, sum != expected);
  if (rounds < 0) out[threadIdx.x] = sum;
}

template <bool tf32, int kTiles, int kColumns, bool shared>
void time_products(int rounds) {
  const std::string name =
      std::string("mma.sync ") + (tf32 ? "tf32" : "bf16") + ", N = " + std::to_string(8 * kColumns) + ", A in " +
      (shared ? "shared memory" : "registers") + ", " + std::to_string(kTiles * kColumns) + " sums";
  adl::LaunchOptions options;
  options.shared_bytes = shared ? size_t(kWarps) * kHeld * 512 : 0;
  const uint32_t one = tf32 ? 0x3f800000u : 0x3f803f80u;
  std::string problem;
  const Times times = fastest(
      [&](Times* found) {
        return adl::launch(products<tf32, kTiles, kColumns, shared>, device().multiprocessors, 32 * kWarps, nullptr,
                           options, one, rounds, static_cast<float*>(nullptr), found);
      },
      problem);
  const double value = static_cast<double>(times.cycles) / rounds / (kWarps * kHeld);
  const double mma = kColumns * 6.6 / 4;
  line(name, "cycles/fragment/SM",
       problem.empty() ? Figure{value, shared ? std::max(4.0, mma) : mma, NAN, ""} : failed(problem));
}

template <bool tf32, bool shared>
void time_columns(int rounds) {
  time_products<tf32, 2, 1, shared>(rounds);
  time_products<tf32, 4, 1, shared>(rounds);
  time_products<tf32, 2, 2, shared>(rounds);
  time_products<tf32, 2, 4, shared>(rounds);
  time_products<tf32, 2, 8, shared>(rounds);
}

}  // namespace
}  // namespace calibrate

int main(int count, char** arguments) {
  // Sums stay below 2^24, so that they are exact.
  const int rounds = std::min(count > 1 ? atoi(arguments[1]) : 2000, 2000);
  calibrate::time_columns<false, false>(rounds);
  calibrate::time_columns<false, true>(rounds);
  calibrate::time_columns<true, false>(rounds);
  calibrate::time_columns<true, true>(rounds);
  return calibrate::failures != 0;
}
