// Faults of stores that land later and of the barriers that count them: the second half of faults.cpp.
#include "common/cuda/device.cuh"
#include "faults.h"

namespace adl {

constexpr unsigned kForEver = emulator::kForEver;

// ---- counted stores: two blocks of a thread

template <class F>
__global__ void pair(F f) {
  ADL_SHARED(uint64_t, full, 2);
  ADL_SHARED(uint4, s, 2);
  arrivals_init(full);
  arrivals_init(full + 1);
  cluster_barrier();
  f(cluster_rank(), full, s);
}
__global__ void uninitialised() {
  ADL_SHARED(uint64_t, full, 1);
  arrivals_wait(full, 0, kForEver);
}
__global__ void init_twice() {
  ADL_SHARED(uint64_t, full, 1);
  arrivals_init(full);
  arrivals_init(full);
}
__global__ void init_unseen(uint4* y) {
  ADL_SHARED(uint64_t, full, 1);
  ADL_SHARED(uint4, s, 1);
  arrivals_init(full);
  __nanosleep(32);
  store_async(s, uint4{}, full, 1 - cluster_rank());
  arrivals_expect(full, 16);
  arrivals_wait(full, 0, kForEver);
  y[blockIdx.x] = s[0];
}
// Each block sends to the other, `buffers` by turns.
template <int buffers, bool wait>
__global__ void turns(uint4* y) {
  ADL_SHARED(uint64_t, full, 2);
  ADL_SHARED(uint4, s, 2);
  arrivals_init(full);
  arrivals_init(full + 1);
  cluster_barrier();
  for (unsigned t = 0; t < (wait ? 4 : 2); ++t) {
    uint64_t* barrier = full + t % 2;
    arrivals_expect(barrier, 16);
    store_async(s + t % buffers, uint4{t}, barrier, 1 - cluster_rank());
    if (wait) arrivals_wait(barrier, t / 2, kForEver);
    y[blockIdx.x].x += s[t % buffers].x;
  }
  for (unsigned b = 0; b < 2; ++b) arrivals_wait(full + b, wait ? 1 : 0, kForEver);
}

// ---- words that are their own flags, which are zero before

template <bool store, bool load>
__global__ void hand_words(uint32_t* words, uint32_t* y) {
  if (blockIdx.x == 0) {
    for (int i = 0; i < 4; ++i) store ? store_relaxed(words + i, 1) : void(words[i] = 1);
  } else {
    const auto* from = reinterpret_cast<const uint4*>(words);
    uint4 v;
    do {
      spin();
      v = load ? load_relaxed(from) : *from;
    } while (!v.x || !v.y || !v.z || !v.w);
    y[0] = v.x;
  }
}
__global__ void last_word_only(uint32_t* words) {
  if (blockIdx.x == 0) {
    for (int i = 0; i < 4; ++i) store_relaxed(words + i, 1);
  } else {
    const auto* from = reinterpret_cast<const uint4*>(words);
    uint4 v = load_relaxed(from);
    for (; !v.w; v = load_relaxed(from)) spin();
    if (!v.x) __trap();
  }
}
// A word is read, and written again by someone who does not know that.
__global__ void read_and_reset(uint32_t* words) {
  if (blockIdx.x == 0)
    load_relaxed(reinterpret_cast<const uint4*>(words));
  else
    words[0] = 2;
}
__global__ void data_after_word(uint32_t* words, uint32_t* y) {
  if (blockIdx.x == 0) {
    y[0] = 1;
    store_relaxed(words, 1);
  } else {
    while (!load_relaxed(reinterpret_cast<const uint4*>(words)).x) spin();
    y[1] = y[0];
  }
}

}  // namespace adl

Faults store_faults() {
  using namespace adl;
  alignas(16) static uint32_t words[4], y[2];
  static uint4 sent[2];
  const cudaStream_t s = nullptr;
  const LaunchOptions together{0, true, 1}, pairs{0, false, 2};
  const auto launch_pair = [=](auto f) { return launch(pair<decltype(f)>, 2, 1, s, pairs, f); };
  return {
      {"uninitialised", [=] { return launch(uninitialised, 1, 1, s, {}); }},
      {"init_twice", [=] { return launch(init_twice, 1, 1, s, {}); }},
      {"wait_for_ever",
       [=] {
         return launch_pair([](unsigned rank, uint64_t* full, uint4* s) {
           if (rank == 1) arrivals_expect(full, 32);
           if (rank == 0) store_async(s, uint4{}, full, 1);
           if (rank == 1) arrivals_wait(full, 0, kForEver);
         });
       }},
      {"wait_unarmed",
       [=] {
         return launch_pair([](unsigned rank, uint64_t* full, uint4* s) {
           if (rank == 0) store_async(s, uint4{}, full, 1);
           if (rank == 1) arrivals_wait(full, 0, kForEver);
         });
       }},
      {"wait_parity",
       [=] { return launch_pair([](unsigned, uint64_t* full, uint4*) { arrivals_wait(full, 2, kForEver); }); }},
      {"expect_twice",
       [=] {
         return launch_pair([](unsigned, uint64_t* full, uint4*) {
           for (int k = 0; k < 2; ++k) arrivals_expect(full, 16);
         });
       }},
      {"expect_much",
       [=] { return launch_pair([](unsigned, uint64_t* full, uint4*) { arrivals_expect(full, 1 << 20); }); }},
      {"more_bytes",
       [=] {
         return launch_pair([](unsigned rank, uint64_t* full, uint4* s) {
           for (int k = 0; k < 2; ++k) store_async(s + k, uint4{}, full, 1 - rank);
           cluster_barrier();
           arrivals_expect(full, 16);
         });
       }},
      {"store_to_exited",
       [=] {
         return launch_pair([](unsigned rank, uint64_t* full, uint4* s) {
           if (rank == 1) __nanosleep(32);
           if (rank == 1) store_async(s, uint4{}, full, 0);
         });
       }},
      {"exit_before_store",
       [=] {
         return launch_pair([](unsigned rank, uint64_t* full, uint4* s) {
           if (rank == 0) store_async(s, uint4{}, full, 1);
         });
       }},
      {"exit_after_store",
       [=] {
         return launch_pair([](unsigned rank, uint64_t* full, uint4* s) {
           if (rank == 0) store_async(s, uint4{}, full, 1);
           cluster_barrier();
         });
       }},
      {"store_rank",
       [=] { return launch_pair([](unsigned, uint64_t* full, uint4* s) { store_async(s, uint4{}, full, 2); }); }},
      {"store_outside",
       [=] { return launch_pair([](unsigned, uint64_t* full, uint4*) { store_async(words, uint4{}, full, 0); }); }},
      {"store_misaligned",
       [=] { return launch_pair([](unsigned, uint64_t* full, uint4* s) { store_async(&s->z, uint4{}, full, 0); }); }},
      {"barrier_misaligned",
       [=] {
         return launch_pair([](unsigned, uint64_t*, uint4* s) { arrivals_init(reinterpret_cast<uint64_t*>(&s->y)); });
       }},
      {"words_misaligned",
       [=] {
         return launch_pair([](unsigned, uint64_t*, uint4*) { load_relaxed(reinterpret_cast<uint4*>(words + 1)); });
       }},
      {"init_unseen", [=] { return launch(init_unseen, 2, 1, s, pairs, sent); }},
      {"no_wait", [=] { return launch(turns<2, false>, 2, 1, s, pairs, sent); }},
      {"one_buffer", [=] { return launch(turns<1, true>, 2, 1, s, pairs, sent); }},
      {"two_buffers", [=] { return launch(turns<2, true>, 2, 1, s, pairs, sent); }},
      {"plain_store", [=] { return launch(hand_words<false, true>, 2, 1, s, together, words, y); }},
      {"plain_load", [=] { return launch(hand_words<true, false>, 2, 1, s, together, words, y); }},
      {"relaxed_words", [=] { return launch(hand_words<true, true>, 2, 1, s, together, words, y); }},
      {"last_word_only", [=] { return launch(last_word_only, 2, 1, s, together, words); }},
      {"read_and_reset", [=] { return launch(read_and_reset, 2, 1, s, together, words); }},
      {"data_after_word", [=] { return launch(data_after_word, 2, 1, s, together, words, y); }},
  };
}
