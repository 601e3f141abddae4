#include "recurrent/cuda/team_table.cuh"

template const adl::cuda::TeamKernels<adl::BFloat>& adl::cuda::team_kernels(int);

namespace adl::cuda {

int clusters_at_once(int blocks) {
  const auto kernel = reinterpret_cast<const void*>(team_kernel<Lstm, BFloat, false>(true));
  return active_clusters(kernel, blocks, kTeamThreads, 64 << 10);
}

}  // namespace adl::cuda
