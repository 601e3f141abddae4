// Every choice of threads and tiles of the scans, as functions of plain values. No CUDA here.
#pragma once

#include "common/cuda/launch.h"

namespace adl {

constexpr int kUnitThreads = 256;  // of kernels with one thread per unit of a row
constexpr int kRowThreads = 8;     // rows of a block of 32 threads each

// Threads of a row with so many units: few where it is short.
constexpr unsigned unit_threads(int64_t units) {
  return units >= kUnitThreads ? kUnitThreads : static_cast<unsigned>((units + 31) / 32 * 32);
}

// ---- the block-resident tier: a warp holds all gates of 16 units, so a block all of at most 128

constexpr int kMaxTiles = 8;        // in either direction
constexpr int kBlockThreads = 256;  // at most: a warp for each tile of units

constexpr int kRegisterWords = 128;  // that each thread may hold of the weights

// Tiles along the states that each lane holds in registers, for each gate; the others lie in shared memory.
constexpr int register_tiles(int gates, Arithmetic a) {
  const int fit = kRegisterWords / (gates * a.words);
  return fit < kMaxTiles ? fit : kMaxTiles;
}

// A row of states holds h, in backward the gradients of all gates.
constexpr int state_width(int64_t H, int gates, bool backward) { return tiles(H) * kTile * (backward ? gates : 1); }

// Shared memory of a block: two buffers of states; in forward the biases of all pre-activations; weights.
constexpr size_t state_bytes(int64_t H, int gates, Arithmetic a, bool backward) {
  return size_t(2) * a.rows * state_stride(state_width(H, gates, backward), a) * a.state_bytes;
}
constexpr size_t bias_bytes(int64_t H, int pre, bool backward) {
  return backward ? 0 : size_t(4) * pre * tiles(H) * kTile;
}
constexpr size_t spilled_bytes(int64_t H, int gates, Arithmetic a) {
  const int n = tiles(H), held = register_tiles(gates, a);
  return n > held ? size_t(n) * (n - held) * gates * 32 * a.words * 4 : 0;
}
constexpr size_t staging_bytes(int64_t H, int gates, Arithmetic a) {  // of what is in registers, before all that
  return size_t(tiles(H)) * register_tiles(gates, a) * 32 * a.words * 4;
}
constexpr size_t block_shared_bytes(int64_t H, int gates, int pre, Arithmetic a, bool backward) {
  const size_t all = state_bytes(H, gates, a, backward) + bias_bytes(H, pre, backward) + spilled_bytes(H, gates, a);
  const size_t staging = staging_bytes(H, gates, a);
  return all > staging ? all : staging;
}

// Sequences per block: as few as fill the GPU, since the time of a step hardly depends on it.
constexpr int block_rows(int64_t B, int directions, Arithmetic a, const Gpu& gpu) {
  const int64_t rows = (B * directions + gpu.multiprocessors - 1) / gpu.multiprocessors;
  return static_cast<int>(rows < 1 ? 1 : rows > a.rows ? a.rows : rows);
}

constexpr bool block_fits(int64_t H, int gates, int pre, Arithmetic a, bool backward, const Gpu& gpu) {
  return tiles(H) <= kMaxTiles && block_shared_bytes(H, gates, pre, a, backward) <= gpu.shared_bytes;
}

// ---- teams: blocks that hold W_hh of a direction together and exchange states, see team.cuh

constexpr int kTeamThreads = 256, kTeamWarps = kTeamThreads / 32;
constexpr int kMostTeamRows = 32;  // sequences
// How often a block of a team asks for what does not come; about a microsecond each, so two seconds.
constexpr unsigned kMostPolls = 1u << 21;

// The numbers of a word, which a thread owns.
constexpr int word_units(Arithmetic a) { return 4 / a.state_bytes; }

// What a block multiplies with its part of W_hh, all gates of its units:
//   kForward  the states of all units; the sums are the gates of its own
//   kGather   the gradients of all gates; the sums are dL/dh of its own units (its part is one of W_hh^T then)
//   kScatter  the gradients of its own gates; the sums are a part of dL/dh of all units
enum class TeamProduct { kForward, kGather, kScatter };

// Tiles of rows and of columns of a block's part.
constexpr int tiles_down(TeamProduct p, int64_t H, int gates, int units) {
  return p == TeamProduct::kForward ? tiles(gates * units) : p == TeamProduct::kGather ? tiles(units) : tiles(H);
}
constexpr int tiles_across(TeamProduct p, int64_t H, int gates, int units) {
  return p == TeamProduct::kForward ? tiles(H) : p == TeamProduct::kGather ? gates * tiles(H) : tiles(gates * units);
}

struct TeamShape {
  int blocks;  // of a team that have units; a cluster may have more
  int units;   // of a block
  int rows;    // sequences of a team
  // A warp has `wide` times `deep` tiles of the block's part; `slices` warps share rows of it.
  int wide, deep, slices;
};

// How a block with so many units cuts its product among its warps, each `wide`; no slices where they are too few.
constexpr TeamShape team_shape(TeamProduct p, int64_t H, int gates, int blocks, int units, int rows, int wide) {
  const int down = tiles_down(p, H, gates, units), across = tiles_across(p, H, gates, units);
  const int groups = (down + wide - 1) / wide,
            most = p == TeamProduct::kScatter ? groups <= kTeamWarps : kTeamWarps / groups;
  const int deep = most ? (across + most - 1) / most : 0;
  return {blocks, units, rows, wide, deep, deep ? (across + deep - 1) / deep : 0};
}

// Words that the lane of a warp holds in registers, whole tiles of them.
constexpr int held_tiles(Arithmetic a) { return kRegisterWords / a.words; }

// Where things lie in the shared memory of a block, and how many bytes it needs.
struct TeamLayout {
  size_t states, sums, sources, spilled, spilled_bytes, all;
  // In numbers: a row of states; the sums of a sequence; all sums of one slice, or of one block that scatters.
  int stride, sums_stride, sums_slice;
};

// `buffers` of states, or with kScatter of sums.
constexpr TeamLayout team_layout(TeamProduct p, const TeamShape& t, int64_t H, int gates, Arithmetic a, int buffers) {
  TeamLayout l{};
  const bool scatters = p == TeamProduct::kScatter;
  l.stride = state_stride(tiles_across(p, H, gates, t.units) * kTile, a);
  l.sums_stride = scatters ? t.units : tiles_down(p, H, gates, t.units) * kTile + 4;  // stores meet different banks
  l.sums_slice = (scatters ? t.rows : (t.rows + 7) / 8 * 8) * l.sums_stride;
  const int beyond = t.wide * t.deep - held_tiles(a);
  size_t at = 64;  // barriers
  l.states = at, at += size_t(buffers) * t.rows * l.stride * a.state_bytes;
  l.sums = at, at += size_t(scatters ? buffers * t.blocks : t.slices) * l.sums_slice * 4;
  l.sources = at, at += size_t(2) * t.rows * 16;
  l.spilled = (at + 15) / 16 * 16;
  l.spilled_bytes = beyond > 0 ? size_t(kTeamWarps) * beyond * 32 * a.words * 4 : 0;
  at = l.spilled + l.spilled_bytes;
  const size_t staging = size_t(kTeamWarps) * 4 * 32 * a.words * 4;  // of what goes to registers, before all that
  l.all = at > staging ? at : staging;
  return l;
}

// Units of a block: of a cluster whole groups of 16 bytes, of a grid whole words.
constexpr int team_units(int64_t H, int blocks, bool cluster) {
  const int step = cluster ? 8 : 4;
  return static_cast<int>((H + int64_t(blocks) * step - 1) / (int64_t(blocks) * step)) * step;
}

// The sequences that the threads of a block can own.
constexpr int most_team_rows(int units, Arithmetic a) {
  const int rows = kTeamThreads * word_units(a) / units;
  return rows < kMostTeamRows ? rows : kMostTeamRows;
}

}  // namespace adl
