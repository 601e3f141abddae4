// Layers and single steps as nodes of autograd's graph.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include "recurrent/cell_facts.h"
#include "recurrent/options.h"

namespace adl {

// The ops of a cell.
struct CellOps {
  c10::TypedOperatorHandle<ForwardOp> only, saving;
  c10::TypedOperatorHandle<BackwardOp> backward;
};
const CellOps& ops_of(const CellFacts& cell);

// A layer by this package's kernels; one step of it, from 2-D tensors to the new states; or layers by cuDNN.
enum class Kind { kLayer, kStep, kCudnn };

// The outputs of what is computed, with a graph if one is wanted. `saved`: with what is kept for backward.
Tensors run(Kind kind, const CellFacts& cell, int64_t directions, const Tensor& x, at::TensorList hx,
            at::TensorList weights, const LayerOptions& options, bool saved = false);

// Whether cuDNN computes these layers, in `type` or that of x; false for arguments that do not fit each other.
bool prefers_cudnn(const CellFacts& cell, int64_t directions, const Tensor& x, at::TensorList hx,
                   at::TensorList weights, const LayerOptions& options, std::optional<at::ScalarType> type = {});

// Whether there are kernels of cuDNN for tensors like this one: nowhere in a build without CUDA.
bool has_cudnn_ops(const Tensor& x);

}  // namespace adl
