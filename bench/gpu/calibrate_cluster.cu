// How long blocks of a cluster take to hand each other a slice of a state, by the size of what each receives.
#include "exchange.cuh"

namespace calibrate {
namespace {

constexpr unsigned kPatience = 50000;  // microseconds; a wait that never ends would take the whole run with it

// Every block sends its slice [chunks] of 16 bytes to all others, and waits for theirs. What is sent is what came the
// step before, plus 1, so that the end shows whether all has come. `bulk`: by one copy for each receiver.
template <bool bulk>
__global__ void __launch_bounds__(256, 1) push(int P, int chunks, int steps, int warm_up, Times* times) {
  ADL_DYNAMIC_SHARED(memory);
  ADL_SHARED(uint64_t, arrived, 2);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x), others = P - 1;
  const int me = static_cast<int>(adl::cluster_rank());
  uint4* box = reinterpret_cast<uint4*>(memory);  // [2, others, chunks], by turns; the next block's slice comes first
  uint4* own = box + 2 * others * chunks;         // [2, chunks] if bulk
  if (thread < 2) adl::arrivals_init(arrived + thread);
  adl::cluster_barrier();

  Stopwatch watch;
  bool late = false;
  for (int t = 0; t < steps; ++t) {
    if (t == warm_up) watch.start();
    uint64_t* barrier = arrived + t % 2;
    uint4* to = box + t % 2 * others * chunks;
    const uint4* from = box + (t + 1) % 2 * others * chunks;
    if (thread == 0 && !late) adl::arrivals_expect(barrier, static_cast<unsigned>(16 * others * chunks));
    if (bulk) {
      uint4* slice = own + t % 2 * chunks;
      for (int i = thread; i < chunks; i += threads) slice[i] = all_words(t == 0 ? 1 : from[i].x + 1);
      publish_to_copies();
      block_barrier();  // also: nobody sends before all have seen what came the step before
      if (thread < others && !late)
        bulk_copy(to + (others - 1 - thread) * chunks, slice, static_cast<unsigned>(16 * chunks), barrier,
                  static_cast<unsigned>((me + 1 + thread) % P));
    } else {
      block_barrier();
      for (Place i(thread, threads, others, chunks); i.inside() && !late; i.next()) {
        const uint4 v = all_words(t == 0 ? 1 : from[i.row * chunks + i.column].x + 1);
        const unsigned rank = static_cast<unsigned>((me + 1 + i.row) % P);
        adl::store_async(to + (others - 1 - i.row) * chunks + i.column, v, barrier, rank);
      }
    }
    late = late || !adl::arrivals_wait(barrier, static_cast<unsigned>(t / 2 % 2), kPatience);
  }
  watch.stop(times);
  bool wrong = false;
  for (int i = thread; i < others * chunks; i += threads)
    wrong = wrong || !all_are(box[(steps + 1) % 2 * others * chunks + i], static_cast<unsigned>(steps));
  judge(times, late, wrong);
  block_barrier();
  adl::cluster_barrier();  // nobody leaves while others may still send
}

template <bool relaxed>
__global__ void cluster_barriers(int steps, int warm_up, Times* times) {
  Stopwatch watch;
  for (int t = 0; t < steps; ++t) {
    if (t == warm_up) watch.start();
    if (relaxed)
      relaxed_cluster_barrier();
    else
      adl::cluster_barrier();
  }
  watch.stop(times);
}

struct Exchange {
  bool bulk;
  int P, chunks;
  bool alone;  // one cluster, else as many as fit
  double bytes() const { return 16.0 * (P - 1) * chunks; }
  size_t shared_bytes() const { return size_t(16) * 2 * chunks * (P - 1 + bulk); }
  double predicted() const { return (250 + bytes() / 18) / kCyclesPerMicrosecond; }
};

Figure measure(const Exchange& e, int steps) {
  const auto kernel = e.bulk ? push<true> : push<false>;
  const unsigned threads = e.alone ? 32 : 256;
  if (e.shared_bytes() + 64 > static_cast<size_t>(device().shared_bytes)) return absent();
  const int fit = clusters_of(kernel, e.P, threads, e.shared_bytes());
  if (fit == 0) return absent();
  adl::LaunchOptions options;
  options.shared_bytes = e.shared_bytes();
  options.cluster = e.P;
  const unsigned blocks = static_cast<unsigned>(e.P * (e.alone ? 1 : fit));
  const int warm_up = steps / 8;
  return per_step(
      [&](Times* times) {
        return adl::launch(kernel, blocks, threads, nullptr, options, e.P, e.chunks, steps, warm_up, times);
      },
      steps - warm_up, e.predicted());
}

void latencies(int steps) {
  for (int P : {8, 16})
    for (bool bulk : {false, true}) {
      const std::string name =
          std::string("exchange latency, ") + (bulk ? "bulk copy" : "st.async") + ", " + std::to_string(P) + " blocks";
      line(name, "us/step", measure({bulk, P, 1, true}, steps));
    }
}

void bandwidths(const Effort& effort) {
  for (int P : {8, 16})
    for (bool bulk : {false, true}) {
      const std::string how = std::string(bulk ? "bulk copy" : "st.async") + ", " + std::to_string(P) + " blocks";
      std::vector<double> bytes, cycles;
      for (int kilobytes : effort.sizes()) {
        const Exchange e{bulk, P, std::max(1, 64 * kilobytes / (P - 1)), false};
        const Figure figure = measure(e, std::min(effort.steps, 1000));
        line("exchange of " + std::to_string(kilobytes) + " KB, " + how, "us/step", figure);
        if (figure.note.empty()) bytes.push_back(e.bytes()), cycles.push_back(figure.cycles);
      }
      const double rate = 1 / slope(cycles, bytes);
      line("exchange rate, " + how, "B/clk/SM", bytes.size() > 1 ? Figure{rate, 18, NAN, ""} : absent());
    }
}

void barriers(int steps) {
  for (int P : {8, 16})
    for (bool relaxed : {false, true}) {
      const std::string name =
          std::string(relaxed ? "relaxed cluster barrier" : "cluster.sync") + ", " + std::to_string(P) + " blocks";
      const auto kernel = relaxed ? cluster_barriers<true> : cluster_barriers<false>;
      if (clusters_of(kernel, P, 256, 0) == 0) {
        line(name, "us/step", absent());
        continue;
      }
      adl::LaunchOptions options;
      options.cluster = P;
      const int warm_up = steps / 8;
      line(name, "us/step",
           per_step([&](Times* times) { return adl::launch(kernel, P, 256, nullptr, options, steps, warm_up, times); },
                    steps - warm_up, relaxed ? 0.1 : 0.43));
    }
}

}  // namespace
}  // namespace calibrate

int main(int count, char** arguments) {
  const calibrate::Effort effort(count, arguments);
  if (calibrate::device().capability < 90) {
    calibrate::line("exchange within clusters", "us/step", calibrate::absent());
    return 0;
  }
  calibrate::latencies(effort.steps);
  calibrate::barriers(effort.steps);
  calibrate::bandwidths(effort);
  return calibrate::failures != 0;
}
