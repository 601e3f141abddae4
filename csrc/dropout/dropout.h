// What both dropout ops do around the loop over the elements.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include "common/philox.h"

namespace adl {
namespace {

using at::Tensor;

inline void check_dropout(const Tensor& x, double p, const Tensor& seed) {
  TORCH_CHECK(x.is_floating_point(), "dropout: x must be float64, float32, bfloat16 or float16, got ", x.scalar_type());
  TORCH_CHECK(p >= 0 && p <= 1, "dropout: p must be between 0 and 1, got ", p);
  TORCH_CHECK(seed.numel() == 1 && seed.scalar_type() == at::kLong, "dropout: seed must be one int64, got ",
              seed.scalar_type(), " ", seed.sizes());
  TORCH_CHECK(seed.is_cpu() || seed.device() == x.device(), "dropout: seed must be on the CPU or on the device of x, ",
              x.device(), ", got ", seed.device());
}

}  // namespace
}  // namespace adl
