// Launches the kernels for teams of blocks of one number type and fills their table.
#pragma once

#include "recurrent/cuda/kernels.h"
#include "recurrent/cuda/team_backward.cuh"

namespace adl::cuda {

// What T is multiplied by.
template <class T>
struct TileOf {
  using type = HalfTile<T>;
};
template <>
struct TileOf<float> {
  using type = Tf32Tile;
};

template <class Cell, class T, bool backward>
constexpr auto team_kernel(bool cluster) {
  using Tile = typename TileOf<T>::type;
  if constexpr (backward)
    return cluster ? cluster_backward<Cell, T, Tile> : grid_backward<Cell, T, Tile>;
  else
    return cluster ? team_forward<Cell, T, Tile, Cluster<Cell, T, Tile>>
                   : team_forward<Cell, T, Tile, Grid<Cell, T, Tile, false>>;
}

template <class Cell, class T, bool backward, class Scan>
cudaError_t start_team(const Directions<Scan>& d, const Plan& plan, unsigned most_polls, cudaStream_t stream) {
  const bool cluster = plan.tier == Tier::kCluster;
  LaunchOptions options;
  options.shared_bytes = plan.shared_bytes;
  options.cooperative = !cluster;
  options.cluster = cluster ? plan.blocks : 1;
  const auto kernel = team_kernel<Cell, T, backward>(cluster);
  const int64_t teams = (d.of[0].steps.B + plan.team.rows - 1) / plan.team.rows;
  for (int k = 0; k < d.count; k += plan.directions) {
    const Directions<Scan> some{plan.directions, {d.of[k], d.of[plan.directions - 1]}};
    for (int64_t first = 0; first < teams; first += plan.teams) {
      const int64_t left = teams - first;
      const dim3 grid(unsigned(plan.blocks), unsigned(left < plan.teams ? left : plan.teams), unsigned(some.count));
      const cudaError_t error = launch(kernel, grid, kTeamThreads, stream, options, some, plan.team, first, most_polls);
      if (error != cudaSuccess) return error;
    }
  }
  return cudaSuccess;
}

template <class Cell, class T>
bool runs_at_once(const Plan& plan, bool backward) {
  const auto kernel = backward ? reinterpret_cast<const void*>(team_kernel<Cell, T, true>(false))
                               : reinterpret_cast<const void*>(team_kernel<Cell, T, false>(false));
  return plan.blocks * plan.teams * plan.directions <= active_blocks(kernel, kTeamThreads, plan.shared_bytes);
}

template <class Cell, class T>
constexpr TeamKernels<T> team_kernels_of() {
  if constexpr (Cell::kResetsBefore)
    return {};
  else
    return {start_team<Cell, T, false, ForwardScan<T>>, start_team<Cell, T, true, BackwardScan<T>>,
            runs_at_once<Cell, T>};
}

template <class T>
const TeamKernels<T>& team_kernels(int cell) {
#define ADL_TEAM_KERNELS(Cell) team_kernels_of<Cell, T>(),
  static constexpr TeamKernels<T> kTable[] = {ADL_CELLS(ADL_TEAM_KERNELS)};
#undef ADL_TEAM_KERNELS
  return kTable[cell];
}

}  // namespace adl::cuda
