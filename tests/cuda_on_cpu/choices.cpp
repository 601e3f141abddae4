// Prints what csrc/recurrent/cuda/launch.h and tiers.h decide, for tests/cuda/test_launch.py.
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <string>
#include <utility>

#include "recurrent/cuda/tiers.h"

using namespace adl;

static_assert(unit_threads(1) == 32 && unit_threads(33) == 64 && unit_threads(1000) == kUnitThreads);

// `fits <bytes of shared memory>`: a line for each arithmetic, cell, direction and hidden size.
void print_fits(const Gpu& gpu) {
  const Arithmetic all[] = {kHalfTensorCores, kTf32TensorCores, kFloatFma};
  for (int k = 0; k < 3; ++k)
    for (int gates : {1, 3, 4})
      for (bool backward : {false, true})
        for (int H = 1; H <= 200; ++H) {
          const int pre = gates == 3 ? 4 : gates;
          std::printf("%d %d %d %d %d\n", k, gates, backward, H, block_fits(H, gates, pre, all[k], backward, gpu));
        }
}

// `rows <multiprocessors>`: sequences per block, for batches and directions.
void print_rows(const Gpu& gpu) {
  for (int directions : {1, 2})
    for (int64_t B : {1, 132, 133, 264, 1000, 70000})
      std::printf("%d ", block_rows(B, directions, kHalfTensorCores, gpu));
}

// `banks`: whether eight neighbouring lanes read their states from different banks, whatever the width.
void print_banks() {
  for (int width = kTile; width <= 2048; width += kTile)
    if (state_stride(width, kHalfTensorCores) % 64 != 16 || state_stride(width, kTf32TensorCores) % 32 != 16)
      std::printf("%d ", width);
}

// Multiprocessors, shared memory and clusters of GPUs of every architecture that is compiled for. How many clusters run
// at once differs from one die to the next: a kernel's launcher asks.
struct Named {
  const char* name;
  Gpu gpu;
};
constexpr Named kGpus[] = {{"sm_80", {108, 163 << 10}},
                           {"sm_86", {82, 99 << 10}},
                           {"sm_90", {132, 227 << 10, 15, 7}},
                           {"sm_100", {148, 227 << 10, 16, 7}},
                           {"sm_120", {170, 99 << 10, 20, 0}}};
struct Cell {
  const char* name;
  int gates, pre;
  Arithmetic arithmetic;
};
constexpr Cell kLstm{"LSTM", 4, 4, kHalfTensorCores}, kGru{"GRU", 3, 4, kHalfTensorCores};
constexpr Cell kCells[] = {kLstm, kGru, {"LSTM tf32", 4, 4, kTf32TensorCores}, {"RNN", 1, 1, kHalfTensorCores}};
constexpr Cell kExactLstm{"LSTM float32", 4, 4, kFloatFma};
constexpr int64_t kSteps = 512;

constexpr Scanned scanned(const Cell& cell, int64_t B, int64_t H, int directions, bool backward) {
  return {kSteps, B, H, directions, cell.gates, cell.pre, cell.arithmetic, backward, true, true};
}

// Says what a kernel could not do.
void check_team(const char* gpu_name, const Gpu& gpu, const Scanned& s, const Plan& p) {
  const TeamShape& t = p.team;
  const auto complain = [&](const char* what) {
    std::printf("%s B%ld H%ld D%d gates %d %s %s: %s\n", gpu_name, long(s.B), long(s.H), s.directions, s.gates,
                s.backward ? "backward" : "forward", kTierNames[int(p.tier)], what);
  };
  const bool cluster = p.tier == Tier::kCluster;
  const TeamProduct product = product_of(p.tier, s.backward);
  const int down = tiles_down(product, s.H, s.gates, t.units), across = tiles_across(product, s.H, s.gates, t.units);
  if (int64_t(t.blocks) * t.units < s.H || int64_t(t.blocks - 1) * t.units >= s.H) complain("a block without units");
  if (t.units % (cluster ? 8 : 4)) complain("units that are no whole words");
  if (t.units / word_units(s.arithmetic) * t.rows > kTeamThreads) complain("more words than threads");
  if (t.rows < 1 || t.rows > kMostTeamRows) complain("rows");
  if ((down + t.wide - 1) / t.wide * t.slices > kTeamWarps || t.slices * t.deep < across) complain("tiles");
  if (p.shared_bytes > gpu.shared_bytes) complain("shared memory");
  if (cluster && (t.blocks > p.blocks || (p.blocks == 16 && !gpu.clusters_of_16) || !gpu.clusters_of_8))
    complain("a cluster that does not exist");
  if (!cluster && p.blocks * p.teams * p.directions > gpu.multiprocessors) complain("more blocks than run at once");
  if (p.teams < 1 || p.directions < 1 || s.directions % p.directions) complain("teams");
}

// `teams`: every plan for teams, on every GPU.
void print_mistakes() {
  for (const auto& [name, gpu] : kGpus)
    for (const Cell& cell : kCells)
      for (int directions : {1, 2})
        for (bool backward : {false, true})
          for (int64_t B : {1, 2, 3, 7, 8, 9, 16, 33, 64, 100, 500, 70000})
            for (int64_t H = 3; H <= 2304; H += H < 300 ? 5 : 57)
              for (Tier tier : {Tier::kCluster, Tier::kGrid}) {
                const Scanned s = scanned(cell, B, H, directions, backward);
                const Plan p = plan_of(tier, s, gpu);
                if (p.microseconds < kNever) check_team(name, gpu, s, p);
              }
}

// `choices`: the tier for each GPU, cell, direction, batch and hidden size.
void print_choices() {
  for (const auto& [name, gpu] : kGpus)
    for (const Cell& cell : kCells)
      for (bool backward : {false, true})
        for (int64_t B : {1, 16, 64, 128})
          for (int64_t H : {64, 128, 256, 512, 768, 1024, 1536, 2048}) {
            const Plan p = choose(scanned(cell, B, H, 1, backward), gpu);
            std::printf("%s,%s,%d,%ld,%ld,%s\n", name, cell.name, backward, long(B), long(H), kTierNames[int(p.tier)]);
          }
}

// `markdown`: the predictions in docs/cuda_tiers.md.
void print_markdown() {
  const Gpu gpu = kGpus[2].gpu;
  const auto text = [&](const Plan& p) {
    const std::string name = kTierNames[int(p.tier)];
    const bool team = p.tier == Tier::kCluster || p.tier == Tier::kGrid;
    return team ? name + " " + std::to_string(p.blocks) + " x " + std::to_string(p.team.rows) : name;
  };
  const auto chosen = [&](Scanned s, bool training, bool backward) {
    const bool cudnn = cudnn_is_faster(s, training, gpu);
    s.backward = backward;
    return cudnn ? cudnn_plan(s) : choose(s, gpu);
  };
  for (const auto& [cell, float16] : {std::pair{kLstm, true}, {kGru, true}, {kCells[2], false}, {kExactLstm, false}})
    for (int directions : {1, 2})
      for (int64_t B : {16, 64})
        for (int64_t H : {128, 256, 512, 650, 768, 1024}) {
          const bool exact = cell.arithmetic == kFloatFma;
          if (B != 16 && (directions == 2 || exact)) continue;
          if (exact && directions == 2) continue;
          Scanned s = scanned(cell, B, H, directions, false);
          s.cudnn = {true, float16, false, false, false, 1, H};
          const Plan infer = chosen(s, false, false), forward = chosen(s, true, false),
                     backward = chosen(s, true, true);
          const auto each = [&](double total) { return total / kSteps; };
          std::printf("| %s%s | %ld | %ld | %s | %.2f | %s; %s | %.2f |\n", cell.name,
                      directions == 2 ? ", bidirectional" : "", long(B), long(H), text(infer).c_str(),
                      each(total(infer, kSteps)), text(forward).c_str(), text(backward).c_str(),
                      each(total(forward, kSteps) + total(backward, kSteps)));
        }
}

int main(int, char** arguments) {
  const long number = arguments[2] ? std::atol(arguments[2]) : 0;
  switch (arguments[1][0]) {
    case 'f':
      print_fits({132, static_cast<size_t>(number)});
      break;
    case 'r':
      print_rows({static_cast<int>(number), 227 << 10});
      break;
    case 't':
      print_mistakes();
      break;
    case 'c':
      print_choices();
      break;
    case 'm':
      print_markdown();
      break;
    default:
      print_banks();
  }
}
