#include "recurrent/cuda/table.cuh"

template const adl::cuda::Kernels<adl::BFloat>& adl::cuda::kernels();
