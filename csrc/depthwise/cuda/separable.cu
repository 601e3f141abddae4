// Launches a depthwise convolution and the 1x1 convolution of its result as one kernel.
#include "common/cuda/each_number.h"
#include "depthwise/cuda/cells.cuh"
#include "depthwise/cuda/kernels.h"
#include "depthwise/cuda/separable.cuh"

namespace adl::cuda {

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

#define ADL_INSTANTIATE(T) \
  template cudaError_t adl::cuda::separable(const adl::SeparableForward<T>&, const adl::Gpu&, cudaStream_t);
ADL_EACH_NUMBER(ADL_INSTANTIATE)
