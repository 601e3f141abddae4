// Which places of its source a correlation sums: one axis of it, and the taps of all three.
#pragma once

#include "common/cpu/work.h"
#include "depthwise/params.h"

namespace adl {
namespace {

// Place i of the result sums source[i / R * S + offset] over the taps of its phase i % R. Forward has one phase and
// S = stride. The gradient of the input has S = 1 and a phase for every i % stride, since each has taps of its own.
struct Axis {
  int64_t n, source;  // places of the result and of the source
  int64_t kernel, R, S;
  int64_t low, high;          // no offset is less, or greater
  int64_t* offset = nullptr;  // [kernel] of each tap, phase by phase, with increasing offsets
  int32_t* tap = nullptr;     // [kernel]
  int32_t* begin = nullptr;   // [R + 1] where the taps of each phase begin

  static Axis forward(const Conv& c, int k) {
    const int64_t low = -c.pad[k];
    return {c.out[k], c.in[k], c.kernel[k], 1, c.stride[k], low, low + (c.kernel[k] - 1) * c.dilation[k]};
  }

  // dx[i] sums dy[o] over i = o * stride + k * dilation - pad.
  static Axis input_grad(const Conv& c, int k) {
    const int64_t R = c.stride[k], least = c.pad[k] - (c.kernel[k] - 1) * c.dilation[k];
    return {
        c.in[k], c.out[k], c.kernel[k], R, 1, least >= 0 ? least / R : -((R - 1 - least) / R), (R - 1 + c.pad[k]) / R};
  }

  void take(Arena& arena) {
    offset = arena.take<int64_t>(kernel), tap = arena.take<int32_t>(kernel), begin = arena.take<int32_t>(R + 1);
  }

  // Columns of a tile are sorted by their remainder modulo S; so are the taps then, in order to follow each other.
  void list_taps(const Conv& c, int axis, bool backward, bool by_remainder) {
    int32_t count = 0;
    for (int64_t r = 0; r < R; ++r) {
      begin[r] = count;
      for (int64_t remainder = 0; remainder < (by_remainder ? S : 1); ++remainder) {
        for (int64_t k = 0; k < kernel; ++k) {
          const int64_t t = backward ? kernel - 1 - k : k;
          const int64_t place = backward ? r + c.pad[axis] - t * c.dilation[axis] : t * c.dilation[axis] - c.pad[axis];
          if (place % R != 0 || (by_remainder && (place / R - low) % S != remainder)) continue;
          offset[count] = place / R, tap[count++] = int32_t(t);
        }
      }
    }
    begin[R] = count;
  }

  // A division takes longer than a few sums, and most axes have one phase.
  int64_t phase(int64_t i) const { return R == 1 ? 0 : i % R; }
  int64_t step(int64_t i) const { return (R == 1 ? i : i / R) * S; }
  int taps(int64_t phase) const { return begin[phase + 1] - begin[phase]; }
  int most_taps() const {
    int most = 0;
    for (int64_t r = 0; r < R; ++r) most = taps(r) > most ? taps(r) : most;
    return most;
  }
  // Places of the source that so many places of the result reach over, from a multiple of R on.
  int64_t reach(int64_t places) const { return (blocks(places, R) - 1) * S + high - low + 1; }
  // The source of place i, a multiple of R, by its least offset.
  int64_t first(int64_t i) const { return step(i) + low; }

  // The taps of place i that lie within the source.
  Range valid(int64_t i) const {
    const int64_t at = step(i), r = phase(i);
    Range taps{begin[r], begin[r + 1]};
    while (taps.begin < taps.end && at + offset[taps.begin] < 0) ++taps.begin;
    while (taps.begin < taps.end && at + offset[taps.end - 1] >= source) --taps.end;
    return taps;
  }
};

}  // namespace
}  // namespace adl
