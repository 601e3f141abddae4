// The same as calibrate_mma.cu by wgmma, which takes 64 rows at a time: A in registers or in shared memory.
#include "measure.cuh"

namespace calibrate {
namespace {

constexpr int kGroups = 2, kHeld = 16, kRepeats = 4;  // warps by four; fragments of 64 x 16 each; between two waits
constexpr int kBytesA = kHeld * 64 * 16 * 2;          // of a group
constexpr int kBytesB = kHeld * 64 * 16 * 2;          // with the most columns
constexpr int kByte = 0x40;                           // 0x4040 is 3 in bfloat16

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// Eight rows of 16 bytes lie side by side; 16 numbers of a row are two such pieces, 128 bytes apart, and the next eight
// rows 256 bytes from the first. No swizzle.
__device__ __forceinline__ uint64_t descriptor(const unsigned char* shared) {
  const uint64_t at = static_cast<uint64_t>(__cvta_generic_to_shared(shared));
  return (at & 0x3ffff) >> 4 | uint64_t(128 >> 4) << 16 | uint64_t(256 >> 4) << 32;
}

#define ADL_SUMS4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define ADL_SUMS8(i) ADL_SUMS4(i), ADL_SUMS4(i + 4)
#define ADL_SUMS16(i) ADL_SUMS8(i), ADL_SUMS8(i + 8)
#define ADL_SUMS32(i) ADL_SUMS16(i), ADL_SUMS16(i + 16)
#define ADL_WGMMA(N, SUMS, LIST, A0, A1, A2, A3, B)                                                                    \
  __device__ __forceinline__ void wgmma(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b) {                       \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" LIST "}, {" A0 ", " A1 ", " A2 ", " A3   \
                 "}, " B ", 1, 1, 1, 0;"                                                                               \
                 : SUMS(0)                                                                                             \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                                \
  }                                                                                                                    \
  __device__ __forceinline__ void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b) {                                   \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" LIST "}, " A0 ", " A1 ", 1, 1, 1, 0, 0;" \
                 : SUMS(0)                                                                                             \
                 : "l"(a), "l"(b));                                                                                    \
  }
#define ADL_LIST4 "%0, %1, %2, %3"
#define ADL_LIST8 ADL_LIST4 ", %4, %5, %6, %7"
#define ADL_LIST16 ADL_LIST8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define ADL_LIST32 ADL_LIST16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
ADL_WGMMA(8, ADL_SUMS4, ADL_LIST4, "%4", "%5", "%6", "%7", "%8")
ADL_WGMMA(16, ADL_SUMS8, ADL_LIST8, "%8", "%9", "%10", "%11", "%12")
ADL_WGMMA(32, ADL_SUMS16, ADL_LIST16, "%16", "%17", "%18", "%19", "%20")
ADL_WGMMA(64, ADL_SUMS32, ADL_LIST32, "%32", "%33", "%34", "%35", "%36")
#endif

template <int N, bool shared>
__global__ void __launch_bounds__(128 * kGroups, 1) products(const uint4* W, int rounds, Times* times) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(128) unsigned char memory[];  // A of each group, then B
  for (int i = static_cast<int>(threadIdx.x); i < (kGroups * kBytesA + kBytesB) / 4; i += 128 * kGroups)
    reinterpret_cast<uint32_t*>(memory)[i] = kByte * 0x01010101u;
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  uint32_t a[kHeld][4];
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    const uint4 v = W[k * 128 * kGroups + threadIdx.x];
    a[k][0] = v.x, a[k][1] = v.y, a[k][2] = v.z, a[k][3] = v.w;
  }
  const uint64_t first_a = descriptor(memory + threadIdx.x / 128 * kBytesA);
  const uint64_t first_b = descriptor(memory + kGroups * kBytesA);
  float d[N / 2] = {};
  __syncthreads();
  Stopwatch watch;
  watch.start();
  for (int round = 0; round < rounds; ++round) {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int repeat = 0; repeat < kRepeats; ++repeat)
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        const uint64_t b = first_b + static_cast<uint64_t>(k * N * 32 >> 4);
        if constexpr (shared)
          wgmma(d, first_a + static_cast<uint64_t>(k * 64 * 32 >> 4), b);
        else
          wgmma(d, a[k], b);
      }
    asm volatile("wgmma.commit_group.sync.aligned;\n\twgmma.wait_group.sync.aligned 0;" ::: "memory");
  }
  __syncthreads();
  watch.stop(times);
  float sum = 0;
#pragma unroll
  for (int i = 0; i < N / 2; ++i) sum += d[i];
  judge(times, false, sum != 16 * 9.0f * (N / 2) * kRepeats * kHeld * static_cast<float>(rounds));
#endif
}

// In the same unit as mma.sync: fragments of 16 rows by 16, of which an instruction takes four. What is predicted is
// the full rate, and that A is read at 128 bytes a cycle; small N are known to be slower, but not by how much.
template <int N, bool shared>
void time_products(const uint4* W, int rounds) {
  const std::string name =
      "wgmma bf16, N = " + std::to_string(N) + ", A in " + (shared ? "shared memory" : "registers");
  if (device().capability != 90) return line(name, "cycles/fragment/SM", absent());
  adl::LaunchOptions options;
  options.shared_bytes = kGroups * kBytesA + kBytesB;
  std::string problem;
  const Times times = fastest(
      [&](Times* found) {
        return adl::launch(products<N, shared>, device().multiprocessors, 128 * kGroups, nullptr, options, W, rounds,
                           found);
      },
      problem);
  const double value = static_cast<double>(times.cycles) / rounds / (kGroups * kRepeats * kHeld * 4);
  const double predicted = std::max(N / 8.0, shared ? 4.0 : 0.0);
  line(name, "cycles/fragment/SM", problem.empty() ? Figure{value, predicted, NAN, ""} : failed(problem));
}

template <int N>
void time_columns(const uint4* W, int rounds) {
  time_products<N, false>(W, rounds);
  time_products<N, true>(W, rounds);
}

}  // namespace
}  // namespace calibrate

int main() {
  const int rounds = 400;  // sums stay exact
  uint4* W = nullptr;
  if (cudaMalloc(&W, calibrate::kGroups * calibrate::kBytesA) != cudaSuccess) return 1;
  if (cudaMemset(W, calibrate::kByte, calibrate::kGroups * calibrate::kBytesA) != cudaSuccess) return 1;
  calibrate::time_columns<8>(W, rounds);
  calibrate::time_columns<16>(W, rounds);
  calibrate::time_columns<32>(W, rounds);
  calibrate::time_columns<64>(W, rounds);
  cudaFree(W);
  return calibrate::failures != 0;
}
