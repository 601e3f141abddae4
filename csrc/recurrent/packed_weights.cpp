#include "recurrent/packed_weights.h"

#include <algorithm>
#include <list>
#include <mutex>

#include "common/checksum.h"
#include "common/host_memory.h"

namespace adl {
namespace {

constexpr int64_t kMostBytes = int64_t(1) << 28;  // of all that is kept; the least recently used goes first

}  // namespace

// Most recently used first.
struct PackedWeights::Table {
  std::mutex mutex;
  std::list<Kept> all;

  Kept* find(const Key& key) {
    for (auto it = all.begin(); it != all.end();) {
      const auto expired = [](const auto& storage) { return storage.expired(); };
      if (std::any_of(it->storages.begin(), it->storages.end(), expired)) {
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

Tensors PackedWeights::weights() const {
  const WeightPlaces& at = layer_.s.at;
  Tensors out;
  for (const int place : {at.w_ih, at.w_hh, at.w_hr})
    if (place >= 0) out.push_back(layer_.weights[direction_ * at.count + place]);
  return out;
}

uint64_t PackedWeights::checksum() const { return checksum_of(weights()); }

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
  std::vector<c10::weak_intrusive_ptr<c10::StorageImpl>> storages;
  for (const Tensor& weight : weights()) storages.push_back(weight.storage().getWeakStorageImpl());
  const std::lock_guard lock(table().mutex);
  std::list<Kept>& all = table().all;
  if (table().find(key_)) all.pop_front();
  all.push_front({key_, std::move(storages), memory_, checksum_, layer_.options.frozen});
  int64_t bytes = 0;
  for (auto it = all.begin(); it != all.end();) {
    bytes += it->packed.nbytes();
    it = bytes > kMostBytes && it != all.begin() ? all.erase(it) : std::next(it);
  }
}

}  // namespace adl
