#include "recurrent/cuda/team_table.cuh"

template const adl::cuda::TeamKernels<adl::Half>& adl::cuda::team_kernels(int);
