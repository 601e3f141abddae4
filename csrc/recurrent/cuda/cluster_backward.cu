// Scans backward by teams of blocks, each a cluster.
#include "common/cuda/each_number.h"
#include "recurrent/cuda/team_backward.cuh"
#include "recurrent/cuda/team_start.cuh"

namespace adl::cuda {

template <class Cell, class T, class Tile>
struct ClusterBackward {
  static constexpr auto of = cluster_backward<Cell, T, Tile>;
};

template <class T>
const TeamStart<BackwardScan<T>>& cluster_backward_start(int cell) {
#define ADL_START(Cell) team_start<ClusterBackward, Cell, T, BackwardScan<T>>(),
  static constexpr TeamStart<BackwardScan<T>> kTable[] = {ADL_CELLS(ADL_START)};
#undef ADL_START
  return kTable[cell];
}

}  // namespace adl::cuda

#define ADL_INSTANTIATE(T) \
  template const adl::cuda::TeamStart<adl::BackwardScan<T>>& adl::cuda::cluster_backward_start<T>(int);
ADL_EACH_NUMBER_BUT_DOUBLE(ADL_INSTANTIATE)
