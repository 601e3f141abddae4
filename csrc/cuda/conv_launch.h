// Every choice of threads and tiles of the depthwise convolutions, as functions of plain values. No CUDA here.
#pragma once

#include "convolution.h"
#include "cuda/launch.h"

namespace adl {

constexpr int kConvThreads = 256;  // of kernels that serve every size
constexpr int kTileThreads = 128;  // of those that make tiles: they need many registers

constexpr int64_t divided_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

// Of at most `most` lanes along the channels, the most that leave few without a channel.
constexpr int channel_lanes(int64_t channels, int most) {
  int lanes = most;
  while (lanes > 1 && divided_up(channels, lanes) * lanes * 8 > channels * 9) lanes /= 2;
  return lanes;
}

// ---- gradients of weights

constexpr int kTapsAtOnce = 8;      // that a thread sums, where there may be any number of them
constexpr int kEntries = 32;        // that a block adds the pieces of,
constexpr int kEntryGroups = 8;     // each by so many threads
constexpr int kBlocksPerUnit = 8;   // multiprocessors get so many blocks, if there is work for them
constexpr int64_t kLeastPiece = 8;  // positions that a thread sums, if there are as many

// The sums over batch and places are made in pieces, which a second kernel adds.
constexpr int64_t conv_pieces(int64_t places, int64_t blocks_for_one, const Gpu& gpu) {
  const int64_t wanted = divided_up(int64_t(kBlocksPerUnit) * gpu.multiprocessors, blocks_for_one);
  const int64_t most = divided_up(places, kLeastPiece);
  return wanted < most ? wanted : most;
}

}  // namespace adl
