// The faults of the files that make up one program.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "common/cuda/types.h"

using Faults = std::map<std::string, std::function<cudaError_t()>>;

Faults store_faults();
