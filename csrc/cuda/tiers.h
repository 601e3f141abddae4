// Which tier scans a layer, and in what shape: by a model of the time of a step, in microseconds. No CUDA here.
//
// docs/cuda_tiers.md says where the numbers of the model come from, and what it chooses for common shapes.
#pragma once

#include <initializer_list>

#include "cuda/launch.h"

namespace adl {

constexpr double kNever = 1e30;
constexpr int64_t kMostTeams = 65535;  // of a launch

enum class Tier { kStreaming, kBlock, kCluster, kGrid };

// What is to be scanned.
struct Scanned {
  int64_t B, H;
  int directions, gates, pre;
  Arithmetic arithmetic;
  bool backward;
  // Whether these tiers know what the layer asks for; streaming knows everything.
  bool by_blocks, by_teams;

  bool operator==(const Scanned&) const = default;
};

struct Plan {
  Tier tier = Tier::kStreaming;
  double microseconds = 0;  // predicted, of a step of all sequences
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
  double shared_rate = 128;  // shared memory
  double cluster_latency = 250, cluster_rate = 18;
  double grid_latency = 800, grid_rate = 64, grid_rate_of_all = 4500;
  double fixed = 220;  // barriers, loads of fragments, packing
  double forward_cell = 220, backward_cell = 300;
  double overlap = 0.35;  // of what is not the longest of product, shared memory and exchange
  double launch = 0.9;    // microseconds, of each of the two kernels of a streamed step
  double least_gemm = 2.8, gemm_start = 1.5, pointwise = 1.6, memory_rate = 4e6, gemm_rate = 3.2e8;
};

constexpr double larger(double a, double b) { return a > b ? a : b; }
constexpr double smaller(double a, double b) { return a < b ? a : b; }
constexpr const Plan& faster(const Plan& a, const Plan& b) { return b.microseconds < a.microseconds ? b : a; }

// Cycles of a step of a block, which waits so long for states or sums and so long for all their bytes.
constexpr double step_cycles(const Scanned& s, TeamProduct p, const TeamShape& t, size_t spilled, double latency,
                             double exchange, const Costs& k = {}) {
  const Arithmetic& a = s.arithmetic;
  const int columns = (t.rows + 7) / 8, down = tiles_down(p, s.H, s.gates, t.units);
  const int groups = (down + t.wide - 1) / t.wide, warps = groups * t.slices;
  const double product = double(t.wide) * t.deep * columns * (a.words / 4) * k.product * ((warps + 3) / 4);
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
  // As many sequences as let all teams run at once; or fewer, in two or three rounds.
  for (int round = 1; round <= 3; ++round) {
    const int64_t wanted = (s.B * directions + teams_at_once * round - 1) / (teams_at_once * round);
    const int64_t rows = wanted < most_team_rows(units, a) ? wanted : most_team_rows(units, a);
    const int64_t teams = (s.B + rows - 1) / rows * directions;
    const int64_t rounds = (teams + teams_at_once - 1) / teams_at_once * (s.directions / directions);
    const int64_t blocks_at_once = used * (teams < teams_at_once ? teams : teams_at_once);
    const double bytes = double(s.H) * rows *
                         (p == TeamProduct::kScatter  ? 4
                          : p == TeamProduct::kGather ? s.gates * a.state_bytes
                                                      : a.state_bytes);
    const double rate = cluster ? k.cluster_rate : smaller(k.grid_rate, k.grid_rate_of_all / blocks_at_once);
    for (int wide : {1, 2, 4}) {
      const TeamShape team = team_shape(p, s.H, s.gates, used, units, static_cast<int>(rows), wide);
      if (team.slices == 0) continue;
      const TeamLayout layout = team_layout(p, team, s.H, s.gates, a, cluster ? 2 : 1);
      if (layout.all > gpu.shared_bytes) continue;
      const double cycles =
          step_cycles(s, p, team, layout.spilled_bytes, cluster ? k.cluster_latency : k.grid_latency, bytes / rate, k);
      if (rounds * cycles / k.per_microsecond >= best.microseconds) continue;
      best.microseconds = rounds * cycles / k.per_microsecond, best.team = team, best.shared_bytes = layout.all;
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
                team_plan(s, Tier::kCluster, 16, gpu.clusters_of_16, s.directions, gpu));
}

constexpr Plan grid_plan(const Scanned& s, const Gpu& gpu) {
  Plan best = no_plan(Tier::kGrid);
  if (!teams_serve(s) || s.H % 8 != 0) return best;  // 16 bytes are loaded at once
  for (int blocks : {4, 8, 16, 24, 32, 48, 64, 96, 128})
    for (int directions = 1; directions <= s.directions; ++directions)
      best = faster(best, team_plan(s, Tier::kGrid, blocks, gpu.multiprocessors, directions, gpu));
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
  plan.microseconds = cycles / k.per_microsecond * ((blocks + gpu.multiprocessors - 1) / gpu.multiprocessors);
  return plan;
}

constexpr Plan streaming_plan(const Scanned& s, const Costs& k = {}) {
  Plan plan;
  const double size = double(s.arithmetic.state_bytes) * s.gates * s.H * s.H, numbers = double(s.B) * s.H;
  const double gemm = larger(k.least_gemm, larger(k.gemm_start + size / k.memory_rate,
                                                  k.gemm_start + 2 * s.gates * s.H * numbers / k.gemm_rate));
  const double step = gemm + k.pointwise + numbers * (s.gates + 3) * 4 / 3e6 + 2 * k.launch;
  plan.microseconds = s.directions * step * (s.backward ? 1.2 : 1);
  return plan;
}

constexpr Plan plan_of(Tier tier, const Scanned& s, const Gpu& gpu) {
  return tier == Tier::kBlock     ? block_plan(s, gpu)
         : tier == Tier::kCluster ? cluster_plan(s, gpu)
         : tier == Tier::kGrid    ? grid_plan(s, gpu)
                                  : streaming_plan(s);
}

// The fastest by the model; to find it takes some microseconds.
constexpr Plan choose(const Scanned& s, const Gpu& gpu) {
  Plan best = streaming_plan(s);
  for (Tier tier : {Tier::kBlock, Tier::kCluster, Tier::kGrid}) best = faster(best, plan_of(tier, s, gpu));
  return best;
}

}  // namespace adl
