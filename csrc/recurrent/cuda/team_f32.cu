#include "recurrent/cuda/team_table.cuh"

template const adl::cuda::TeamKernels<float>& adl::cuda::team_kernels(int);
