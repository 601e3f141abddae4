// Chooses and launches the kernels of the depthwise convolutions.
#pragma once

#include <type_traits>

#include "depthwise/cuda/filter_first.cuh"
#include "depthwise/cuda/filter_last.cuh"
#include "depthwise/cuda/kernels.h"
#include "depthwise/cuda/separable.cuh"
#include "depthwise/cuda/weight_tiles.cuh"

namespace adl::cuda {

// Calls f with a null pointer to the cell for a convolution that tiles serve: of two dimensions, or of any.
template <bool channels_last, bool transposed, class F>
auto with_square(const Conv& c, F f) {
  constexpr int kP = kTileColumns;
  const auto with = [&]<int k>(std::integral_constant<int, k>) {
    if (c.stride[2] == 1)
      return f(static_cast<Cell<Down<k, 1>, Down<k, 1>, tile_rows(k, 1, channels_last), kP>*>(nullptr));
    if constexpr (transposed)
      return f(static_cast<Cell<Up<k>, Up<k>, 4, kP>*>(nullptr));
    else
      return f(static_cast<Cell<Down<k, 2>, Down<k, 2>, tile_rows(k, 2, channels_last), kP>*>(nullptr));
  };
  if (c.kernel[2] == 3) return with(std::integral_constant<int, 3>());
  if (c.kernel[2] == 5) return with(std::integral_constant<int, 5>());
  return with(std::integral_constant<int, 7>());
}
template <bool channels_last, bool transposed, class F>
auto with_cell(const Conv& c, F f) {
  if (!is_1d(c)) return with_square<channels_last, transposed>(c, f);
  if (c.kernel[2] <= 4) return f(static_cast<Cell<Down<1, 1>, UpTo<4>, 1, kTileColumns1d>*>(nullptr));
  return f(static_cast<Cell<Down<1, 1>, UpTo<8>, 1, kTileColumns1d>*>(nullptr));
}

// How many numbers of rows of `width` can be read at once, if a row begins `lead` before a whole unit.
template <class T>
int unit_of(const T* p, int64_t width, int64_t lead) {
  for (int unit = kWideRead; unit > 1; unit /= 2)
    if (width % unit == 0 && lead % unit == 0 && lies_at(p, unit)) return unit;
  return 1;
}

template <class T, class Cell>
PlaneTiles tiles_of(const PlaneSizes& s, int64_t planes, const T* from, const T* to, const T* more) {
  using Shape = PlaneCell<T, Cell>;
  const int lead = Shape::lead(s.pad_x), unit = unit_of(from, s.from_x, Cell::Columns::first(0, s.pad_x) - lead);
  int to_unit = unit_of(to, s.to_x, 0);
  while (more && !lies_at(more, to_unit)) to_unit /= 2;
  PlaneTiles t =
      plane_tiles(planes, s.to_y, s.to_x, Cell::along_y(), Cell::along_x(), Shape::kMostLead, unit, to_unit, sizeof(T));
  t.lead = lead;
  return t;
}

template <bool transposed, class T>
cudaError_t run_tiles(const Filter<T>& f, const Gpu& gpu, cudaStream_t stream) {
  // The input gradient of stride 1 is the filter with the taps the other way around.
  const bool flipped = transposed && f.conv.stride[2] == 1;
  const PlaneSizes s(f.conv, transposed, flipped);
  if (f.conv.channels_last)
    return with_cell<true, transposed>(f.conv, [&]<class Cell>(Cell*) {
      const PixelTiles t = pixel_tiles(f.conv.B, f.conv.C, s.to_y, s.to_x, Cell::kRows, Cell::kColumns, gpu);
      const int64_t blocks = f.conv.B * t.tiles_y * t.tiles_x * t.chunks;
      return launch(filter_last<T, Cell>, unsigned(blocks), kTileThreads, stream, {}, f, t, s, flipped);
    });
  return with_cell<false, transposed>(f.conv, [&]<class Cell>(Cell*) {
    const int64_t planes = f.conv.B * f.to_channels();
    const PlaneTiles t = tiles_of<T, Cell>(s, planes, f.from, f.to, f.residual);
    const int64_t blocks = divided_up(planes, t.planes) * t.tiles_y * t.tiles_x;
    const LaunchOptions options{t.planes * t.plane_bytes};
    return launch(filter_first<T, Cell>, unsigned(blocks), kTileThreads, stream, options, f, t, s, flipped);
  });
}

// With channels side by side, what a thread reads at once has to lie so.
template <class T>
bool lies_for_tiles(const Conv& c, const T* a, const T* b, const T* more) {
  return !c.channels_last || (lies_at(a, kLaneChannels) && lies_at(b, kLaneChannels) && lies_at(more, kLaneChannels));
}

template <bool transposed, class T>
cudaError_t run(const Filter<T>& f, const Gpu& gpu, cudaStream_t stream) {
  if constexpr (!std::is_same_v<T, double>)
    if (tiles_serve(f.conv, transposed) && lies_for_tiles(f.conv, f.from, f.to, f.residual))
      return run_tiles<transposed>(f, gpu, stream);
  const int64_t* const size = f.to_sizes();
  const int64_t count = f.conv.B * f.to_channels() * size[0] * size[1] * size[2];
  return launch(filter_any<T>, unsigned(divided_up(count, kConvThreads)), kConvThreads, stream, {}, f);
}

template <class T>
cudaError_t convolve(const ConvForward<T>& f, const Gpu& gpu, cudaStream_t stream) {
  return run<false>(Filter<T>(f), gpu, stream);
}
template <class T>
cudaError_t convolve(const ConvInputGrad<T>& g, const Gpu& gpu, cudaStream_t stream) {
  return run<true>(Filter<T>(g), gpu, stream);
}

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

template <class T>
cudaError_t separable(const SeparableForward<T>& s, const Gpu& gpu, cudaStream_t stream) {
  const Conv& c = s.depthwise.conv;
  const Filter<T> f(s.depthwise);
  const int64_t places = c.B * c.out_size();
  const bool whole = c.channels() % 4 == 0 && lies_at(s.weight, 4);
  SeparableTiles t = separable_tiles(places, c.channels(), s.N, Product<T>::kArithmetic, sizeof(Acc<T>), gpu);
  if constexpr (!std::is_same_v<T, double>) {
    const bool lies = lies_at(f.weight, kLaneChannels) && (!c.channels_last || lies_at(f.from, kLaneChannels));
    if (rectangles_serve(c) && lies && t.pixels >= kLeastPixels)
      return with_square<true, false>(c, [&]<class Cell>(Cell*) {
        set_rectangle(t, c, Cell::kRows);
        return launch(separable_forward<T, Rectangle<Cell>>, unsigned(c.B * t.tiles_y * t.tiles_x), kSeparableThreads,
                      stream, {t.bytes}, f, s, t, whole);
      });
  }
  return launch(separable_forward<T, Run>, unsigned(divided_up(places, t.pixels)), kSeparableThreads, stream, {t.bytes},
                f, s, t, whole);
}

}  // namespace adl::cuda

#define ADL_CONV(T)                                                                                      \
  template cudaError_t adl::cuda::convolve(const adl::ConvForward<T>&, const adl::Gpu&, cudaStream_t);   \
  template cudaError_t adl::cuda::convolve(const adl::ConvInputGrad<T>&, const adl::Gpu&, cudaStream_t); \
  template cudaError_t adl::cuda::convolve(const adl::ConvWeightGrad<T>&, adl::Acc<T>*, const adl::Gpu&, \
                                           cudaStream_t);                                                \
  template int64_t adl::cuda::conv_sums(const adl::ConvWeightGrad<T>&, const adl::Gpu&);                 \
  template cudaError_t adl::cuda::separable(const adl::SeparableForward<T>&, const adl::Gpu&, cudaStream_t);
