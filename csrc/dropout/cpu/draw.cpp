// Draws with the instruction set in use.
#include "dropout/cpu/draw.h"

namespace adl {

void draw(uint64_t seed, uint64_t stream, uint64_t block, int64_t count, uint64_t threshold, uint8_t* to) {
  ADL_RETURN_OF_ISA(float, draw(seed, stream, block, count, threshold, to))
}

}  // namespace adl
