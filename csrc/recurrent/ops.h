// The ops of the cells on a device: check, allocate, call the engine of that device.
#pragma once

#include <torch/library.h>

#include "recurrent/layer.h"

namespace adl {

// Computes layers. Is not called for layers without elements. Where sequences end early y and all c are zero, the final
// states the initial ones, and so their gradients: the engine overwrites what has a step.
struct Engine {
  virtual ~Engine() = default;
  // What a layer is computed in, and what is saved for it.
  virtual at::ScalarType compute_type(const char* op, const Tensor& x) const = 0;
  virtual Tensor empty(at::IntArrayRef sizes, at::ScalarType type, const Tensor& x) const = 0;
  virtual SavedSizes saved_sizes(const Layer& layer) const = 0;
  // `given`: the type of x as it was given. `saved`: of undefined tensors where nothing is kept.
  virtual void forward(const Layer& layer, at::ScalarType given, const Outputs& out, const Saved& saved) const = 0;
  // Gradients of outputs are undefined for zeros, those of x and weights empty where they are not wanted.
  virtual void backward(const Layer& layer, at::ScalarType given, const Outputs& grads, const Tensor& y,
                        const Saved& saved, const Gradients& out) const = 0;
};

// The three ops of every cell: `engine` lives as long as the process.
void implement(torch::Library& m, const Engine& engine);

}  // namespace adl
