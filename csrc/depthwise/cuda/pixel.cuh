// Tiles of images [height, width, channels]: a thread has two channels of some rows and columns. Neighbours read what
// they share from the cache.
#pragma once

#include <type_traits>

#include "depthwise/cuda/plane.cuh"

namespace adl {

// What a thread of a block works on: its channels, and where its cells are. The threads of a channel are `lanes` apart.
struct Pixel {
  int channel, lane, cell_x, cell_y;  // the first channel of the block, of the thread the lane; the cell in the tile

  __device__ __forceinline__ Pixel(const PixelTiles& t, int chunk) {
    lane = threadIdx.x % t.lanes;
    const int cell = threadIdx.x / t.lanes;
    cell_x = cell % t.cells_x, cell_y = cell / t.cells_x;
    channel = (chunk * t.lanes + lane) * kLaneChannels;
  }
};

// The number at so many bytes from the beginning of an image: of the same image for the whole block, so that a thread
// keeps 32 bits of the address.
template <class T>
__device__ __forceinline__ T* in_image(T* image, unsigned bytes) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return reinterpret_cast<T*>(reinterpret_cast<Byte*>(image) + bytes);
}

// As many pixels of a row as a cell reads, from x on, which is at `bytes`; zeros where there are none.
template <int n, class T>
__device__ __forceinline__ void load_pixels(const T* image, unsigned bytes, unsigned pixel_bytes, bool there, int x,
                                            int width, Acc<T> (&numbers)[n][kLaneChannels]) {
#pragma unroll
  for (int k = 0; k < n; ++k) {
    const bool inside = there && x + k >= 0 && x + k < width;
    Pack<T, kLaneChannels> pack;
    if (inside) pack = load_pack<kLaneChannels>(in_image(image, bytes + k * pixel_bytes));
#pragma unroll
    for (int v = 0; v < kLaneChannels; ++v) numbers[k][v] = inside ? to_acc(pack.of[v]) : Acc<T>(0);
  }
}

// The same for channels that are planes: columns x .. of a row, and those of the plane after it.
template <int n, class T>
__device__ __forceinline__ void load_columns(const T* row, int64_t per_channel, int x, int width,
                                             Acc<T> (&numbers)[n][kLaneChannels]) {
#pragma unroll
  for (int k = 0; k < n; ++k)
#pragma unroll
    for (int v = 0; v < kLaneChannels; ++v)
      numbers[k][v] = x + k >= 0 && x + k < width ? to_acc(row[v * per_channel + x + k]) : Acc<T>(0);
}

}  // namespace adl
