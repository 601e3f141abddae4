#include "recurrent/cuda/table.cuh"

template const adl::cuda::Kernels<double>& adl::cuda::kernels();
