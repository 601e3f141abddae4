#include "depthwise/cuda/table.cuh"

ADL_CONV(double)
