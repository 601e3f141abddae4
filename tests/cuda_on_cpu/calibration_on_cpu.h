// The emulator's side of bench/gpu/ptx.cuh: the same names, on the CPU, where time stands for nothing.
#pragma once

#include "emulator.h"

namespace calibrate {

inline long long cycles_now() {
  static long long now = 0;
  return __atomic_add_fetch(&now, 1000, __ATOMIC_RELAXED);
}
inline long long nanoseconds_now() { return cycles_now(); }

inline void publish_to_copies() {}

inline void bulk_copy(void* to, const void* from, unsigned bytes, uint64_t* barrier, unsigned rank) {
  for (unsigned i = 0; i < bytes / 16; ++i)
    adl::store_async(static_cast<uint4*>(to) + i, static_cast<const uint4*>(from)[i], barrier, rank);
}

inline void relaxed_cluster_barrier() { adl::cluster_barrier(); }

inline void store_relaxed(uint4* p, uint4 v) {
  const uint32_t words[] = {v.x, v.y, v.z, v.w};
  for (int i = 0; i < 4; ++i) adl::store_relaxed(reinterpret_cast<uint32_t*>(p) + i, words[i]);
}

}  // namespace calibrate
