// What this GPU allows: clusters that fit at a time, launches that are cooperative, in clusters or both, and graphs of
// them.
#include <map>
#include <numeric>
#include <set>

#include "exchange.cuh"

namespace calibrate {
namespace {

// Every block counts itself before it waits for the others and looks after that.
template <bool grid, bool cluster>
__global__ void meet(unsigned* count, unsigned* missed) {
  if (threadIdx.x == 0) adl::add_release(count, 1u);
  if (cluster) adl::cluster_barrier();
  if (grid) {
    adl::grid_barrier();
    if (threadIdx.x == 0 && adl::load_acquire(count) < gridDim.x) atomicAdd(missed, 1u);
  }
}

// Which multiprocessor each block ran on.
__global__ void places(unsigned* of_block) {
  unsigned id;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(id));
  const long long start = clock64();
  while (clock64() - start < 200000) {  // long enough for all of them to be there at a time
  }
  if (threadIdx.x == 0) of_block[blockIdx.x] = id;
}

__global__ void run_clock(long long cycles, Times* times) {
  Stopwatch watch;
  watch.start();
  const long long start = clock64();
  while (clock64() - start < cycles) {
  }
  watch.stop(times);
}

struct Counters {
  unsigned* p = nullptr;  // count, missed
  Counters() { cudaMalloc(&p, 2 * sizeof(unsigned)); }
  ~Counters() { cudaFree(p); }
  cudaError_t clear(cudaStream_t stream) const { return cudaMemsetAsync(p, 0, 2 * sizeof(unsigned), stream); }
};

template <bool grid, bool cluster>
cudaError_t launch_meeting(const Counters& counters, unsigned blocks, unsigned P, cudaStream_t stream) {
  adl::LaunchOptions options;
  options.cooperative = grid;
  options.cluster = cluster ? P : 1;
  return adl::launch(meet<grid, cluster>, blocks, 64, stream, options, counters.p, counters.p + 1);
}

// 1 if every block has met the others, launched at once or twice by a graph.
template <bool grid, bool cluster>
Figure works(unsigned blocks, unsigned P, bool graph) {
  const Counters counters;
  cudaStream_t stream = nullptr;
  cudaGraph_t captured = nullptr;
  cudaGraphExec_t replay = nullptr;
  cudaError_t error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  const auto then = [&](auto next) {
    if (error == cudaSuccess) error = next();
  };
  if (graph) then([&] { return cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal); });
  then([&] { return counters.clear(stream); });
  then([&] { return launch_meeting<grid, cluster>(counters, blocks, P, stream); });
  if (graph) {
    const cudaError_t ended = cudaStreamEndCapture(stream, &captured);
    then([&] { return ended; });
    then([&] { return cudaGraphInstantiate(&replay, captured, 0); });
    then([&] { return cudaGraphLaunch(replay, stream); });
    then([&] { return cudaGraphLaunch(replay, stream); });
  }
  then([&] { return cudaStreamSynchronize(stream); });
  unsigned found[2] = {};
  then([&] { return cudaMemcpy(found, counters.p, sizeof found, cudaMemcpyDeviceToHost); });
  if (replay) cudaGraphExecDestroy(replay);
  if (captured) cudaGraphDestroy(captured);
  if (stream) cudaStreamDestroy(stream);
  cudaGetLastError();
  if (error != cudaSuccess) return {0, 1, NAN, cudaGetErrorString(error)};
  const bool good = found[0] == blocks && found[1] == 0;
  return {good ? 1.0 : 0.0, 1, NAN, good ? "" : "blocks did not meet"};
}

void legality(bool clusters) {
  const unsigned all = static_cast<unsigned>(device().multiprocessors), eights = all / 8 * 6;
  for (bool graph : {false, true}) {
    const std::string how = graph ? ", memset and launch in a graph" : "";
    line("cooperative launch" + how, "works", works<true, false>(all, 1, graph));
    line("clusters of 8" + how, "works", clusters ? works<false, true>(64, 8, graph) : absent());
    const bool fit = clusters && clusters_of(meet<false, true>, 16, 64, 0) > 0;
    line("clusters of 16" + how, "works", fit ? works<false, true>(64, 16, graph) : absent());
    line("cooperative launch of clusters of 8" + how, "works",
         clusters ? works<true, true>(eights / 8 * 8, 8, graph) : absent());
  }
}

void occupancy() {
  for (int kilobytes : {200, 224})
    for (int P : {8, 16}) {
      const std::string name =
          "clusters of " + std::to_string(P) + " with " + std::to_string(kilobytes) + " KB a block";
      const int fit = kilobytes << 10 <= device().shared_bytes
                          ? clusters_of(meet<false, true>, P, 256, size_t(kilobytes) << 10)
                          : 0;
      line(name, "at a time", fit ? Figure{double(fit), P == 8 ? 15.0 : 7.0, NAN, ""} : absent());
    }
}

// Multiprocessors that have ever been in one cluster are neighbours; how many there are in each such group.
void neighbours() {
  const int blocks = 8 * device().multiprocessors / 16 * 16;
  unsigned* of_block = nullptr;
  if (cudaMalloc(&of_block, blocks * sizeof(unsigned)) != cudaSuccess) return;
  std::vector<unsigned> root(1024), ids(blocks);
  std::iota(root.begin(), root.end(), 0u);
  const auto find = [&](unsigned i) {
    while (root[i] != i) i = root[i];
    return i;
  };
  std::set<unsigned> seen;
  for (unsigned P : {2u, 4u, 8u, 16u}) {
    if (clusters_of(places, P, 64, 0) == 0) continue;
    adl::LaunchOptions options;
    options.cluster = P;
    if (adl::launch(places, static_cast<unsigned>(blocks), 64, nullptr, options, of_block) != cudaSuccess) continue;
    if (cudaMemcpy(ids.data(), of_block, blocks * sizeof(unsigned), cudaMemcpyDeviceToHost) != cudaSuccess) break;
    for (int i = 0; i < blocks; ++i) {
      const unsigned a = ids[i] % 1024, b = ids[i - i % static_cast<int>(P)] % 1024;
      seen.insert(a);
      root[find(a)] = find(b);
    }
  }
  cudaFree(of_block);
  std::map<unsigned, int> size;
  for (unsigned id : seen) ++size[find(id)];
  std::map<int, int> with;
  for (const auto& [group, members] : size) ++with[members];
  for (const auto& [members, groups] : with)
    line("groups of " + std::to_string(members) + " multiprocessors that share clusters", "groups", {double(groups)});
}

void say_device() {
  cudaDeviceProp found{};
  int driver = 0, runtime = 0;
  const cudaError_t error = cudaGetDeviceProperties(&found, 0);
  cudaDriverGetVersion(&driver), cudaRuntimeGetVersion(&runtime);
  if (error != cudaSuccess) failed(cudaGetErrorString(error));
  printf(
      "{\"gpu\": \"%s\", \"capability\": \"%d.%d\", \"multiprocessors\": %d, \"l2_MiB\": %d, \"driver\": %d, "
      "\"runtime\": %d}\n",
      error == cudaSuccess ? found.name : cudaGetErrorString(error), found.major, found.minor,
      found.multiProcessorCount, found.l2CacheSize >> 20, driver, runtime);
  std::string problem;
  const Times times =
      fastest([](Times* t) { return adl::launch(run_clock, 1, 32, nullptr, {}, 10000000ll, t); }, problem);
  const double megahertz = times.cycles * 1e3 / static_cast<double>(times.ns);
  line("clock", "MHz", problem.empty() ? Figure{megahertz, kCyclesPerMicrosecond, NAN, ""} : failed(problem));
}

}  // namespace
}  // namespace calibrate

int main() {
  const bool clusters = calibrate::device().capability >= 90;
  calibrate::say_device();
  if (clusters) {
    calibrate::occupancy();
    calibrate::neighbours();
  }
  calibrate::legality(clusters);
  return calibrate::failures != 0;
}
