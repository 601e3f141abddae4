// How the blocks of a team exchange states. Each has, in its shared memory, rows [sequences, parts, states] of what its
// product multiplies: one part in forward, h; in backward as many as there are gates.
//
// Cluster: the blocks of a cluster push their states into each other's memory, where a barrier counts bytes. Two
// buffers are enough: who sends the state after next has received all of the next, so everyone has used this one.
// Scatter: in backward they push what they have summed for the units of each other, see TeamProduct. A wait is bounded:
// a block that has waited in vain neither waits nor sends any more, and what it makes is NaN. So the others wait in
// vain too.
//
// Grid: any blocks, all under way at once. States lie in global memory, and every word of them is its own flag: it is
// kAbsent until it is stored, once. So nothing is inferred from one word about another, and no fence is needed. This
// mail is the result itself where its rows are whole units of 16 bytes. A wait is bounded: past it, results are NaN.
#pragma once

#include <limits>

#include "common/cuda/tile.cuh"
#include "recurrent/cuda/launch.h"
#include "recurrent/cuda/step.cuh"

namespace adl {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// Numbers that are loaded and stored as a whole.
template <class T, int n>
struct alignas(sizeof(T) * n) Word {
  T of[n];
};

// A thread's word of states, one number or two, as the tiles have them.
template <class Tile, int n>
__device__ __forceinline__ uint32_t state_word(const float (&v)[n]) {
  if constexpr (n == 2)
    return pack(Tile::state(v[0]), Tile::state(v[1]));
  else
    return Tile::state(v[0]);
}

// Stores the first `count` of a word.
template <class T, int n>
__device__ __forceinline__ void store_word(T* to, const float (&v)[n], int count) {
  if (count == n && reinterpret_cast<uintptr_t>(to) % (sizeof(T) * n) == 0) {
    Word<T, n> word;
#pragma unroll
    for (int i = 0; i < n; ++i) word.of[i] = from_acc<T>(v[i]);
    *reinterpret_cast<Word<T, n>*>(to) = word;
    return;
  }
#pragma unroll
  for (int i = 0; i < n; ++i)
    if (i < count) to[i] = from_acc<T>(v[i]);
}

// Where a sequence's states come from: rows of T with parts, null for zeros; `mail` if they may not be there yet.
template <class T>
struct Source {
  const T* row;
  bool mail;
};

template <class Cell, class T, class Tile, bool backward>
class States {
 public:
  using State = typename Tile::State;
  static constexpr int kParts = backward ? Cell::kGates : 1;

  __device__ __forceinline__ States(unsigned char* shared, const TeamLayout& layout, int64_t H, int rows, int all_rows)
      : of_(reinterpret_cast<State*>(shared + layout.states)),
        sources_(reinterpret_cast<Source<T>*>(shared + layout.sources)),
        stride_(layout.stride),
        part_(tiles(H) * kTile),
        H_(unsigned(H)),
        rows_(rows) {
    for (int k = threadIdx.x; k < all_rows * stride_; k += kTeamThreads) of_[k] = Tile::state(0.0f);
  }

 protected:
  // Of T's rows.
  __device__ __forceinline__ unsigned part_of_row(int q, unsigned width) const {
    return backward ? hh<Cell>(q) * width : 0;
  }

  State* of_;
  Source<T>* sources_;  // [2, rows]
  int stride_, part_;
  unsigned H_;
  int rows_;
  unsigned turn_ = 0;
};

// A barrier for each of two buffers, into which the blocks of a cluster push so many bytes each turn.
class Arrivals {
 public:
  __device__ __forceinline__ Arrivals(unsigned char* shared, const TeamShape& shape, unsigned bytes,
                                      unsigned most_polls)
      : barriers_(reinterpret_cast<uint64_t*>(shared)), blocks_(shape.blocks), bytes_(bytes), most_polls_(most_polls) {
    if (threadIdx.x != 0) return;
    for (int k = 0; k < 2; ++k) arrivals_init(barriers_ + k), arrivals_expect(barriers_ + k, bytes_);
  }

  // Once, before anything is pushed, if there is anything to do; for a block without units that is all.
  __device__ __forceinline__ void meet() const { cluster_barrier(); }
  __device__ __forceinline__ bool is_idle() const { return blockIdx.x >= unsigned(blocks_); }
  // Last of all, by whom has met: others may still push to a block that waited in vain.
  __device__ __forceinline__ void part() const { cluster_barrier(); }
  // Whether something did not come; so for the whole block.
  __device__ __forceinline__ bool late() const { return late_; }

 protected:
  // All that was pushed for this turn; then the barrier is ready for the next but one.
  __device__ __forceinline__ void wait(unsigned turn) {
    if (late_) return;
    uint64_t* const barrier = barriers_ + (turn & 1);
    late_ = __syncthreads_or(!arrivals_wait(barrier, turn / 2 & 1, most_polls_));
    if (threadIdx.x == 0 && !late_) arrivals_expect(barrier, bytes_);
  }
  __device__ __forceinline__ void push(void* to, const uint4& v, unsigned turn, int rank) const {
    store_async(to, v, barriers_ + (turn & 1), rank);
  }

  uint64_t* barriers_;
  int blocks_;
  unsigned bytes_, most_polls_;
  bool late_ = false;
};

template <class Cell, class T, class Tile>
class Cluster : States<Cell, T, Tile, false>, public Arrivals {
 public:
  using Base = States<Cell, T, Tile, false>;
  using State = typename Tile::State;
  static constexpr int kBuffers = 2;
  static constexpr bool kPolls = false;

  __device__ __forceinline__ Cluster(unsigned char* shared, const TeamLayout& layout, const TeamShape& shape, int64_t H,
                                     int64_t, int rows, unsigned most_polls)
      : Base(shared, layout, H, rows, kBuffers * shape.rows),
        Arrivals(shared, shape, (unsigned(H) + kPushed - 1) / kPushed * 16 * rows, most_polls),
        size_(shape.rows * layout.stride) {}

  // Before the first receive, where sequence `column` begins.
  __device__ __forceinline__ void announce(int column, const T* row, bool) { this->sources_[column] = {row, false}; }

  __device__ __forceinline__ const State* receive() {
    const unsigned turn = this->turn_++;
    State* const states = this->of_ + (turn & 1) * size_;
    if (turn > 0) {
      wait(turn - 1);
      return states;
    }
    __syncthreads();
    for (int k = threadIdx.x; k < this->rows_ * int(this->H_); k += kTeamThreads) {
      const T* row = this->sources_[k / this->H_].row;
      if (row) states[k / this->H_ * this->stride_ + k % this->H_] = Tile::state(to_acc(row[k % this->H_]));
    }
    meet();
    return states;
  }

  // By all threads: the thread's word, if it has one, of units from u on. Four neighbours make 16 bytes, which each
  // sends to a quarter of the blocks.
  __device__ __forceinline__ void send(bool has, int column, unsigned u, uint32_t word) {
    const int lane = threadIdx.x % 32, quarter = lane % 4;
    uint32_t v[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) v[k] = __shfl_sync(0xffffffffu, word, lane - quarter + k);
    const unsigned first = u - quarter * (4 / sizeof(State));
    if (!has || first >= this->H_ || late()) return;
    State* to = this->of_ + (this->turn_ & 1) * size_ + column * this->stride_ + first;
    for (int rank = quarter; rank < this->blocks_; rank += 4)
      push(to, make_uint4(v[0], v[1], v[2], v[3]), this->turn_ - 1, rank);
  }

  __device__ __forceinline__ void prefetch(const T*, int64_t, int) const {}

  // Results.
  template <int n>
  __device__ __forceinline__ void store(T* to, T*, const float (&v)[n], int count) const {
    store_word(to, v, count);
  }

 private:
  static constexpr unsigned kPushed = 16 / sizeof(State);  // numbers at once

  int size_;
};

// Sums [2, blocks that sent them, sequences, units of this block].
class Scatter : public Arrivals {
 public:
  __device__ __forceinline__ Scatter(unsigned char* shared, const TeamLayout& layout, const TeamShape& shape, int64_t H,
                                     int rows, unsigned most_polls)
      : Arrivals(shared, shape, shape.blocks * rows * 16 * ((own_units(shape, H) + 3) / 4), most_polls),
        sums_(reinterpret_cast<float*>(shared + layout.sums)),
        H_(unsigned(H)),
        units_(shape.units),
        slice_(layout.sums_slice),
        rows_(rows) {}

  // What each block has summed for this block's units, for the latest push: [blocks, sequences, units].
  __device__ __forceinline__ const float* receive() {
    wait(turn_);
    return sums_ + (turn_++ & 1) * blocks_ * slice_;
  }

  // By a warp: its lanes' sums of 16 units from 16 down on, sequences n to n + 7. Neighbours exchange, so that each has
  // four units of one sequence.
  __device__ __forceinline__ void send(int down, int n, const float (&c)[4]) const {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const bool odd = g & 1;
    const float kept[2] = {odd ? c[1] : c[0], odd ? c[3] : c[2]}, given[2] = {odd ? c[0] : c[1], odd ? c[2] : c[3]};
    const float got[2] = {__shfl_xor_sync(0xffffffffu, given[0], 4), __shfl_xor_sync(0xffffffffu, given[1], 4)};
    const unsigned unit = down * kTile + 2 * (g - odd);
    const int column = n + 2 * t + odd;
    if (column >= rows_ || unit >= H_ || late()) return;
    const float v[4] = {odd ? got[0] : kept[0], odd ? got[1] : kept[1], odd ? kept[0] : got[0], odd ? kept[1] : got[1]};
    float* to = sums_ + ((turn_ & 1) * blocks_ + blockIdx.x) * slice_ + column * units_ + unit % units_;
    push(to, make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3])),
         turn_, unit / units_);
  }

 private:
  static __device__ __forceinline__ unsigned own_units(const TeamShape& shape, int64_t H) {
    const int64_t left = H - int64_t(blockIdx.x) * shape.units;
    return left < 0 ? 0 : left < shape.units ? left : shape.units;
  }

  float* sums_;
  unsigned H_, units_;
  int slice_, rows_;
  unsigned turn_ = 0;
};

template <class Cell, class T, class Tile, bool backward>
class Grid : States<Cell, T, Tile, backward> {
 public:
  using Base = States<Cell, T, Tile, backward>;
  using State = typename Tile::State;
  static constexpr int kBuffers = 1;
  static constexpr bool kPolls = true;

  // mail_width: numbers from a part of a row of mail to the next.
  __device__ __forceinline__ Grid(unsigned char* shared, const TeamLayout& layout, const TeamShape&, int64_t H,
                                  int64_t mail_width, int rows, unsigned most_polls)
      : Base(shared, layout, H, rows, rows), mail_width_(unsigned(mail_width)), most_polls_(most_polls) {}

  __device__ __forceinline__ bool is_idle() const { return false; }
  __device__ __forceinline__ void meet() const {}
  __device__ __forceinline__ void part() const {}
  __device__ __forceinline__ bool late() const { return false; }  // what has not come is NaN itself

  // For the next receive: where the states of sequence `column` stand.
  __device__ __forceinline__ void announce(int column, const T* row, bool mail) {
    this->sources_[(this->turn_ & 1) * this->rows_ + column] = {row, mail};
  }

  __device__ __forceinline__ const State* receive() {
    if (this->turn_ == 0) __syncthreads();  // for what was announced
    const Source<T>* sources = this->sources_ + (this->turn_ & 1) * this->rows_;
    ++this->turn_;
    // Of few sequences, each is loaded by several warps.
    const int rows = this->rows_, share = rows > 4 ? 1 : rows > 2 ? 2 : rows > 1 ? 4 : kTeamWarps;
    const int warp = threadIdx.x / 32, step = 32 * share, first = warp % share * 32 + threadIdx.x % 32;
    for (int column = warp / share; column < rows; column += kTeamWarps / share) {
      const Source<T> source = sources[column];
#pragma unroll 1
      for (int q = 0; q < Base::kParts; ++q) {
        const T* from = source.row ? source.row + this->part_of_row(q, mail_width_) : nullptr;
        load_part(from, source.mail, this->of_ + column * this->stride_ + q * this->part_, first, step);
      }
    }
    __syncthreads();
    return this->of_;
  }

  // Mail of a step to come, `rows` of it `stride` apart: what the memory was filled with may have left the L2 cache,
  // and a word that is asked for must not have to wait for that. Each of the team's blocks asks for some lines.
  __device__ __forceinline__ void prefetch(const T* mail, int64_t stride, int rows) const {
    constexpr unsigned kLine = 128 / sizeof(T);
    const unsigned lines = ((backward ? Cell::kPre * mail_width_ : this->H_) + kLine - 1) / kLine, all = lines * rows;
    for (unsigned k = blockIdx.x + threadIdx.x * gridDim.x; k < all; k += kTeamThreads * gridDim.x)
      prefetch_l2(mail + k / lines * stride + k % lines * kLine);
  }

  // What others need they get by store().
  __device__ __forceinline__ void send(bool, int, unsigned, uint32_t) const {}

  // Results, and the same as mail, which others wait for.
  template <int n>
  __device__ __forceinline__ void store(T* to, T* mail, const float (&v)[n], int count) const {
    if (mail != to) store_word(to, v, count);
    uint32_t word;
    if constexpr (n == 2)
      word = pack(from_acc<T>(v[0]), from_acc<T>(v[1]));
    else
      word = __float_as_uint(v[0]);
    store_relaxed(reinterpret_cast<uint32_t*>(mail), word == kAbsent ? kOtherNaN : word);
  }

 private:
  static constexpr int kNumbers = 16 / sizeof(T);
  static constexpr int kAtOnce = backward ? 2 : 4;  // with more, backward spills on some architecture
  static constexpr uint32_t kOtherNaN = sizeof(T) == 2 ? 0x7fff7fffu : 0x7fffffffu;

  // Every step-th 16 bytes of a part of a row, from the first on; of what is not mail, every step-th number.
  __device__ __forceinline__ void load_part(const T* from, bool mail, State* to, int first, int step) {
    for (unsigned k = first; !mail && k < this->H_; k += step) to[k] = Tile::state(from ? to_acc(from[k]) : 0.0f);
    const int all = int(this->H_ + kNumbers - 1) / kNumbers;
    const uint4* const words = reinterpret_cast<const uint4*>(from);
    for (int k = first; mail && k < all; k += kAtOnce * step) {
      uint4 v[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
        if (k + i * step < all) v[i] = load_relaxed(words + k + i * step);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (k + i * step >= all) break;
        for (unsigned polls = 0; !arrived(v[i]); ++polls) {
          if (polls >= most_polls_) {
            most_polls_ = 0;  // what is late once comes no more
            break;
          }
          spin();
          v[i] = load_relaxed(words + k + i * step);
        }
        put(to + (k + i * step) * kNumbers, v[i]);
      }
    }
  }

  static __device__ __forceinline__ void put(State* to, uint4 v) {
    if constexpr (sizeof(T) == 4) {
      v.x = to_tf32(__uint_as_float(v.x)), v.y = to_tf32(__uint_as_float(v.y));
      v.z = to_tf32(__uint_as_float(v.z)), v.w = to_tf32(__uint_as_float(v.w));
    }
    *reinterpret_cast<uint4*>(to) = v;
  }
  unsigned mail_width_, most_polls_;
};

}  // namespace adl
