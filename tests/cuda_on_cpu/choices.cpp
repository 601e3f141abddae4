// Prints what csrc/cuda/launch.h decides, for tests/test_launch.py.
#include <cstdio>
#include <cstdlib>
#include <initializer_list>

#include "cuda/launch.h"

using namespace adl;

static_assert(unit_threads(1) == 32 && unit_threads(33) == 64 && unit_threads(1000) == kUnitThreads);

// `fits <bytes of shared memory>`: a line for each arithmetic, cell, direction and hidden size.
void print_fits(const Gpu& gpu) {
  const Arithmetic all[] = {kHalfTensorCores, kTf32TensorCores, kFloatFma};
  for (int k = 0; k < 3; ++k)
    for (int gates : {1, 3, 4})
      for (bool backward : {false, true})
        for (int H = 1; H <= 200; ++H) {
          const int pre = gates == 3 ? 4 : gates;
          std::printf("%d %d %d %d %d\n", k, gates, backward, H, block_fits(H, gates, pre, all[k], backward, gpu));
        }
}

// `rows <multiprocessors>`: sequences per block, for batches and directions.
void print_rows(const Gpu& gpu) {
  for (int directions : {1, 2})
    for (int64_t B : {1, 132, 133, 264, 1000, 70000})
      std::printf("%d ", block_rows(B, directions, kHalfTensorCores, gpu));
}

// `banks`: whether eight neighbouring lanes read their states from different banks, whatever the width.
void print_banks() {
  for (int width = kTile; width <= 2048; width += kTile)
    if (state_stride(width, kHalfTensorCores) % 64 != 16 || state_stride(width, kTf32TensorCores) % 32 != 16)
      std::printf("%d ", width);
}

int main(int, char** arguments) {
  const long number = arguments[2] ? std::atol(arguments[2]) : 0;
  switch (arguments[1][0]) {
    case 'f':
      print_fits({132, static_cast<size_t>(number)});
      break;
    case 'r':
      print_rows({static_cast<int>(number), 227 << 10});
      break;
    default:
      print_banks();
  }
}
