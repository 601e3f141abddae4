#include "recurrent/cuda/table.cuh"

template const adl::cuda::Kernels<float>& adl::cuda::kernels();
