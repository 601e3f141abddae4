#include "common/checksum.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "common/cpu/checksum.h"
#include "common/pointer.h"

namespace adl {

uint64_t checksum_of(const at::Tensor& given) {
  constexpr int64_t kPart = 1 << 20;  // bytes for a thread
  const at::Tensor t =
      given.is_contiguous() && !given.is_neg() && !given._is_zerotensor() ? with_memory(given) : given.clone();
  const char* from = pointer<const char>(t);
  const int64_t bytes = t.nbytes(), parts = (bytes + kPart - 1) / kPart;
  std::vector<uint64_t> sums(parts);
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) sums[k] = checksum(from + k * kPart, std::min(kPart, bytes - k * kPart));
  });
  sums.push_back(uint64_t(t.scalar_type()));
  sums.insert(sums.end(), given.sizes().begin(), given.sizes().end());
  sums.insert(sums.end(), given.strides().begin(), given.strides().end());
  return checksum(sums.data(), sums.size() * sizeof(uint64_t));
}

uint64_t checksum_of(const std::vector<at::Tensor>& tensors) {
  std::vector<uint64_t> sums;
  for (const at::Tensor& t : tensors) sums.push_back(checksum_of(t));
  return checksum(sums.data(), sums.size() * sizeof(uint64_t));
}

}  // namespace adl
