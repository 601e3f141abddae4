// Small kernels that use every wrapper of cuda/device.cuh: checked in the emulator and, where there is one, on a GPU.
#pragma once

#include "common/cuda/device.cuh"

namespace adl {

// ---- warps and blocks

__device__ __forceinline__ float warp_sum(float v) {
  for (int lanes = 16; lanes > 0; lanes /= 2) v += __shfl_xor_sync(0xffffffffu, v, lanes);
  return v;
}

// y[j] = sum over i of x[i, j]; a block takes several columns.
template <class T>
__global__ void column_sums(const T* x, float* y, int rows, int columns) {
  ADL_SHARED(float, sums, 32);
  for (int j = static_cast<int>(blockIdx.x); j < columns; j += static_cast<int>(gridDim.x)) {
    float sum = 0;
    for (int i = static_cast<int>(threadIdx.x); i < rows; i += static_cast<int>(blockDim.x))
      sum += to_acc(x[i * columns + j]);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x < 32) {
      sum = warp_sum(threadIdx.x < blockDim.x / 32 ? sums[threadIdx.x] : 0.0f);
      if (threadIdx.x == 0) y[j] = sum;
    }
    __syncthreads();
  }
}

// Each warp turns its 32 numbers round, then its next 32.
__global__ void reverse(const float* x, float* y, int rounds) {
  ADL_SHARED(float, s, 128);
  const unsigned warp = threadIdx.x & ~31u, lane = threadIdx.x & 31u;
  for (int r = 0; r < rounds; ++r) {
    const unsigned at = static_cast<unsigned>(r) * blockDim.x + warp;
    s[warp + lane] = x[at + lane];
    __syncwarp();
    y[at + lane] = s[warp + 31 - lane];
    __syncwarp();
  }
}

// ---- flags between blocks

// The block that comes last adds up what all have left.
__global__ void last_block_sum(const float* x, float* sums, unsigned* done, float* y) {
  ADL_SHARED(unsigned, before, 1);
  const float sum = warp_sum(x[blockIdx.x * blockDim.x + threadIdx.x]);  // one warp a block
  if (threadIdx.x == 0) {
    sums[blockIdx.x] = sum;
    before[0] = add_release(done, 1u);
  }
  __syncthreads();
  if (before[0] != gridDim.x - 1 || threadIdx.x != 0) return;
  if (load_acquire(done) != gridDim.x) return;
  float total = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) total += sums[b];
  *y = total;
}

__device__ __forceinline__ void meet(unsigned* arrived, unsigned round) {
  __syncthreads();
  if (threadIdx.x == 0) {
    add_release(arrived, 1u);
    ADL_SPIN_WHILE(load_acquire(arrived) < round * gridDim.x);
  }
  __syncthreads();
}

// x[t + 1, i] = x[t, a thread of another block] + 1, with a barrier of the whole grid after every step.
template <bool own_barrier>
__global__ void relay(float* x, unsigned* arrived, int steps) {
  const unsigned n = gridDim.x * blockDim.x, i = blockIdx.x * blockDim.x + threadIdx.x;
  for (int t = 0; t < steps; ++t) {
    x[n + i] = x[(i + blockDim.x + 1) % n] + 1;
    x += n;
    if (own_barrier)
      meet(arrived, static_cast<unsigned>(t) + 1);
    else
      grid_barrier();
  }
}

// ---- clusters

// The same within a cluster, whose blocks write into each other's shared memory. y[i] also gets the rank of the
// next block, read from there.
__global__ void cluster_relay(const float* x, float* y, int steps) {
  ADL_DYNAMIC_SHARED(memory);
  ADL_SHARED(unsigned, rank, 1);
  float* h = reinterpret_cast<float*>(memory);  // [2, threads], by turns
  const unsigned n = blockDim.x, i = threadIdx.x, next = (cluster_rank() + 1) % 4;
  h[i] = x[blockIdx.x * n + i];
  if (i == 0) rank[0] = cluster_rank();
  cluster_barrier();
  for (int t = 0; t < steps; ++t) {
    const unsigned now = t % 2 ? n : 0;
    shared_of(h, next)[n - now + i] = h[now + (i + 1) % n] + 1;
    cluster_barrier();
  }
  y[blockIdx.x * n + i] = h[(steps % 2 ? n : 0) + i] + 100.0f * static_cast<float>(shared_of(rank, next)[0]);
  cluster_barrier();
}

// ---- stores counted by barriers

__device__ __forceinline__ bool came(uint64_t* barrier, unsigned parity, unsigned microseconds) {
  return arrivals_wait(barrier, parity, microseconds);
}

// One thread waits for what it has not sent, then for what it has: y[0] is 0, y[1] is 1.
__global__ void wait_in_vain(unsigned* y) {
  ADL_SHARED(uint64_t, full, 1);
  ADL_SHARED(uint4, s, 1);
  arrivals_init(full);
  arrivals_expect(full, 16);
  y[0] = came(full, 0, 100);
  store_async(s, make_uint4(1, 2, 3, 4), full, 0);
  y[1] = came(full, 0, 100000);
}

// In every step each thread sends 16 bytes to all blocks of its cluster, and adds up what one thread of each has sent.
// Nobody sends again into a buffer that a block still reads: for that all its threads must have sent the next step.
__global__ void exchange(const uint4* x, uint4* y, unsigned blocks, int steps) {
  ADL_DYNAMIC_SHARED(memory);
  ADL_SHARED(uint64_t, full, 2);
  const unsigned n = blockDim.x, i = threadIdx.x, rank = cluster_rank();
  if (i == 0) arrivals_init(full);
  if (i == 0) arrivals_init(full + 1);
  cluster_barrier();
  uint4 v = x[blockIdx.x * n + i];
  for (int t = 0; t < steps; ++t) {
    uint64_t* barrier = full + t % 2;
    uint4* sent = reinterpret_cast<uint4*>(memory) + static_cast<unsigned>(t % 2) * blocks * n;  // [blocks, threads]
    if (i == 0) arrivals_expect(barrier, blocks * n * 16);
    for (unsigned r = 0; r < blocks; ++r) store_async(sent + rank * n + i, v, barrier, r);
    if (!came(barrier, static_cast<unsigned>(t / 2) % 2, 1000000)) __trap();
    for (unsigned r = 0; r < blocks; ++r) {
      const uint4 other = sent[r * n + (i + r + 1) % n];
      v = {v.x + r * other.x, v.y + r * other.y, v.z + other.z, v.w + other.w};
    }
  }
  y[blockIdx.x * n + i] = v;
}

// ---- words that are their own flags

__device__ __forceinline__ uint4 receive(const uint4* p) {
  uint4 v = load_relaxed(p);
  for (int polls = 0; !arrived(v); ++polls) {
    if (polls == 1 << 20) __trap();
    spin();
    v = load_relaxed(p);
  }
  return v;
}

// words[t + 1, i] = a sum of four of words[t], [steps + 1, threads of the grid]; all but the first row are absent.
__global__ void word_relay(uint32_t* words, int steps) {
  const unsigned n = gridDim.x * blockDim.x, i = blockIdx.x * blockDim.x + threadIdx.x;
  for (int t = 0; t < steps; ++t, words += n) {
    const uint4 v = receive(reinterpret_cast<const uint4*>(words) + (i + blockDim.x + 1) % (n / 4));
    store_relaxed(words + n + i, (v.x + 3 * v.y + 5 * v.z + 7 * v.w) & 0x7fffffffu);
  }
}

// ---- tensor cores

__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], BFloat) {
  mma_bf16(c, a, b);
}
__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Half) {
  mma_f16(c, a, b);
}

// One warp: C[16, 8] += A[16, 16] B[16, 8]
template <class T>
__global__ void product(const T* A, const T* B, float* C) {
  const int g = static_cast<int>(threadIdx.x) / 4, t = static_cast<int>(threadIdx.x) % 4;
  uint32_t a[4], b[2];
  float c[4];
  for (int r = 0; r < 4; ++r) {
    const T* pair = A + (g + 8 * (r & 1)) * 16 + 2 * t + 8 * (r >> 1);
    a[r] = pack(pair[0], pair[1]);
    c[r] = C[(g + 8 * (r >> 1)) * 8 + 2 * t + (r & 1)];
  }
  for (int r = 0; r < 2; ++r) b[r] = pack(B[(2 * t + 8 * r) * 8 + g], B[(2 * t + 8 * r + 1) * 8 + g]);
  multiply(c, a, b, T());
  for (int r = 0; r < 4; ++r) C[(g + 8 * (r >> 1)) * 8 + 2 * t + (r & 1)] = c[r];
}

// One warp: C[16, 8] += A[16, 8] B[8, 8]
__global__ void product_tf32(const float* A, const float* B, float* C) {
  const int g = static_cast<int>(threadIdx.x) / 4, t = static_cast<int>(threadIdx.x) % 4;
  uint32_t a[4], b[2];
  float c[4];
  for (int r = 0; r < 4; ++r) {
    a[r] = to_tf32(A[(g + 8 * (r & 1)) * 8 + t + 4 * (r >> 1)]);
    c[r] = C[(g + 8 * (r >> 1)) * 8 + 2 * t + (r & 1)];
  }
  for (int r = 0; r < 2; ++r) b[r] = to_tf32(B[(t + 4 * r) * 8 + g]);
  mma_tf32(c, a, b);
  for (int r = 0; r < 4; ++r) C[(g + 8 * (r >> 1)) * 8 + 2 * t + (r & 1)] = c[r];
}

// What each lane gets of N matrices [N, 8, 8]: y[matrix, lane].
template <int N, bool transpose>
__global__ void fragments(const uint16_t* x, uint32_t* y) {
  ADL_DYNAMIC_SHARED(memory);
  uint16_t* s = reinterpret_cast<uint16_t*>(memory);
  for (unsigned i = threadIdx.x; i < N * 64; i += 32) s[i] = x[i];
  __syncwarp();
  uint32_t d[N];
  load_matrices<N, transpose>(d, s + threadIdx.x % (8 * N) * 8);
  for (int matrix = 0; matrix < N; ++matrix) y[matrix * 32 + static_cast<int>(threadIdx.x)] = d[matrix];
}

// C[M, N] = A[M, K] B[K, N], tiles of 64 x 64, two stages of 32 of K; N and K are multiples of 8.
struct GemmTile {
  static constexpr int kM = 64, kN = 64, kK = 32, kStages = 2;
  static constexpr int kStrideA = kK + 8, kStrideB = kN + 8;
  static constexpr size_t kBytes = sizeof(BFloat) * kStages * (kM * kStrideA + kK * kStrideB);
};

__global__ void __launch_bounds__(128) gemm(const BFloat* A, const BFloat* B, float* C, int M, int N, int K) {
  using Tile = GemmTile;
  ADL_DYNAMIC_SHARED(memory);
  BFloat* as = reinterpret_cast<BFloat*>(memory);               // [kStages, kM, kStrideA]
  BFloat* bs = as + Tile::kStages * Tile::kM * Tile::kStrideA;  // [kStages, kK, kStrideB]
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int m0 = static_cast<int>(blockIdx.y) * Tile::kM, n0 = static_cast<int>(blockIdx.x) * Tile::kN;
  const int wm = warp / 2 * 32, wn = warp % 2 * 32;  // the warp's part of the tile
  float acc[2][4][4] = {};

  const auto load = [&](int stage, int k0) {
    for (int i = thread; i < Tile::kM * Tile::kK / 8; i += 128) {
      const int m = i / (Tile::kK / 8), k = i % (Tile::kK / 8) * 8;
      const bool valid = m0 + m < M && k0 + k < K;
      copy_async(as + (stage * Tile::kM + m) * Tile::kStrideA + k, valid ? A + (m0 + m) * K + k0 + k : A, valid);
    }
    for (int i = thread; i < Tile::kK * Tile::kN / 8; i += 128) {
      const int k = i / (Tile::kN / 8), n = i % (Tile::kN / 8) * 8;
      const bool valid = k0 + k < K && n0 + n < N;
      copy_async(bs + (stage * Tile::kK + k) * Tile::kStrideB + n, valid ? B + (k0 + k) * N + n0 + n : B, valid);
    }
    copy_async_commit();
  };

  load(0, 0);
  for (int k0 = 0, stage = 0; k0 < K; k0 += Tile::kK, stage ^= 1) {
    if (k0 + Tile::kK < K) {
      load(stage ^ 1, k0 + Tile::kK);
      copy_async_wait<1>();
    } else {
      copy_async_wait<0>();
    }
    __syncthreads();
    for (int k = 0; k < Tile::kK; k += 16) {
      uint32_t a[2][4], b[4][2];
      for (int i = 0; i < 2; ++i)
        load_matrices<4, false>(a[i],
                                as + (stage * Tile::kM + wm + 16 * i + lane % 16) * Tile::kStrideA + k + lane / 16 * 8);
      for (int j = 0; j < 4; ++j)
        load_matrices<2, true>(b[j], bs + (stage * Tile::kK + k + lane % 16) * Tile::kStrideB + wn + 8 * j);
      for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 4; ++j) mma_bf16(acc[i][j], a[i], b[j]);
    }
    __syncthreads();
  }
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 4; ++j)
      for (int r = 0; r < 4; ++r) {
        const int m = m0 + wm + 16 * i + lane / 4 + 8 * (r >> 1), n = n0 + wn + 8 * j + 2 * (lane % 4) + (r & 1);
        if (m < M && n < N) C[m * N + n] = acc[i][j][r];
      }
}

// ---- conversions

template <class T>
__global__ void convert(const Acc<T>* x, T* y, Acc<T>* back, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  y[i] = from_acc<T>(x[i]);
  back[i] = to_acc(y[i]);
}

__global__ void round_to_tf32(const float* x, uint32_t* y, int n) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < n) y[i] = to_tf32(x[i]);
}

}  // namespace adl
