// Chooses and launches the kernels of the depthwise convolutions.
#pragma once

#include "cuda/conv.h"
#include "cuda/filter.cuh"
#include "cuda/weight_sums.cuh"

namespace adl::cuda {

template <class T>
cudaError_t run(const Filter<T>& f, cudaStream_t stream) {
  const int64_t* const size = f.to_sizes();
  const int64_t count = f.conv.B * f.to_channels() * size[0] * size[1] * size[2];
  return launch(filter_any<T>, unsigned(divided_up(count, kConvThreads)), kConvThreads, stream, {}, f);
}

template <class T>
cudaError_t convolve(const ConvForward<T>& f, cudaStream_t stream) {
  return run(Filter<T>(f), stream);
}
template <class T>
cudaError_t convolve(const ConvInputGrad<T>& g, cudaStream_t stream) {
  return run(Filter<T>(g), stream);
}

// The blocks of a gradient of weights, for one piece.
struct WeightBlocks {
  int lanes;
  int64_t chunks, pieces;

  WeightBlocks(const Conv& c, const Gpu& gpu)
      : lanes(c.channels_last ? channel_lanes(c.channels(), 32) : 1),
        chunks(divided_up(c.channels(), lanes) * divided_up(c.taps(), kTapsAtOnce)),
        pieces(conv_pieces(divided_up(c.B * c.out_size(), kConvThreads / lanes), chunks, gpu)) {}
};

template <class T>
int64_t conv_sums(const ConvWeightGrad<T>& g, const Gpu& gpu) {
  return WeightBlocks(g.conv, gpu).pieces * g.conv.channels() * (g.conv.taps() + 1);
}

template <class T>
cudaError_t convolve(const ConvWeightGrad<T>& g, Acc<T>* sums, const Gpu& gpu, cudaStream_t stream) {
  const WeightBlocks blocks(g.conv, gpu);
  const int64_t taps = g.conv.taps(), entries = g.conv.channels() * (taps + 1);
  const cudaError_t error = launch(weight_grad_any<T>, unsigned(blocks.chunks * blocks.pieces), kConvThreads, stream,
                                   {}, g, blocks.lanes, blocks.pieces, sums);
  if (error != cudaSuccess) return error;
  return launch(add_pieces<T>, unsigned(divided_up(entries, kEntries)), dim3(kEntries, kEntryGroups), stream, {},
                static_cast<const Acc<T>*>(sums), blocks.pieces, entries, taps, g.dweight, g.dbias);
}

}  // namespace adl::cuda

#define ADL_CONV(T)                                                                                      \
  template cudaError_t adl::cuda::convolve(const adl::ConvForward<T>&, cudaStream_t);                    \
  template cudaError_t adl::cuda::convolve(const adl::ConvInputGrad<T>&, cudaStream_t);                  \
  template cudaError_t adl::cuda::convolve(const adl::ConvWeightGrad<T>&, adl::Acc<T>*, const adl::Gpu&, \
                                           cudaStream_t);                                                \
  template int64_t adl::cuda::conv_sums(const adl::ConvWeightGrad<T>&, const adl::Gpu&);
