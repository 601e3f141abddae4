// Block products: C [M, width] = C_0 + A [M, K] B [K, width], B in panels of 64, 48 or 32 columns.
//
// Every element is a sum in the order of k, in blocks of at most kBlock that are added one after the other. The
// order depends on K alone, so results do not change with the number of rows or threads, or with the tile
// a row falls in; and the blocks keep the rounding error of long sums down.
#pragma once

#include "common/cpu/simd.h"

namespace adl {
namespace {

constexpr int kBlock = 128;  // most elements per accumulation; 128 x 64 of B fill two thirds of L1
constexpr int kPanel = 64;   // columns per panel where the cell does not decide

// A last panel that is not full may be narrower.
ADL_INLINE int64_t panel_width(int64_t columns) { return columns <= 32 ? 32 : columns <= 48 ? 48 : kPanel; }

template <class Mul>
using Element = typename Operand<Mul>::Element;
template <class Mul>
using Sum = typename Operand<Mul>::Sum;

// Elements `pieces` x K of every row of A: a(m, k) = a[m * stride + k], or a[k * stride + m] when transposed;
// the next piece lies `apart` elements on. Elements follow each other in B without a gap.
template <class E>
struct Left {
  const E* a;
  int64_t stride, K;
  int64_t pieces = 1, apart = 0;
};

// Registers of kLanes elements of B, and how they multiply.
template <class E>
struct Lanes {
  using Register = typename Simd<E>::Register;
  static ADL_INLINE void multiply_add(Register& sum, E a, Register b) { sum += a * b; }
};
template <>
struct Lanes<Pair> {
  typedef uint32_t Register __attribute__((vector_size(kVectorBytes)));
  static ADL_INLINE void multiply_add(Simd<float>::Register& sum, Pair a, Register b) {
#if defined(__AVX512BF16__)
    sum = Simd<float>::Register(_mm512_dpbf16_ps(__m512(sum), __m512bh(_mm512_set1_epi32(a.bits)), __m512bh(b)));
#else
    using Floats = Simd<float>::Register;
    sum += convert<float>(BFloat16{uint16_t(a.bits)}) * Floats(b << 16);
    sum += convert<float>(BFloat16{uint16_t(a.bits >> 16)}) * Floats(b & 0xffff0000u);
#endif
  }
};

// Keeps a register in use: folded into the multiply-adds, each load would be repeated for every row.
template <class Register>
ADL_INLINE void hold(Register& r) {
#if defined(__AVX512F__)
  asm("" : "+v"(r));
#elif defined(__x86_64__)
  asm("" : "+x"(r));
#endif
}

// Register tile: kRows x kVectors sums, kVectors of B and a broadcast fit 32 (AVX-512) or 16 registers.
template <class S, int kWidth>
struct Tile {
  static constexpr int kTotal = kWidth / Simd<S>::kLanes;
  static constexpr int kVectors = kVectorBytes < 64 ? 2 : kTotal % 4 == 0 ? 4 : kTotal % 3 == 0 ? 3 : 2;
  static constexpr int kRows = kVectorBytes < 64 ? 6 : kVectors == 4 ? 6 : kVectors == 3 ? 8 : 12;
  static constexpr int kStep = kVectors * Simd<S>::kLanes;
  static_assert(kTotal % kVectors == 0);
};

template <class E, class S, int kWidth, int kRows, bool kTransposed>
ADL_INLINE void tile(Left<E> left, const E* b, const S* init, int64_t ldi, S* c, int64_t ldc) {
  constexpr int kVectors = Tile<S, kWidth>::kVectors, kLanes = Simd<S>::kLanes;
  typename Simd<S>::Register sum[kRows][kVectors] = {};
  for (int64_t piece = 0; piece < left.pieces; ++piece) {
    const E* a = left.a + piece * left.apart;
    for (int64_t k = 0; k < left.K; ++k, b += kWidth) {
      typename Lanes<E>::Register bk[kVectors];
#pragma GCC unroll 8
      for (int n = 0; n < kVectors; ++n) {
        std::memcpy(&bk[n], b + n * kLanes, kVectorBytes);
        hold(bk[n]);
      }
#pragma GCC unroll 12
      for (int m = 0; m < kRows; ++m) {
        const E amk = kTransposed ? a[k * left.stride + m] : a[m * left.stride + k];
#pragma GCC unroll 8
        for (int n = 0; n < kVectors; ++n) Lanes<E>::multiply_add(sum[m][n], amk, bk[n]);
      }
    }
  }
#pragma GCC unroll 12
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 8
    for (int n = 0; n < kVectors; ++n)
      (Simd<S>::load(init + m * ldi + n * kLanes) + Simd<S>(sum[m][n])).store(c + m * ldc + n * kLanes);
  }
}

// A tile of any number of rows up to kRows.
template <class E, class S, int kWidth, int kRows, bool kTransposed>
ADL_INLINE void tile_of(int64_t rows, Left<E> left, const E* b, const S* init, int64_t ldi, S* c, int64_t ldc) {
  if constexpr (kRows > 0) {
    if (rows == kRows) return tile<E, S, kWidth, kRows, kTransposed>(left, b, init, ldi, c, ldc);
    tile_of<E, S, kWidth, kRows - 1, kTransposed>(rows, left, b, init, ldi, c, ldc);
  }
}

// Asks for rows of `width` elements, to come into L1 (kLevel 3) or L2 (2).
template <int kLevel, class E>
ADL_INLINE void prefetch(const E* rows, int64_t stride, int64_t count, int64_t width) {
  for (int64_t r = 0; r < count; ++r)
    for (int64_t k = 0; k < width; k += 64 / int(sizeof(E))) __builtin_prefetch(rows + r * stride + k, 0, kLevel);
}

// init: C_0, with rows ldi apart; 0 for one row that stands for all.
template <class E, class S, int kWidth, bool kTransposed = false>
__attribute__((noinline)) void product(int64_t M, Left<E> left, const E* b, const S* init, int64_t ldi, S* c,
                                       int64_t ldc) {
  using Shape = Tile<S, kWidth>;
  if (M == 0) return;
  if (left.K * left.pieces == 0)
    for (int64_t m = 0; m < M; ++m) std::memcpy(c + m * ldc, init + m * ldi, kWidth * sizeof(S));
  const int64_t row = kTransposed ? 1 : left.stride, column = kTransposed ? left.stride : 1;
  // Blocks of about one size, or of as many whole pieces as fit.
  const int64_t most = left.K > kBlock ? (left.K - 1) / ((left.K - 1) / kBlock + 1) + 1 : left.K;
  const int64_t group = most > 0 && most < kBlock ? kBlock / most : 1;
  for (int64_t piece = 0; piece < left.pieces; piece += group) {
    for (int64_t k = 0; k < left.K; k += most) {
      const int64_t pieces = left.pieces - piece < group ? left.pieces - piece : group;
      Left<E> block{nullptr, left.stride, left.K - k < most ? left.K - k : most, pieces, left.apart};
      const E* a = left.a + piece * left.apart + k * column;
      // Memory is asked for ahead of time: the rows of A that the next tile reads, and of what comes after this
      // block a share with every tile. With few tiles the shares would be large enough to hold up the work.
      const E* next_b = b + pieces * block.K * kWidth;
      const int64_t tiles = (M - 1) / Shape::kRows + 1, share = tiles < 8 ? 0 : pieces * block.K / tiles + 1;
      for (int n = 0; n < kWidth; n += Shape::kStep) {
        for (int64_t i = 0; i < tiles; ++i) {  // of about one size: a last one of one or two rows would be slow
          const int64_t m = i * M / tiles, next = (i + 1) * M / tiles, after = (i + 2) * M / tiles;
          prefetch<3>(init + m * ldi + n, ldi, ldi == 0 ? 0 : next - m, Shape::kStep);
          prefetch<2>(next_b + i * share * kWidth + n, kWidth, n == 0 ? share : 0, kWidth);
          if constexpr (kTransposed) {
            prefetch<2>(a + (block.K + i * share) * column, column, n == 0 ? share : 0, M);
          } else {
            for (int64_t part = 0; part < pieces && n == 0 && i + 1 < tiles; ++part)
              prefetch<3>(a + part * left.apart + next * row, row, after - next, block.K);
          }
          block.a = a + m * row;
          tile_of<E, S, kWidth, Shape::kRows, kTransposed>(next - m, block, b + n, init + m * ldi + n, ldi,
                                                           c + m * ldc + n, ldc);
        }
      }
      b += pieces * block.K * kWidth;
      init = c, ldi = ldc;
    }
  }
}

// The same for a panel, which may be the last and narrow.
template <class E, class S, bool kTransposed = false>
ADL_INLINE void panel_product(int64_t columns, int64_t M, Left<E> left, const E* b, const S* init, int64_t ldi, S* c,
                              int64_t ldc) {
  switch (panel_width(columns)) {
    case 32:
      return product<E, S, 32, kTransposed>(M, left, b, init, ldi, c, ldc);
    case 48:
      return product<E, S, 48, kTransposed>(M, left, b, init, ldi, c, ldc);
    default:
      return product<E, S, kPanel, kTransposed>(M, left, b, init, ldi, c, ldc);
  }
}

// One row of elements for a panel of B: those of the rows `first` and `second` of a matrix, which follow each other
// in the sum; zero past `columns`. Operands that are not packed in pairs have no second.
template <class Mul, class Io>
ADL_INLINE void pack_row(const Io* first, const Io* second, int64_t columns, Element<Mul>* out) {
  const int64_t width = panel_width(columns), n = columns < width ? columns : width;
  for (int64_t k = 0; k < n; ++k)
    out[k] = Operand<Mul>::element(convert<Mul>(first[k]), second ? convert<Mul>(second[k]) : Mul{});
  for (int64_t k = n; k < width; ++k) out[k] = Element<Mul>{};
}

// A register of elements from the first n operands of a row, zeros beyond.
template <class Mul, class Io>
ADL_INLINE typename Lanes<Element<Mul>>::Register load_elements(const Io* row, int64_t n) {
  constexpr int kOperands = Simd<Sum<Mul>>::kLanes * Operand<Mul>::kPack;
  typename Lanes<Element<Mul>>::Register r;
  if (n == 0) {
    r = typename Lanes<Element<Mul>>::Register{};
  } else if (__is_same(Io, Mul) && n >= kOperands) {
    std::memcpy(&r, row, sizeof r);
  } else {
    Mul operands[kOperands] = {};
    if constexpr (__is_same(Io, Mul))
      std::memcpy(operands, row, n * sizeof(Mul));
    else
      for (int64_t k = 0; k < (n < kOperands ? n : kOperands); ++k) operands[k] = convert<Mul>(row[k]);
    std::memcpy(&r, operands, sizeof r);
  }
  return r;
}

// w [G * H, K] to block j of [J, K / kPack, G, U]: the gates of U units side by side, gate g in column
// place[g] - first. U is a multiple of 16.
template <class Mul, class Io>
void pack_units(const Io* w, int64_t H, int64_t K, int64_t j, int gates, int units, const int* place, int first,
                Element<Mul>* out) {
  using E = Element<Mul>;
  constexpr int kPack = Operand<Mul>::kPack, kLanes = Simd<Sum<Mul>>::kLanes;
  const int64_t width = gates * units;
  for (int g = 0; g < gates; ++g) {
    for (int u = 0; u < units; u += kLanes) {
      E* column = out + (place[g] - first) * units + u;
      for (int64_t k = 0; k < K; k += kLanes * kPack) {
        typename Lanes<E>::Register rows[kLanes];
#pragma GCC unroll 16
        for (int n = 0; n < kLanes; ++n) {
          const int64_t unit = j * units + u + n;
          rows[n] = load_elements<Mul>(w + (g * H + unit) * K + k, unit < H ? K - k : 0);
        }
        transpose<typename Lanes<E>::Register, typename Format<Sum<Mul>>::Ints>(rows);
        const int64_t elements = blocks(K - k, kPack) < kLanes ? blocks(K - k, kPack) : kLanes;
        for (int64_t n = 0; n < elements; ++n) std::memcpy(column + (k / kPack + n) * width, &rows[n], kVectorBytes);
      }
    }
  }
}

// w [G * H, K] to panel q of [K / 64, J, G, U / kPack, 64]: the transposed product, its sum running over units.
template <class Mul, class Io>
void pack_transposed(const Io* w, int64_t H, int64_t K, int64_t q, int gates, int units, const int* place, int first,
                     Element<Mul>* out) {
  constexpr int kPack = Operand<Mul>::kPack;
  const int64_t columns = K - q * kPanel, width = panel_width(columns);
  for (int64_t j = 0; j * units < H; ++j) {
    for (int g = 0; g < gates; ++g) {
      for (int u = 0; u < units; u += kPack) {
        const int64_t unit = j * units + u;
        Element<Mul>* row = out + ((j * gates + place[g] - first) * units + u) / kPack * width;
        const Io* w_row = w + (g * H + unit) * K + q * kPanel;
        if (unit < H)
          pack_row<Mul>(w_row, kPack == 2 && unit + 1 < H ? w_row + K : nullptr, columns, row);
        else
          std::memset(row, 0, width * sizeof(Element<Mul>));
      }
    }
  }
}

}  // namespace
}  // namespace adl
