// Launches dropout and its mask: plain pointers and a stream.
#pragma once

#include "common/cuda/types.h"
#include "common/philox.h"

namespace adl::cuda {

// y = dropout of x, `count` elements; the seed is *seed_there or, where that is null, `seed`.
template <class T>
cudaError_t dropout(const T* x, T* y, int64_t count, int64_t seed, const int64_t* seed_there, const Dropout&,
                    int multiprocessors, cudaStream_t);

// y = 1 where dropout drops, else 0.
cudaError_t mask(uint8_t* y, int64_t count, int64_t seed, const int64_t* seed_there, const Dropout&,
                 int multiprocessors, cudaStream_t);

}  // namespace adl::cuda
