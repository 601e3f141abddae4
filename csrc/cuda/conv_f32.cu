#include "cuda/conv.cuh"

ADL_CONV(float)
