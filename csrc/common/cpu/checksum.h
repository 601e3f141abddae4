// A checksum of weights, at the speed at which memory is read.
#pragma once

#include "common/cpu/isa.h"

namespace adl {

// Of so many bytes. A change of one number is always noticed, any other with a probability of 1 - 2^-64.
uint64_t checksum(const void* from, int64_t bytes);

}  // namespace adl

ADL_FOR_EACH_ISA(decltype(adl::checksum) checksum;)
