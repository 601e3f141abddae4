// What the CUDA ops of recurrent layers ask besides: the tier that the user wants.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <string_view>

#include "common/cuda_device.h"
#include "recurrent/cuda/kernels.h"
#include "recurrent/layer.h"

namespace adl {
namespace {

// ADL_CUDA_TIER, for tests and for measuring.
inline std::optional<Tier> wanted_tier(const char* op) {
  const char* wanted = std::getenv("ADL_CUDA_TIER");
  if (!wanted) return {};
  const auto found = std::find(std::begin(kTierNames), std::end(kTierNames), std::string_view(wanted));
  TORCH_CHECK(found != std::end(kTierNames), op,
              ": ADL_CUDA_TIER must be streaming, block, cluster, grid or cudnn, got ", wanted);
  return Tier(found - std::begin(kTierNames));
}

}  // namespace
}  // namespace adl
