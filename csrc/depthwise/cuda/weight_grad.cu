// Chooses and launches the kernels of the gradient of the weights.
#include "common/cuda/each_number.h"
#include "depthwise/cuda/cells.cuh"
#include "depthwise/cuda/kernels.h"
#include "depthwise/cuda/weight_tiles.cuh"

namespace adl::cuda {

// These launch the blocks for the pieces of a gradient of weights; with null sums they only say how many pieces there
// are.
template <class T>
cudaError_t weight_tiles(const ConvWeightGrad<T>& g, Acc<T>* sums, const Gpu& gpu, int64_t& pieces,
                         cudaStream_t stream) {
  const Conv& c = g.conv;
  const PlaneSizes s(c, false, false);
  if (c.channels_last)
    return with_cell<true, false>(c, [&]<class Cell>(Cell*) {
      PixelTiles t = pixel_tiles(c.B, c.C, s.to_y, s.to_x, Cell::kRows, Cell::kColumns, gpu);
      t.tiles_y = int(divided_up(s.to_y, t.cells_y * Cell::kRows)), t.steps = 1;
      pieces = conv_pieces(c.B * t.tiles_y * t.tiles_x, t.chunks, gpu);
      if (!sums) return cudaSuccess;
      return launch(weight_grad_last<T, Cell>, unsigned(t.chunks * pieces), kTileThreads, stream, {}, g, t, s, pieces,
                    sums);
    });
  return with_cell<false, false>(c, [&]<class Cell>(Cell*) {
    const PlaneTiles t = tiles_of<T, Cell>(s, c.channels(), g.x, g.dy, static_cast<const T*>(nullptr));
    const int64_t groups = divided_up(c.channels(), t.planes);
    pieces = conv_pieces(c.B * t.tiles_y * t.tiles_x, groups, gpu);
    if (!sums) return cudaSuccess;
    const LaunchOptions options{t.planes * t.plane_bytes};
    return launch(weight_grad_first<T, Cell>, unsigned(groups * pieces), kTileThreads, stream, options, g, t, s,
                  plane_members(t), pieces, sums);
  });
}

template <class T>
cudaError_t weight_pieces(const ConvWeightGrad<T>& g, Acc<T>* sums, const Gpu& gpu, int64_t& pieces,
                          cudaStream_t stream) {
  const Conv& c = g.conv;
  if constexpr (!std::is_same_v<T, double>) {
    if (tiles_serve(c, false) && lies_for_tiles(c, g.x, g.dy, static_cast<const T*>(nullptr)))
      return weight_tiles(g, sums, gpu, pieces, stream);
  }
  const int lanes = c.channels_last ? channel_lanes(c.channels(), 32) : 1;
  const int64_t chunks = divided_up(c.channels(), lanes) * divided_up(c.taps(), kTapsAtOnce);
  pieces = conv_pieces(divided_up(c.B * c.out_size(), kConvThreads / lanes * kLeastPiece), chunks, gpu);
  if (!sums) return cudaSuccess;
  return launch(weight_grad_any<T>, unsigned(chunks * pieces), kConvThreads, stream, {}, g, lanes, pieces, sums);
}

template <class T>
int64_t conv_sums(const ConvWeightGrad<T>& g, const Gpu& gpu) {
  int64_t pieces = 0;
  weight_pieces<T>(g, nullptr, gpu, pieces, nullptr);
  return pieces * g.conv.channels() * (g.conv.taps() + 1);
}

template <class T>
cudaError_t convolve(const ConvWeightGrad<T>& g, Acc<T>* sums, const Gpu& gpu, cudaStream_t stream) {
  int64_t pieces = 0;
  const cudaError_t error = weight_pieces(g, sums, gpu, pieces, stream);
  if (error != cudaSuccess) return error;
  const int64_t taps = g.conv.taps(), entries = g.conv.channels() * (taps + 1);
  return launch(add_pieces<T>, unsigned(divided_up(entries, kEntries)), dim3(kEntries, kEntryGroups), stream, {},
                static_cast<const Acc<T>*>(sums), pieces, entries, taps, g.dweight, g.dbias);
}

}  // namespace adl::cuda

#define ADL_INSTANTIATE(T)                                                                               \
  template cudaError_t adl::cuda::convolve(const adl::ConvWeightGrad<T>&, adl::Acc<T>*, const adl::Gpu&, \
                                           cudaStream_t);                                                \
  template int64_t adl::cuda::conv_sums(const adl::ConvWeightGrad<T>&, const adl::Gpu&);
ADL_EACH_NUMBER(ADL_INSTANTIATE)
