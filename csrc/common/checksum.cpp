#include "common/checksum.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "common/cpu/checksum.h"

namespace adl {

uint64_t checksum_of(const at::Tensor& given) {
  constexpr int64_t kPart = 1 << 20;  // bytes for a thread
  const at::Tensor t = given.is_contiguous() && !given.is_neg() && !given._is_zerotensor() ? given : given.clone();
  const char* from = static_cast<const char*>(t.const_data_ptr());
  const int64_t bytes = t.nbytes(), parts = (bytes + kPart - 1) / kPart;
  std::vector<uint64_t> sums(parts + 1 + t.dim());
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) sums[k] = checksum(from + k * kPart, std::min(kPart, bytes - k * kPart));
  });
  sums[parts] = uint64_t(t.scalar_type());
  std::copy(t.sizes().begin(), t.sizes().end(), sums.begin() + parts + 1);
  return checksum(sums.data(), sums.size() * sizeof(uint64_t));
}

uint64_t checksum_of(const std::vector<at::Tensor>& tensors) {
  std::vector<uint64_t> sums;
  for (const at::Tensor& t : tensors) sums.push_back(checksum_of(t));
  return checksum(sums.data(), sums.size() * sizeof(uint64_t));
}

}  // namespace adl
