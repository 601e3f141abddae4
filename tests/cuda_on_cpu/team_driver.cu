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

// Whether each number is right or NaN, and whether `last` and `end` are NaN throughout.
void compare_lost(const std::string& name, const Result& steps, const Doubles& last, const Doubles& end) {
  Doubles found, all_nan;
  const double error = 2e-2 * *std::max_element(steps.expected.begin(), steps.expected.end());
  for (size_t i = 0; i < steps.got.size(); ++i)
    found.push_back(std::isnan(steps.got[i]) || std::fabs(steps.got[i] - steps.expected[i]) <= error);
  for (const Doubles& v : {last, end})
    for (double x : v) all_nan.push_back(std::isnan(x));
  compare(name, {{"right or NaN: ", found, Doubles(found.size(), 1)}, {"NaN: ", all_nan, Doubles(all_nan.size(), 1)}});
}

// A team of which a block is missing does not hang: the others have the first step, and NaN for all after it.
void missing_block(adl::Tier tier) {
  const bool grid = tier == adl::Tier::kGrid;
  const Case k{{3, 2, 64, {}}};
  const auto forward = directions_of<Forward<Lstm, BFloat>>(k);
  adl::Plan plan = team_plan<Lstm, BFloat>(k, tier, false);
  --(grid ? plan.blocks : plan.team.blocks);
  const auto& kernels = adl::cuda::team_kernels<BFloat>(adl::index_of<Lstm>());
  check(kernels.forward({1, {forward[0].scan(0, 3, true), {}}}, plan, 100, kStream));
  const Result y = forward[0].results()[0];
  const int64_t there = int64_t(plan.team.blocks - grid) * plan.team.units, row = k.sizes.B * k.sizes.H;
  Doubles found, expected;
  for (int64_t i = 0; i < row; ++i) {
    if (i % k.sizes.H >= there) continue;
    found.push_back(std::fabs(y.got[i] - y.expected[i]) > 0.02), expected.push_back(0);
    for (int64_t t : {1, 2}) found.push_back(std::isnan(y.got[t * row + i])), expected.push_back(1);
  }
  compare(grid ? "grid with a block missing" : "cluster with a block missing", {{"NaN: ", found, expected}});
  if (!grid) return;  // backward it would need what nobody has sent it

  const auto backward = directions_of<Backward<Lstm, BFloat>>(k);
  plan = team_plan<Lstm, BFloat>(k, tier, true);
  --plan.blocks;
  check(kernels.backward({1, {backward[0].scan(), {}}}, plan, 100, kStream));
  const Result dgates = backward[0].results()[0];
  const Doubles first(dgates.got.begin(), dgates.got.begin() + 4 * row);
  compare_lost("grid backward with a block missing", dgates, first, {});
}

#ifdef ADL_CUDA_ON_CPU
// A block comes so late that others have given up waiting, all of their warps (then all is NaN in the end, also where
// sequences begin anew) or some: nothing is wrong.
template <class Cell, class T>
void late_block(Case k, bool reset) {
  k.tf32 = sizeof(T) == 4;
  setenv("ADL_EMULATOR_SLEEPER", "1", 1);
  const char* schedule = getenv("ADL_EMULATOR_SCHEDULE");
  const bool all = !schedule || !strcmp(schedule, "fifo");
  const auto& kernels = adl::cuda::team_kernels<T>(adl::index_of<Cell>());
  const int64_t row = k.sizes.B * k.sizes.H, before = (k.sizes.T - 1) * k.sizes.B;
  std::vector<char> resets(k.sizes.T * k.sizes.B, 0);
  std::fill(resets.begin() + before, resets.end(), char(reset));
  const Array<char> on_device(resets);

  const auto forward = directions_of<Forward<Cell, T>>(k);
  Directions<ForwardScan<T>> f{1, {forward[0].scan(0, k.sizes.T, true), {}}};
  f.of[0].steps.reset = reinterpret_cast<const bool*>(+on_device);
  check(kernels.forward(f, team_plan<Cell, T>(k, adl::Tier::kCluster, false), 100, kStream));
  const std::vector<Result> found = forward[0].results();
  const Doubles& y = found[0].got;
  Result steps = found[0];
  if (reset) steps.got.resize(before * k.sizes.H), steps.expected.resize(before * k.sizes.H);
  compare_lost(name_of<Cell, T>(reset ? "forward, late and reset" : "forward, late", k), steps,
               all ? Doubles(y.end() - row, y.end()) : Doubles(), all ? found[1].got : Doubles());

  if (!reset) {
    const auto backward = directions_of<Backward<Cell, T>>(k);
    const Directions<BackwardScan<T>> b{1, {backward[0].scan(), {}}};
    check(kernels.backward(b, team_plan<Cell, T>(k, adl::Tier::kCluster, true), 100, kStream));
    const std::vector<Result> grads = backward[0].results();
    const Doubles& dgates = grads[0].got;
    compare_lost(name_of<Cell, T>("backward, late", k), grads[0],
                 all ? Doubles(dgates.begin(), dgates.begin() + Cell::kPre * row) : Doubles(),
                 all ? grads[1].got : Doubles());
  }
  unsetenv("ADL_EMULATOR_SLEEPER");
}
#endif

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
    missing_block(tier);
  }
#ifdef ADL_CUDA_ON_CPU
  late_block<Lstm, BFloat>({{5, 3, 64, {}}}, false);
  late_block<Lstm, BFloat>({{5, 3, 64, {}}}, true);
  late_block<Gru, float>({{5, 9, 72, {}}}, false);
  late_block<RnnTanh, Half>({{5, 2, 40, {}}}, false);
#endif
}

}  // namespace

int main() { return run_checks(run_all); }
