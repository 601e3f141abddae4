#include "recurrent/packed_weights.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>
#include <list>
#include <mutex>

#include "common/host_memory.h"

namespace adl {
namespace {

constexpr int64_t kMostBytes = int64_t(1) << 28;  // of all that is kept; the least recently used goes first

constexpr uint64_t kPrime1 = 0x9E3779B185EBCA87, kPrime2 = 0xC2B2AE3D27D4EB4F;

constexpr uint64_t mix(uint64_t sum, uint64_t word) {  // a round of xxHash64
  sum += word * kPrime2;
  return (sum << 31 | sum >> 33) * kPrime1;
}

uint64_t checksum_of(const char* from, int64_t bytes) {
  constexpr int kLanes = 8;
  uint64_t sums[kLanes] = {1, 2, 3, 4, 5, 6, 7, 8}, words[kLanes];
  for (; bytes >= int64_t(sizeof words); from += sizeof words, bytes -= sizeof words) {
    std::memcpy(words, from, sizeof words);
    for (int k = 0; k < kLanes; ++k) sums[k] = mix(sums[k], words[k]);
  }
  std::memset(words, 0, sizeof words);
  std::memcpy(words, from, bytes);
  uint64_t all = bytes;
  for (int k = 0; k < kLanes; ++k) all = mix(all, mix(sums[k], words[k]));
  return all ^ all >> 29;
}

uint64_t checksum_of(const Tensor& t) {
  constexpr int64_t kPart = 1 << 20;  // for a thread
  const char* from = static_cast<const char*>(t.const_data_ptr());
  const int64_t bytes = t.nbytes(), parts = (bytes + kPart - 1) / kPart;
  if (parts <= 1) return checksum_of(from, bytes);
  std::vector<uint64_t> sums(parts);
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) sums[k] = checksum_of(from + k * kPart, std::min(kPart, bytes - k * kPart));
  });
  return checksum_of(reinterpret_cast<const char*>(sums.data()), parts * sizeof(uint64_t));
}

}  // namespace

// Most recently used first.
struct PackedWeights::Table {
  std::mutex mutex;
  std::list<Kept> all;

  Kept* find(const Key& key) {
    for (auto it = all.begin(); it != all.end();) {
      if (it->storage.expired()) {
        it = all.erase(it);
      } else if (it->key == key) {
        all.splice(all.begin(), all, it);
        return &all.front();
      } else {
        ++it;
      }
    }
    return nullptr;
  }
};

PackedWeights::Table& PackedWeights::table() {
  static Table* const kTable = new Table;  // outlives what may be destroyed at exit
  return *kTable;
}

PackedWeights::Key PackedWeights::key_of(const Layer& layer, int64_t d, const void* kernel) {
  const WeightPlaces& at = layer.s.at;
  return {kernel,
          layer.weight<char>(d, at.w_ih),
          layer.weight<char>(d, at.w_hh),
          layer.weight<char>(d, at.w_hr),
          layer.s.I,
          layer.s.H,
          layer.s.P};
}

uint64_t PackedWeights::checksum() const {
  const WeightPlaces& at = layer_.s.at;
  uint64_t all = 0;
  for (const int place : {at.w_ih, at.w_hh, at.w_hr})
    if (place >= 0) all = mix(all, checksum_of(layer_.weights[direction_ * at.count + place]));
  return all;
}

PackedWeights::PackedWeights(const Layer& layer, int64_t d, const void* kernel, int64_t bytes)
    : layer_(layer), direction_(d), key_(key_of(layer, d, kernel)) {
  const int64_t frozen = layer.options.frozen;
  uint64_t expected = 0;
  {
    const std::lock_guard lock(table().mutex);
    if (const Kept* kept = table().find(key_)) {
      memory_ = kept->packed;
      expected = kept->checksum;
      is_packed_ = frozen && kept->frozen == frozen;
    }
  }
  if (is_packed_) return;
  checksum_ = checksum();
  is_packed_ = memory_.defined() && checksum_ == expected;
  if (!is_packed_)
    memory_ = host_memory({bytes}, at::kByte);
  else if (frozen)
    keep();
}

void PackedWeights::keep() {
  if (!is_packed_ && checksum() != checksum_) return;  // they were changed meanwhile
  const Tensor& w_hh = layer_.weights[direction_ * layer_.s.at.count + layer_.s.at.w_hh];
  const std::lock_guard lock(table().mutex);
  std::list<Kept>& all = table().all;
  if (table().find(key_)) all.pop_front();
  all.push_front({key_, w_hh.storage().getWeakStorageImpl(), memory_, checksum_, layer_.options.frozen});
  int64_t bytes = 0;
  for (auto it = all.begin(); it != all.end();) {
    bytes += it->packed.nbytes();
    it = bytes > kMostBytes && it != all.begin() ? all.erase(it) : std::next(it);
  }
}

}  // namespace adl
