// Packed weights of layers on the CPU that are called again and again without gradients.
//
// Packing is a quarter of a call with one sequence. What is kept is never stale: no version counter sees every change
// of a weight (.data, shared memory, views of NumPy), so a call compares a checksum of the weights, which costs one
// read of them. A `frozen` number is the caller's promise that they are as they were.
#pragma once

#include <memory>
#include <vector>

#include "recurrent/layer.h"

namespace adl {

// Rows of a call up to which weights are kept: packing is soon lost among more of them.
constexpr int64_t kMostRowsOfKept = 2048;

class PackedWeights {
 public:
  // Of direction d of a layer whose kernel (any pointer that identifies it) packs into so many bytes.
  PackedWeights(const Layer& layer, int64_t d, const void* kernel, int64_t bytes);

  void* memory() const { return memory_.mutable_data_ptr(); }
  bool is_packed() const { return is_packed_; }

  // After a call that has filled the memory: kept for other calls.
  void keep();

 private:
  struct Key {
    const void *kernel, *w_ih, *w_hh, *w_hr;
    int64_t I, H, P;
    bool operator==(const Key&) const = default;
  };
  struct Kept {
    Key key;
    std::vector<c10::weak_intrusive_ptr<c10::StorageImpl>> storages;  // whose memory may be used again for others
    Tensor packed;
    uint64_t checksum;
    int64_t frozen;
  };
  struct Table;
  static Table& table();
  static Key key_of(const Layer& layer, int64_t d, const void* kernel);
  std::vector<Tensor> weights() const;  // those that are packed
  uint64_t checksum() const;

  const Layer& layer_;
  int64_t direction_;
  Key key_;
  Tensor memory_;
  uint64_t checksum_ = 0;
  bool is_packed_ = false;
};

}  // namespace adl
