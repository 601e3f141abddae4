// Runs the kernels for teams of blocks, through the launchers that the ops use, and compares them with a plain scan in
// double: one line per check, exit code 1 if one is wrong. Needs no torch.
#include "scans.h"

namespace {

// For teams of blocks, enough of them for one that is not large.
constexpr adl::Gpu kLargerGpu{16, 227 * 1024, 2, 1};

template <class Cell, class T>
adl::Plan team_plan(const Case& k, adl::Tier tier, bool backward) {
  const adl::Arithmetic arithmetic = sizeof(T) == 2 ? adl::kHalfTensorCores : adl::kTf32TensorCores;
  return adl::plan_of(
      tier, {k.sizes.T, k.sizes.B, k.sizes.H, k.directions, Cell::kGates, Cell::kPre, arithmetic, backward, true, true},
      kLargerGpu);
}

template <class Cell, class T>
void team(Case k, adl::Tier tier, unsigned most_polls = adl::kMostPolls) {
  k.tf32 = sizeof(T) == 4;
  const double error = k.tf32 ? kTf32Error : Type<T>::kError;
  const std::string name = tier == adl::Tier::kGrid ? "grid" : "cluster";
  const auto& kernels = adl::cuda::team_kernels<T>(adl::index_of<Cell>());
  const auto forward = directions_of<Forward<Cell, T>>(k);
  const int64_t steps = k.sizes.T, parts = k.halves ? 2 : 1;
  for (int64_t part = 0; part < parts; ++part) {
    Directions<ForwardScan<T>> scans{k.directions, {}};
    for (int d = 0; d < k.directions; ++d) {
      ForwardScan<T>& scan = scans.of[d] = forward[d].scan(part * steps / parts, (part + 1) * steps / parts, true);
      if (tier == adl::Tier::kCluster) scan.mail = scan.y, scan.mail_stride = scan.y_stride;
    }
    check(kernels.forward(scans, team_plan<Cell, T>(k, tier, false), most_polls, kStream));
  }
  compare_all(name_of<Cell, T>((name + " forward").c_str(), k), results_of(forward), error);

  const auto backward = directions_of<Backward<Cell, T>>(k);
  Directions<BackwardScan<T>> scans{k.directions, {}};
  for (int d = 0; d < k.directions; ++d) scans.of[d] = backward[d].scan();
  check(kernels.backward(scans, team_plan<Cell, T>(k, tier, true), most_polls, kStream));
  compare_all(name_of<Cell, T>((name + " backward").c_str(), k), results_of(backward), error);
}

template <class Cell>
void teams(adl::Tier tier) {
  const Sizes full{4, 5, 64, {}}, packed{4, 5, 64, {5, 3, 2, 1}};
  team<Cell, BFloat>({packed, 2}, tier);
  team<Cell, Half>({full, 1, Save::kBeside, false, true}, tier);
  team<Cell, float>({full, 2}, tier);
}

// A grid of which a block is missing does not hang: what needs its words is NaN.
void missing_block() {
  const Case k{{3, 2, 64, {}}};
  const auto directions = directions_of<Forward<Lstm, BFloat>>(k);
  adl::Plan plan = team_plan<Lstm, BFloat>(k, adl::Tier::kGrid, false);
  --plan.blocks;
  const Directions<ForwardScan<BFloat>> scans{1, {directions[0].scan(0, 3, true), {}}};
  check(adl::cuda::team_kernels<BFloat>(adl::index_of<Lstm>()).forward(scans, plan, 100, kStream));
  const std::vector<Result> results = directions[0].results();
  const Doubles& y = results[0].got;
  const int64_t there = int64_t(plan.blocks) * plan.team.units, row = k.sizes.B * k.sizes.H;
  Doubles found, expected;
  for (int64_t i = 0; i < row; ++i) {
    if (i % k.sizes.H >= there) continue;
    found.push_back(std::isnan(y[i])), expected.push_back(0);
    found.push_back(std::isnan(y[row + i])), expected.push_back(1);
  }
  compare("grid with a block missing", {{"NaN: ", found, expected}});
}

void run_all() {
  for (adl::Tier tier : {adl::Tier::kCluster, adl::Tier::kGrid}) {
    if (tier == adl::Tier::kCluster && adl::cuda::clusters_at_once(8) == 0) continue;  // before compute capability 9.0
    teams<Lstm>(tier);
    teams<Gru>(tier);
    teams<RnnTanh>(tier);
    // Weights that do not fit into registers; more sequences than a tensor core takes at once.
    team<Lstm, float>({{2, 1, 320, {}}, 1}, tier);
    team<Lstm, BFloat>({{2, 70, 64, {}}, 1}, tier);
    // Rows that are no whole units of 16 bytes.
    team<Lstm, Half>({{3, 3, 53, {}}, 2}, tier);
    team<Gru, float>({{3, 2, 66, {2, 2, 1}}, 1}, tier);
  }
  missing_block();
}

}  // namespace

int main() { return run_checks(run_all); }
