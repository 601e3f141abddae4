#include "cuda/conv.cuh"

ADL_CONV(adl::Half)
