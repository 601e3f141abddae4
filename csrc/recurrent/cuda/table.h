// How the table of kernels is filled: each .cu has a part of them.
#pragma once

#include "common/cuda/device.cuh"
#include "recurrent/cuda/kernels.h"

namespace adl::cuda {

template <class T>
void add_streaming(Kernels<T>&);
template <class T>
void add_rows(Kernels<T>&);
template <class T>
void add_block_forward(Kernels<T>&);
template <class T>
void add_block_backward(Kernels<T>&);

// Scans by teams of blocks in one of the two ways to exchange states.
template <class Scan>
struct TeamStart {
  cudaError_t (*scan)(const Directions<Scan>&, const Plan&, unsigned most_polls, cudaStream_t);
  // Blocks, or clusters of so many, that the device can have under way at once.
  int (*blocks_at_once)(size_t shared_bytes);
  int (*clusters_at_once)(int blocks);
};

// Of a cell by its place in the list.
template <class T>
const TeamStart<ForwardScan<T>>& cluster_forward_start(int cell);
template <class T>
const TeamStart<ForwardScan<T>>& grid_forward_start(int cell);
template <class T>
const TeamStart<BackwardScan<T>>& cluster_backward_start(int cell);
template <class T>
const TeamStart<BackwardScan<T>>& grid_backward_start(int cell);

inline dim3 unit_grid(int64_t rows, int64_t units) {
  return dim3(unsigned(rows), unsigned((units + kUnitThreads - 1) / kUnitThreads));
}

}  // namespace adl::cuda
