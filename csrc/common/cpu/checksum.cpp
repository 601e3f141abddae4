// The checksum with the instruction set in use.
#include "common/cpu/checksum.h"

namespace adl {

uint64_t checksum(const void* from, int64_t bytes) { ADL_RETURN_OF_ISA(float, checksum(from, bytes)) }

}  // namespace adl
