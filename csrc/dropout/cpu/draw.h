// Which elements dropout drops, many at once.
#pragma once

#include "common/cpu/isa.h"

namespace adl {

// to[0 .. 4 count) = whether each word of Philox blocks block.. of a seed and stream is below the threshold.
void draw(uint64_t seed, uint64_t stream, uint64_t block, int64_t count, uint64_t threshold, uint8_t* to);

}  // namespace adl

ADL_FOR_EACH_ISA(decltype(adl::draw) draw;)
