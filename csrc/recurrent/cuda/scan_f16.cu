#include "recurrent/cuda/table.cuh"

template const adl::cuda::Kernels<adl::Half>& adl::cuda::kernels();
