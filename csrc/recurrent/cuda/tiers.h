// Which tier scans a layer, and in what shape: by a model of the time it takes, in microseconds. No CUDA here.
//
// docs/cuda_tiers.md says where the numbers of the model come from, and what it chooses for common shapes.
#pragma once

#include <initializer_list>

#include "recurrent/cuda/launch.h"

namespace adl {

constexpr double kNever = 1e30;
constexpr int64_t kMostTeams = 65535;  // of a launch
constexpr int kMostRounds = 6;         // of teams that follow each other

enum class Tier { kStreaming, kBlock, kCluster, kGrid, kCudnn };
constexpr const char* kTierNames[] = {"streaming", "block", "cluster", "grid", "cudnn"};

// What cuDNN has to know of layers that torch.nn has too.
struct CudnnLayers {
  bool serves = false;  // torch has such layers, and would call cuDNN for them
  bool float16 = false, float64 = false, packed = false, projection = false;
  int layers = 1;
  int64_t I = 0;

  bool operator==(const CudnnLayers&) const = default;
};

// What is to be scanned.
struct Scanned {
  int64_t T, B, H;
  int directions, gates, pre;
  Arithmetic arithmetic;
  bool backward;
  // Whether these tiers know what the layer asks for; streaming knows everything.
  bool by_blocks, by_teams;
  CudnnLayers cudnn{};

  bool operator==(const Scanned&) const = default;
};

struct Plan {
  Tier tier = Tier::kStreaming;
  double microseconds = 0;  // predicted, of a step of all sequences
  double start = 0;         // and once for all steps
  // Of teams:
  TeamShape team{};
  int blocks = 0;      // that are launched for a team: in a cluster, more than have units
  int directions = 0;  // that are launched at once
  int64_t teams = 0;   // of each of these
  size_t shared_bytes = 0;
};

// Estimates until they are measured (tests/gpu begins with that): cycles of 1.98 GHz, bytes and cycles of them.
struct Costs {
  double per_microsecond = 1980;
  double product = 6.6;      // of a tensor-core product 16 x 8 x 16, on one of four
  double fma_product = 32;   // of the same for four sequences without tensor cores, on one of four
  double shared_rate = 128;  // shared memory
  double cluster_latency = 250, cluster_rate = 18;
  double grid_latency = 800, grid_rate = 64, grid_rate_of_all = 4500;
  double fixed = 220;  // barriers, loads of fragments, packing
  double forward_cell = 220, backward_cell = 300;
  double overlap = 0.35;  // of what is not the longest of product, shared memory and exchange
  double load_rate = 16;  // of a block that loads its part of the weights before the first step
  double launch = 0.9;    // microseconds, of each of the two kernels of a streamed step
  double least_gemm = 2.8, gemm_start = 1.5, pointwise = 1.6, memory_rate = 4e6, gemm_rate = 3.2e8;
  double team_start = 5;  // microseconds, of a launch whose blocks must find each other
  // cuDNN, microseconds: what a call takes besides its steps; a step of its standard algorithm at least, and relative
  // to a streamed one; of that for few units; of the persistent one, and for each of its numbers.
  double cudnn_start = 20, cudnn_least = 4, cudnn_standard = 0.6, cudnn_small = 1.5;
  double cudnn_persistent = 1.1, cudnn_persistent_number = 6e-5;
  double cudnn_backward = 1.4;   // a step backward, relative to one forward
  double cudnn_direction = 0.2;  // that a second direction adds
  double cudnn_stacked = 0.75;   // layers that run behind each other, relative to each alone
};

constexpr double larger(double a, double b) { return a > b ? a : b; }
constexpr double smaller(double a, double b) { return a < b ? a : b; }
constexpr double total(const Plan& p, int64_t T) { return p.start + p.microseconds * double(T); }
constexpr const Plan& faster(const Plan& a, const Plan& b, int64_t T) { return total(b, T) < total(a, T) ? b : a; }

// Cycles of a step of a block, which waits so long for states or sums and so long for all their bytes.
constexpr double step_cycles(const Scanned& s, TeamProduct p, const TeamShape& t, size_t spilled, double latency,
                             double exchange, const Costs& k = {}) {
  const Arithmetic& a = s.arithmetic;
  const int columns = (t.rows + 7) / 8, down = tiles_down(p, s.H, s.gates, t.units);
  const int groups = (down + t.wide - 1) / t.wide, warps = groups * t.slices;
  const double tile = a == kFloatFma ? k.fma_product : a.words / 4 * k.product;
  const double product = double(t.wide) * t.deep * columns * tile * ((warps + 3) / 4);
  const double operands = double(warps) * t.deep * columns * 8 * kTile * a.state_bytes;
  const double sums = 2.0 * t.slices * columns * 8 * down * kTile * 4;
  const double shared = (double(spilled) * columns + operands + sums) / k.shared_rate;
  const double longest = larger(product, larger(shared, exchange));
  const double cell = (s.backward ? k.backward_cell : k.forward_cell) + double(t.units) * t.rows * 10 / 16;
  return latency + longest + k.overlap * (product + shared + exchange - longest) + cell + k.fixed;
}

// Teams have tensor cores only.
constexpr bool teams_serve(const Scanned& s) { return s.by_teams && s.arithmetic.rows == 8; }

constexpr Plan no_plan(Tier tier) {
  Plan plan;
  plan.tier = tier, plan.microseconds = kNever;
  return plan;
}

constexpr TeamProduct product_of(Tier tier, bool backward) {
  return !backward ? TeamProduct::kForward : tier == Tier::kCluster ? TeamProduct::kScatter : TeamProduct::kGather;
}

// Until a block has its part of the weights.
constexpr double start_of(double weight_bytes, const Costs& k = {}) {
  return k.team_start + weight_bytes / k.load_rate / k.per_microsecond;
}

// The best shape for teams of so many blocks, of which so many run at once; some for each of `directions`.
constexpr Plan team_plan(const Scanned& s, Tier tier, int blocks, int64_t at_once, int directions, const Gpu& gpu,
                         const Costs& k = {}) {
  const Arithmetic& a = s.arithmetic;
  const bool cluster = tier == Tier::kCluster;
  const TeamProduct p = product_of(tier, s.backward);
  Plan best = no_plan(tier);
  const int units = team_units(s.H, blocks, cluster), used = static_cast<int>((s.H + units - 1) / units);
  const int64_t teams_at_once = cluster ? at_once : at_once / used / directions * directions;
  if (teams_at_once < 1 || most_team_rows(units, a) < 1) return best;
  // As many sequences as let all teams run at once; or fewer, in some rounds.
  for (int round = 1; round <= kMostRounds; ++round) {
    const int64_t wanted = (s.B * directions + teams_at_once * round - 1) / (teams_at_once * round);
    const int64_t rows = wanted < most_team_rows(units, a) ? wanted : most_team_rows(units, a);
    const int64_t teams = (s.B + rows - 1) / rows * directions;
    const int64_t rounds = (teams + teams_at_once - 1) / teams_at_once * (s.directions / directions);
    const int64_t blocks_at_once = used * (teams < teams_at_once ? teams : teams_at_once);
    const double bytes = double(s.H) * rows *
                         (p == TeamProduct::kScatter  ? 4
                          : p == TeamProduct::kGather ? s.gates * a.state_bytes
                                                      : a.state_bytes);
    const double start = rounds * start_of(double(s.gates) * units * s.H * (a.words / 2), k);
    const double rate = cluster ? k.cluster_rate : smaller(k.grid_rate, k.grid_rate_of_all / blocks_at_once);
    for (int wide : {1, 2, 4}) {
      const TeamShape team = team_shape(p, s.H, s.gates, used, units, static_cast<int>(rows), wide);
      if (team.slices == 0) continue;
      const TeamLayout layout = team_layout(p, team, s.H, s.gates, a, cluster ? 2 : 1);
      if (layout.all > gpu.shared_bytes) continue;
      const double cycles =
          step_cycles(s, p, team, layout.spilled_bytes, cluster ? k.cluster_latency : k.grid_latency, bytes / rate, k);
      const double step = rounds * cycles / k.per_microsecond;
      if (start + step * double(s.T) >= total(best, s.T)) continue;
      best.start = start, best.microseconds = step, best.team = team, best.shared_bytes = layout.all;
      best.blocks = cluster ? blocks : used, best.directions = directions;
      // Clusters wait for their turn by themselves; a grid has to be under way as a whole.
      best.teams = cluster ? kMostTeams : teams_at_once / directions;
    }
  }
  return best;
}

constexpr Plan cluster_plan(const Scanned& s, const Gpu& gpu) {
  if (!teams_serve(s)) return no_plan(Tier::kCluster);
  return faster(team_plan(s, Tier::kCluster, 8, gpu.clusters_of_8, s.directions, gpu),
                team_plan(s, Tier::kCluster, 16, gpu.clusters_of_16, s.directions, gpu), s.T);
}

constexpr Plan grid_plan(const Scanned& s, const Gpu& gpu) {
  Plan best = no_plan(Tier::kGrid);
  if (!teams_serve(s)) return best;
  for (int blocks : {4, 8, 16, 24, 32, 48, 64, 96, 128})
    for (int directions = 1; directions <= s.directions; ++directions)
      best = faster(best, team_plan(s, Tier::kGrid, blocks, gpu.multiprocessors, directions, gpu), s.T);
  return best;
}

constexpr Plan block_plan(const Scanned& s, const Gpu& gpu, const Costs& k = {}) {
  Plan plan = no_plan(Tier::kBlock);
  const Arithmetic& a = s.arithmetic;
  if (!s.by_blocks || !block_fits(s.H, s.gates, s.pre, a, s.backward, gpu)) return plan;
  const int rows = block_rows(s.B, s.directions, a, gpu);
  const int64_t blocks = (s.B + rows - 1) / rows * s.directions;
  // As a team of one block, whose warps do not share rows of the product.
  const TeamProduct p = s.backward ? TeamProduct::kGather : TeamProduct::kForward;
  const int units = tiles(s.H) * kTile, down = s.backward ? 1 : s.gates;
  const TeamShape team{1, units, rows, down, tiles_across(p, s.H, s.gates, units), 1};
  const double cycles = step_cycles(s, p, team, spilled_bytes(s.H, s.gates, a), 0, 0, k);
  const int64_t rounds = (blocks + gpu.multiprocessors - 1) / gpu.multiprocessors;
  plan.start = rounds * start_of(double(s.gates) * units * units * (a.words / 2), k);
  plan.microseconds = rounds * cycles / k.per_microsecond;
  return plan;
}

// Steps of one direction, and for the others after it.
constexpr double streamed_step(const Scanned& s, const Costs& k) {
  const double size = double(s.arithmetic.state_bytes) * s.gates * s.H * s.H, numbers = double(s.B) * s.H;
  const double gemm = larger(k.least_gemm, larger(k.gemm_start + size / k.memory_rate,
                                                  k.gemm_start + 2 * s.gates * s.H * numbers / k.gemm_rate));
  return gemm + k.pointwise + numbers * (s.gates + 3) * 4 / 3e6 + 2 * k.launch;
}

constexpr Plan streaming_plan(const Scanned& s, const Costs& k = {}) {
  Plan plan;
  plan.microseconds = s.directions * streamed_step(s, k) * (s.backward ? 1.2 : 1);
  return plan;
}

// ---- cuDNN, for layers that torch has too: its algorithm is torch's choice

enum class CudnnAlgorithm { kStandard, kSmall, kPersistent };

// As aten/src/ATen/native/cudnn/RNN.cpp chooses (torch 2.11 to 2.14), for GPUs of 98 multiprocessors or more.
constexpr CudnnAlgorithm cudnn_algorithm(const Scanned& s) {
  const CudnnLayers& l = s.cudnn;
  if (l.projection || l.packed || l.float64) return CudnnAlgorithm::kStandard;
  const int64_t small = s.gates == 1 ? (s.backward ? 256 : 384) : s.backward ? 128 : 192;
  if (s.H <= small) return CudnnAlgorithm::kSmall;
  const bool fits = l.float16 && l.layers == 1 && s.directions == 1 && s.H % 128 == 0 && l.I % 128 == 0 && s.H <= 1024;
  const bool fast = s.B % 8 == 0 && s.B <= 128 && s.gates != 3 && (s.gates == 4 || s.B < 96 || s.H < 896);
  return fits && fast ? CudnnAlgorithm::kPersistent : CudnnAlgorithm::kStandard;
}

// Of one of the layers.
constexpr Plan cudnn_plan(const Scanned& s, const Costs& k = {}) {
  if (!s.cudnn.serves) return no_plan(Tier::kCudnn);
  Plan plan;
  plan.tier = Tier::kCudnn;
  plan.start = k.cudnn_start / s.cudnn.layers;
  double step = 0;
  switch (cudnn_algorithm(s)) {
    case CudnnAlgorithm::kSmall:
      step = k.cudnn_small;
      break;
    case CudnnAlgorithm::kPersistent:
      step = k.cudnn_persistent + k.cudnn_persistent_number * double(s.H) * double(s.B < 16 ? 16 : s.B);
      break;
    default:
      step = larger(k.cudnn_least, k.cudnn_standard * streamed_step(s, k)) * (s.cudnn.layers > 1 ? k.cudnn_stacked : 1);
  }
  plan.microseconds = step * (s.backward ? k.cudnn_backward : 1) * (1 + k.cudnn_direction * (s.directions - 1));
  return plan;
}

// ---- the choice

constexpr Plan plan_of(Tier tier, const Scanned& s, const Gpu& gpu) {
  return tier == Tier::kBlock     ? block_plan(s, gpu)
         : tier == Tier::kCluster ? cluster_plan(s, gpu)
         : tier == Tier::kGrid    ? grid_plan(s, gpu)
         : tier == Tier::kCudnn   ? cudnn_plan(s)
                                  : streaming_plan(s);
}

// The fastest of those that hold the weights.
constexpr Plan resident_plan(const Scanned& s, const Gpu& gpu) {
  Plan best = no_plan(Tier::kStreaming);
  for (Tier tier : {Tier::kBlock, Tier::kCluster, Tier::kGrid}) best = faster(best, plan_of(tier, s, gpu), s.T);
  return best;
}

// The fastest of this package's own; to find it takes some microseconds.
constexpr Plan choose(const Scanned& s, const Gpu& gpu) {
  return faster(streaming_plan(s), resident_plan(s, gpu), s.T);
}

// A few steps are streamed, in as many launches as torch's cells take; else cuDNN is at least as fast.
constexpr int64_t kFewSteps = 3;

// Whether layers are to be computed by cuDNN: in training forward and backward, which need each other.
constexpr bool cudnn_is_faster(Scanned s, bool training, const Gpu& gpu) {
  if (!s.cudnn.serves) return false;
  double own = 0, cudnn = 0;
  for (bool backward : {false, true}) {
    if (backward && !training) break;
    s.backward = backward;
    own += total(s.T <= kFewSteps ? choose(s, gpu) : resident_plan(s, gpu), s.T);
    cudnn += total(cudnn_plan(s), s.T);
  }
  return cudnn < own;
}

}  // namespace adl
