// Launches the kernels for teams of blocks.
#pragma once

#include "recurrent/cuda/table.h"
#include "recurrent/cuda/team.cuh"

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

// Kernel::of: a kernel for one cell.
template <class Kernel, class Scan>
cudaError_t start_team(const Directions<Scan>& d, const Plan& plan, unsigned most_polls, cudaStream_t stream) {
  const bool cluster = plan.tier == Tier::kCluster;
  LaunchOptions options;
  options.shared_bytes = plan.shared_bytes;
  options.cooperative = !cluster;
  options.cluster = cluster ? plan.blocks : 1;
  const int64_t teams = (d.of[0].steps.B + plan.team.rows - 1) / plan.team.rows;
  for (int k = 0; k < d.count; k += plan.directions) {
    const Directions<Scan> some{plan.directions, {d.of[k], d.of[plan.directions - 1]}};
    for (int64_t first = 0; first < teams; first += plan.teams) {
      const int64_t left = teams - first;
      const dim3 grid(unsigned(plan.blocks), unsigned(left < plan.teams ? left : plan.teams), unsigned(some.count));
      const cudaError_t error =
          launch(Kernel::of, grid, kTeamThreads, stream, options, some, plan.team, first, most_polls);
      if (error != cudaSuccess) return error;
    }
  }
  return cudaSuccess;
}

template <class Kernel>
int team_blocks_at_once(size_t shared_bytes) {
  return active_blocks(reinterpret_cast<const void*>(Kernel::of), kTeamThreads, shared_bytes);
}

template <class Kernel>
int team_clusters_at_once(int blocks) {
  return active_clusters(reinterpret_cast<const void*>(Kernel::of), blocks, kTeamThreads, 64 << 10);
}

template <template <class, class, class> class Kernel, class Cell, class T, class Scan>
constexpr TeamStart<Scan> team_start() {
  if constexpr (Cell::kResetsBefore) {
    return {};
  } else {
    using K = Kernel<Cell, T, typename TileOf<T>::type>;
    return {start_team<K, Scan>, team_blocks_at_once<K>, team_clusters_at_once<K>};
  }
}

}  // namespace adl::cuda
