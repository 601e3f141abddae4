// The tables of kernels, from their parts.
#include "recurrent/cuda/table.h"

namespace adl::cuda {

template <class T>
const Kernels<T>& kernels() {
  static const Kernels<T> table = [] {
    Kernels<T> made{};
    add_streaming(made);
    add_rows(made);
    if constexpr (sizeof(T) < 8) add_block_forward(made), add_block_backward(made);
    return made;
  }();
  return table;
}

template const Kernels<double>& kernels();
template const Kernels<float>& kernels();
template const Kernels<BFloat>& kernels();
template const Kernels<Half>& kernels();

template <int cell, class T>
constexpr TeamKernels<T> team_kernels_of() {
  return {[](const Directions<ForwardScan<T>>& d, const Plan& plan, unsigned most_polls, cudaStream_t stream) {
            const bool cluster = plan.tier == Tier::kCluster;
            return (cluster ? cluster_forward_start<T>(cell) : grid_forward_start<T>(cell))
                .scan(d, plan, most_polls, stream);
          },
          [](const Directions<BackwardScan<T>>& d, const Plan& plan, unsigned most_polls, cudaStream_t stream) {
            const bool cluster = plan.tier == Tier::kCluster;
            return (cluster ? cluster_backward_start<T>(cell) : grid_backward_start<T>(cell))
                .scan(d, plan, most_polls, stream);
          },
          [](const Plan& plan, bool backward) {
            const auto at_once =
                backward ? grid_backward_start<T>(cell).blocks_at_once : grid_forward_start<T>(cell).blocks_at_once;
            return plan.blocks * plan.teams * plan.directions <= at_once(plan.shared_bytes);
          }};
}

template <class T>
const TeamKernels<T>& team_kernels(int cell) {
#define ADL_TEAM_KERNELS(Cell) team_kernels_of<index_of<Cell>(), T>(),
  static constexpr TeamKernels<T> kTable[] = {ADL_CELLS(ADL_TEAM_KERNELS)};
#undef ADL_TEAM_KERNELS
  return kTable[cell];
}

template const TeamKernels<float>& team_kernels(int);
template const TeamKernels<BFloat>& team_kernels(int);
template const TeamKernels<Half>& team_kernels(int);

int clusters_at_once(int blocks) { return cluster_forward_start<BFloat>(index_of<Lstm>()).clusters_at_once(blocks); }

}  // namespace adl::cuda
