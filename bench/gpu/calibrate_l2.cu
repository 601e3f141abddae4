// How long blocks all over the GPU take to hand each other a slice of a state by words of memory that are their own
// flags, and by barriers of the grid.
#include "exchange.cuh"

namespace calibrate {
namespace {

constexpr int kTries = 100000;  // of one word; some hundred cycles each
constexpr int kBatch = 8;       // loads under way at a time

// Blocks work in groups of P. In each step a block sends and then waits until all that it reads has come: every word is
// the number of the step. Gather: it writes its slice [chunks] of 16 bytes once, and all of its group read it. Scatter:
// it writes a slice for each block of its group.
//   box: [slots, groups, P, chunks]; if scatter [slots, groups, P receivers, P senders, chunks]
// A slot is used again only by who has received the step between from all others, who therefore have read it.
template <bool scatter>
__global__ void __launch_bounds__(256, 1)
    exchange(uint4* box, int P, int chunks, int slots, int steps, int warm_up, Times* times) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int block = static_cast<int>(blockIdx.x), me = block % P, slice = P * chunks;
  const size_t group_size = static_cast<size_t>(slice) * (scatter ? P : 1);
  const size_t slot_size = group_size * (gridDim.x / P);
  Stopwatch watch;
  unsigned seen = 0;
  bool late = false;
  for (int t = 0; t < steps; ++t) {
    if (t == warm_up) watch.start();
    uint4* now = box + t % slots * slot_size + block / P * group_size;
    const unsigned send = seen + 1, expected = static_cast<unsigned>(t + 1);
    if (scatter) {
      for (Place i(thread, threads, P, chunks); i.inside(); i.next())
        store_relaxed(now + i.row * slice + me * chunks + i.column, all_words(send));
    } else {
      uint32_t* mine = reinterpret_cast<uint32_t*>(now + me * chunks);
      for (int i = thread; i < 4 * chunks; i += threads) adl::store_relaxed(mine + i, send);
    }
    const uint4* from = now + (scatter ? me * slice : 0);
    for (int first = thread; first < slice; first += kBatch * threads) {
      uint4 v[kBatch];
#pragma unroll
      for (int k = 0; k < kBatch; ++k)
        v[k] = first + k * threads < slice ? adl::load_relaxed(from + first + k * threads) : all_words(expected);
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        for (int tries = 0; !all_are(v[k], expected) && !late; late = ++tries == kTries) {
          v[k] = adl::load_relaxed(from + first + k * threads);
          if (!all_are(v[k], expected)) adl::spin();
        }
        seen = v[k].x;
      }
    }
    __syncthreads();  // who sends next has waited for the others of the block
  }
  watch.stop(times);
  judge(times, late, thread < slice && seen != static_cast<unsigned>(steps));
}

__global__ void grid_barriers(int steps, int warm_up, Times* times) {
  Stopwatch watch;
  for (int t = 0; t < steps; ++t) {
    if (t == warm_up) watch.start();
    adl::grid_barrier();
  }
  watch.stop(times);
}

struct Exchange {
  bool scatter;
  int P, groups, chunks;  // of a slice
  double bytes() const { return 16.0 * P * chunks; }
  // A reduce-scatter writes as much as it reads.
  double predicted() const {
    const double rate = std::min(64.0, 4500.0 / (P * groups));
    return (800 + bytes() * (scatter ? 2 : 1) / rate) / kCyclesPerMicrosecond;
  }
};

// `evict`: so many bytes of other data are written between filling the box and the steps, as W_ih x is in a layer.
Figure measure(const Exchange& e, int most_steps, size_t evict = 0) {
  if (e.P * e.groups > device().multiprocessors) return absent();
  const size_t slot_bytes = static_cast<size_t>(e.bytes()) * e.groups * (e.scatter ? e.P : 1);
  // What gathers is written once: filled before with words that are no step's, it is its own flag.
  const size_t fitting = std::max<size_t>(64, (size_t(32) << 20) / slot_bytes);
  const int steps =
      e.scatter ? std::min(1000, most_steps) : static_cast<int>(std::min(fitting, static_cast<size_t>(most_steps)));
  const int slots = e.scatter ? 2 : steps, warm_up = steps / 8;
  uint4 *box = nullptr, *other = nullptr;
  cudaError_t error = cudaMalloc(&box, slots * slot_bytes);
  if (error == cudaSuccess && evict) error = cudaMalloc(&other, evict);
  if (error != cudaSuccess) return cudaFree(box), failed(cudaGetErrorString(error));
  adl::LaunchOptions options;
  options.cooperative = true;
  const auto kernel = e.scatter ? exchange<true> : exchange<false>;
  const unsigned blocks = static_cast<unsigned>(e.P * e.groups), threads = e.chunks == 1 ? 128 : 256;
  const Figure found = per_step(
      [&](Times* times) {
        return adl::launch(kernel, blocks, threads, nullptr, options, box, e.P, e.chunks, slots, steps, warm_up, times);
      },
      steps - warm_up, e.predicted(),
      [&] {
        cudaMemset(box, 0xFF, slots * slot_bytes);
        if (evict) cudaMemset(other, 0, evict);
      });
  cudaFree(box), cudaFree(other);
  return found;
}

std::string words(const Exchange& e) {
  return std::string(e.scatter ? "reduce-scatter" : "words") + " in L2, " + std::to_string(e.groups) + " x " +
         std::to_string(e.P) + " blocks";
}

void latencies(int steps) {
  for (int P : {32, 64, 96, 128}) {
    const Exchange e{false, P, 1, 1};
    line("exchange latency, " + words(e), "us/step", measure(e, steps));
  }
}

void bandwidths(const Effort& effort) {
  for (bool scatter : {false, true})
    for (int P : {32, 64}) {
      std::vector<double> bytes, cycles;
      Exchange e{scatter, P, 128 / P, 1};
      for (int kilobytes : effort.sizes()) {
        e.chunks = std::max(1, 64 * kilobytes / P);
        const Figure figure = measure(e, effort.steps);
        line("exchange of " + std::to_string(kilobytes) + " KB, " + words(e), "us/step", figure);
        if (figure.note.empty()) bytes.push_back(e.bytes()), cycles.push_back(figure.cycles);
      }
      const Figure rate{1 / slope(cycles, bytes), scatter ? 17.0 : 34.0, NAN, ""};
      line("exchange rate, " + words(e), "B/clk/SM", bytes.size() > 1 ? rate : absent());
    }
}

// A mailbox that has left L2 before it is read.
void evicted(const Effort& effort, int megabytes) {
  for (const Exchange& e : {Exchange{false, 64, 1, 1}, Exchange{false, 64, 2, std::max(1, effort.kilobytes)}})
    line("exchange of " + std::to_string(e.chunks) + " KB, " + words(e) + ", after " + std::to_string(megabytes) +
             " MB of other data",
         "us/step", measure(e, effort.steps, size_t(megabytes) << 20));
}

void barriers(int steps) {
  adl::LaunchOptions options;
  options.cooperative = true;
  const int blocks = device().multiprocessors, warm_up = steps / 8;
  line("grid.sync, a block on every multiprocessor", "us/step",
       per_step(
           [&](Times* times) {
             return adl::launch(grid_barriers, blocks, 256, nullptr, options, steps, warm_up, times);
           },
           steps - warm_up, 1.1));
}

}  // namespace
}  // namespace calibrate

int main(int count, char** arguments) {
  const calibrate::Effort effort(count, arguments);
  if (count > 3) {
    calibrate::evicted(effort, atoi(arguments[3]));
    return calibrate::failures != 0;
  }
  calibrate::latencies(effort.steps);
  calibrate::barriers(effort.steps);
  calibrate::bandwidths(effort);
  return calibrate::failures != 0;
}
