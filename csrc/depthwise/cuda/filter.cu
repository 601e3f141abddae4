// Chooses and launches the kernels of the forward pass and of the input gradient.
#include "common/cuda/each_number.h"
#include "depthwise/cuda/cells.cuh"
#include "depthwise/cuda/filter_first.cuh"
#include "depthwise/cuda/filter_last.cuh"
#include "depthwise/cuda/kernels.h"

namespace adl::cuda {

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

}  // namespace adl::cuda

#define ADL_INSTANTIATE(T)                                                                             \
  template cudaError_t adl::cuda::convolve(const adl::ConvForward<T>&, const adl::Gpu&, cudaStream_t); \
  template cudaError_t adl::cuda::convolve(const adl::ConvInputGrad<T>&, const adl::Gpu&, cudaStream_t);
ADL_EACH_NUMBER(ADL_INSTANTIATE)
