// The products and loads that a warp does as a whole; cuda/device.cuh has the layouts.
#include <cstring>

#include "emulator.h"
#include "racecheck.h"

namespace emulator {

namespace {

struct MmaInput {
  uint32_t a[4], b[2];
  float c[4];
};

float real_of(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}

template <Factor factor>
float half_of(uint32_t pair, int high) {
  const uint16_t u = static_cast<uint16_t>(pair >> 16 * high);
  if constexpr (factor == Factor::kBf16) return real_of(static_cast<uint32_t>(u) << 16);
  __half h;
  memcpy(static_cast<void*>(&h), &u, 2);
  return __half2float(h);
}

template <Factor factor>
void multiply(Lanes& lanes) {
  constexpr int K = factor == Factor::kTf32 ? 8 : 16;
  float A[16][K], B[K][8], C[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    MmaInput in;
    memcpy(&in, lanes.in[lane], sizeof in);
    const int g = lane / 4, t = lane % 4;
    if constexpr (factor == Factor::kTf32) {  // the hardware does not look at the low 13 bits
      for (int r = 0; r < 4; ++r) A[g + 8 * (r & 1)][t + 4 * (r >> 1)] = real_of(in.a[r] & ~0x1fffu);
      for (int r = 0; r < 2; ++r) B[t + 4 * r][g] = real_of(in.b[r] & ~0x1fffu);
    } else {
      for (int high = 0; high < 2; ++high) {
        for (int r = 0; r < 4; ++r) A[g + 8 * (r & 1)][2 * t + 8 * (r >> 1) + high] = half_of<factor>(in.a[r], high);
        for (int r = 0; r < 2; ++r) B[2 * t + 8 * r + high][g] = half_of<factor>(in.b[r], high);
      }
    }
    for (int r = 0; r < 4; ++r) C[g + 8 * (r >> 1)][2 * t + (r & 1)] = in.c[r];
  }
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 8; ++n)
      for (int k = 0; k < K; ++k) C[m][n] += A[m][k] * B[k][n];  // the order of the hardware's sum is not specified
  for (int lane = 0; lane < 32; ++lane) {
    float c[4];
    for (int r = 0; r < 4; ++r) c[r] = C[lane / 4 + 8 * (r >> 1)][2 * (lane % 4) + (r & 1)];
    memcpy(lanes.out[lane], c, sizeof c);
  }
}

template <int N, bool transpose>
void distribute(Lanes& lanes) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int matrix = 0; matrix < N; ++matrix) {
      for (int i = 0; i < 2; ++i) {
        const int along = 2 * (lane % 4) + i, across = lane / 4;
        const int row = transpose ? along : across, column = transpose ? across : along;
        memcpy(lanes.out[lane] + 4 * matrix + 2 * i, lanes.in[8 * matrix + row] + 2 * column, 2);
      }
    }
  }
}

}  // namespace

void mma(Site site, Factor factor, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MmaInput in;
  memcpy(in.a, a, sizeof a);
  memcpy(in.b, b, sizeof b);
  memcpy(in.c, c, sizeof c);
  const auto combine = factor == Factor::kBf16  ? multiply<Factor::kBf16>
                       : factor == Factor::kF16 ? multiply<Factor::kF16>
                                                : multiply<Factor::kTf32>;
  warp_collective(site, &in, sizeof in, c, sizeof c, combine);
}

void load_matrices(Site site, uint32_t* d, int count, bool transpose, const void* row) {
  uint64_t in[2] = {0, 0};
  if (self->lane < 8u * static_cast<unsigned>(count)) {  // the addresses of the other lanes are not used
    if (reinterpret_cast<uintptr_t>(row) % 16) fail("load_matrices: misaligned row");
    race::read(row, sizeof in);
    memcpy(in, row, sizeof in);
  }
  const auto combine = count == 4 ? (transpose ? distribute<4, true> : distribute<4, false>)
                                  : (transpose ? distribute<2, true> : distribute<2, false>);
  warp_collective(site, in, sizeof in, d, 4 * static_cast<size_t>(count), combine);
}

}  // namespace emulator
