// Scans forward by teams of blocks, each a grid.
#include "common/cuda/each_number.h"
#include "recurrent/cuda/team.cuh"
#include "recurrent/cuda/team_start.cuh"

namespace adl::cuda {

template <class Cell, class T, class Tile>
struct GridForward {
  static constexpr auto of = team_forward<Cell, T, Tile, Grid<Cell, T, Tile, false>>;
};

template <class T>
const TeamStart<ForwardScan<T>>& grid_forward_start(int cell) {
#define ADL_START(Cell) team_start<GridForward, Cell, T, ForwardScan<T>>(),
  static constexpr TeamStart<ForwardScan<T>> kTable[] = {ADL_CELLS(ADL_START)};
#undef ADL_START
  return kTable[cell];
}

}  // namespace adl::cuda

#define ADL_INSTANTIATE(T) \
  template const adl::cuda::TeamStart<adl::ForwardScan<T>>& adl::cuda::grid_forward_start<T>(int);
ADL_EACH_NUMBER_BUT_DOUBLE(ADL_INSTANTIATE)
