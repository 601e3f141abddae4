// A step of an LSTM whose weights lie in the registers of all multiprocessors, H 768 and 16 sequences in bfloat16,
// with its stages left out one by one: where the time goes.
//
// Only time is of interest: all weights are equal, and so is all of x. The state travels as in calibrate_l2.cu, by
// words of the result y, which are their own flags.
#include "exchange.cuh"

namespace calibrate {
namespace {

using adl::BFloat;

constexpr int kH = 768, kB = 16, kWarps = 8;
constexpr int kPairs = kH / kWarps / 32;  // of the 16 states that an instruction takes, in the part of a warp
constexpr int kTries = 100000;
enum Stage : unsigned { kExchange = 1, kProduct = 2, kCell = 4, kStores = 8, kAll = 15 };

__device__ __forceinline__ float logistic(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }
__device__ __forceinline__ float tangent(float x) { return 1.0f - 2.0f * logistic(-2.0f * x); }

// A block owns kUnits units of kRows sequences; its warps share the sum over h among them.
//   W: fragments [blocks, warps, tiles of 16 gate rows, 2 pairs, 32 lanes]; x, gates: [T, B, 4, H]; y: [T + 1, B, H]
template <int kUnits, int kColumns, unsigned stages>
__global__ void __launch_bounds__(256, 1)
    step(const uint4* W, const BFloat* x, BFloat* y, BFloat* gates, int T, int warm_up, Times* times) {
  constexpr int kRows = 8 * kColumns, kTiles = kUnits / 4, kOwners = kUnits * kRows;
  ADL_SHARED(float, sums, 2 * kWarps * 4 * kUnits * (kRows + 4));  // by turns; [warps, units, gates, sequences + 4]
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32, g = lane / 4, s = lane % 4;
  const int blocks = kH / kUnits, block = static_cast<int>(blockIdx.x) % blocks;
  const int first = static_cast<int>(blockIdx.x) / blocks * kRows;  // sequence
  uint32_t a[kTiles][2 * kPairs][4];
#pragma unroll
  for (int m = 0; m < kTiles; ++m)
#pragma unroll
    for (int k = 0; k < 2 * kPairs; ++k) {
      const uint4 v = W[(((static_cast<long>(block) * kWarps + warp) * kTiles + m) * 2 * kPairs + k) * 32 + lane];
      a[m][k][0] = v.x, a[m][k][1] = v.y, a[m][k][2] = v.z, a[m][k][3] = v.w;
    }
  const int unit = thread / kRows, row = thread % kRows;
  const long own = static_cast<long>(first + row) * kH + block * kUnits + unit;  // in [B, H]
  float c = 0;
  bool late = false;
  Stopwatch watch;
  for (int t = 0; t < T; ++t) {
    if (t == warm_up) watch.start();
    float pre[4] = {};
    if (thread < kOwners)
#pragma unroll
      for (int q = 0; q < 4; ++q)
        pre[q] = adl::to_acc(x[(static_cast<long>(t) * kB + first + row) * 4 * kH + q * kH + block * kUnits + unit]);

    const long from = stages & kExchange ? t : 0;
    const BFloat* h = y + (from * kB + first + g) * kH + warp * (kH / kWarps) + 8 * s;
    uint4 v[kColumns][kPairs];
#pragma unroll
    for (int n = 0; n < kColumns; ++n)
#pragma unroll
      for (int k = 0; k < kPairs; ++k)
        v[n][k] = adl::load_relaxed(reinterpret_cast<const uint4*>(h + n * 8 * kH + 32 * k));
    float acc[kTiles][kColumns][4] = {};
#pragma unroll
    for (int k = 0; k < kPairs; ++k)
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
        if (stages & kExchange)
          for (int tries = 0; !__all_sync(~0u, late || adl::arrived(v[n][k])); late = late || ++tries == kTries) {
            v[n][k] = adl::load_relaxed(reinterpret_cast<const uint4*>(h + n * 8 * kH + 32 * k));
            if (!adl::arrived(v[n][k])) adl::spin();
          }
        if (stages & kProduct) {
          // The columns of W are permuted as h is: 8 states in a row are the lane's parts of two fragments.
          const uint32_t low[2] = {v[n][k].x, v[n][k].y}, high[2] = {v[n][k].z, v[n][k].w};
#pragma unroll
          for (int m = 0; m < kTiles; ++m) {
            adl::mma_bf16(acc[m][n], a[m][2 * k], low);
            adl::mma_bf16(acc[m][n], a[m][2 * k + 1], high);
          }
        } else {
          acc[0][n][0] += __uint_as_float((v[n][k].x ^ v[n][k].y ^ v[n][k].z ^ v[n][k].w) & 0x3fffffffu);
        }
      }

    float* now = sums + t % 2 * (kWarps * 4 * kUnits * (kRows + 4));
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int n = 0; n < kColumns; ++n)
#pragma unroll
        for (int r = 0; r < 4; r += 2)
          *reinterpret_cast<float2*>(now + (warp * 4 * kUnits + 16 * m + g + 4 * r) * (kRows + 4) + 8 * n + 2 * s) =
              float2{acc[m][n][r], acc[m][n][r + 1]};
    __syncthreads();
    if (thread >= kOwners) continue;
#pragma unroll
    for (int w = 0; w < kWarps; ++w)
#pragma unroll
      for (int q = 0; q < 4; ++q) pre[q] += now[(w * 4 * kUnits + 4 * unit + q) * (kRows + 4) + row];
    float out;
    if (stages & kCell) {
      pre[0] = logistic(pre[0]), pre[1] = logistic(pre[1]), pre[2] = tangent(pre[2]), pre[3] = logistic(pre[3]);
      c = pre[1] * c + pre[0] * pre[2];
      out = pre[3] * tangent(c);
    } else {
      out = 0.125f * (pre[0] + pre[1] + pre[2] + pre[3]);
    }
    const uint32_t mine = __bfloat16_as_ushort(adl::from_acc<BFloat>(out));
    const uint32_t next = __shfl_xor_sync(~0u, mine, kRows);  // the other unit of the word
    if (unit % 2 == 0) adl::store_relaxed(reinterpret_cast<uint32_t*>(y + (t + 1l) * kB * kH + own), mine | next << 16);
    if (stages & kStores)
#pragma unroll
      for (int q = 0; q < 4; ++q)
        gates[(static_cast<long>(t) * kB + first + row) * 4 * kH + q * kH + block * kUnits + unit] =
            adl::from_acc<BFloat>(pre[q]);
  }
  watch.stop(times);
  judge(times, late, false);
}

// Filled from words with a repeated pattern, or left alone; freed at the end.
struct Memory {
  void* p = nullptr;
  size_t bytes;
  explicit Memory(size_t bytes_) : bytes(bytes_) {
    if (cudaMalloc(&p, bytes) != cudaSuccess) p = nullptr;
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { cudaFree(p); }
  void fill(int byte) const { cudaMemset(p, byte, bytes); }
  template <class T>
  T* as() const {
    return static_cast<T*>(p);
  }
};

template <int kUnits, int kColumns, unsigned stages>
void time_step(const char* what, int T, double predicted) {
  constexpr int kBlocks = kH / kUnits, kGroups = kB / (8 * kColumns);
  const std::string name = std::string("LSTM step, H 768, B 16, ") + std::to_string(kGroups) + " x " +
                           std::to_string(kBlocks) + " blocks, " + what;
  const size_t states = size_t(2) * kB * kH;
  const Memory W(size_t(2) * 4 * kH * kH), x(4 * T * states), y((T + 1) * states), gates(4 * T * states);
  if (kBlocks * kGroups > device().multiprocessors) return line(name, "us/step", absent());
  if (!W.p || !x.p || !y.p || !gates.p) return line(name, "us/step", failed("out of memory"));
  W.fill(0x3c), x.fill(0x3c);  // 0x3c3c is 0.0115 in bfloat16
  adl::LaunchOptions options;
  options.cooperative = true;
  const auto prepare = [&] {
    y.fill(0xFF);
    cudaMemset(y.p, 0, states);
  };
  const int warm_up = T / 8;
  const auto run = [&](Times* times) {
    return adl::launch(step<kUnits, kColumns, stages>, kBlocks * kGroups, 256, nullptr, options, W.as<uint4>(),
                       x.as<BFloat>(), y.as<BFloat>(), gates.as<BFloat>(), T, warm_up, times);
  };
  line(name, "us/step", per_step(run, T - warm_up, predicted, prepare));
}

template <int kUnits, int kColumns>
void time_stages(int T, double all, double no_product, double no_cell, double no_exchange) {
  time_step<kUnits, kColumns, kAll>("all stages", T, all);
  time_step<kUnits, kColumns, kAll & ~kProduct>("no product", T, no_product);
  time_step<kUnits, kColumns, kAll & ~kCell>("no cell", T, no_cell);
  time_step<kUnits, kColumns, kAll & ~kStores>("no stores of gates", T, NAN);
  time_step<kUnits, kColumns, kAll & ~kExchange>("no exchange", T, no_exchange);
}

}  // namespace
}  // namespace calibrate

int main(int count, char** arguments) {
  const int T = count > 1 ? atoi(arguments[1]) : 1024;
  calibrate::time_stages<8, 2>(T, 1.15, 1.08, 1.00, 0.65);
  calibrate::time_stages<12, 1>(T, 0.96, 0.91, 0.82, 0.50);
  return calibrate::failures != 0;
}
