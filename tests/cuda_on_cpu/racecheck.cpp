// Finds data races of kernels that the emulator runs, whatever the schedule happened to be.
//
// Kernels are compiled with -fsanitize=thread, whose calls come here instead of to its own library, which costs
// megabytes a thread: the program is linked without that flag. Every thread has a vector clock. What orders
// memory: __syncthreads, __syncwarp, barriers of clusters and of the grid, add_release with load_acquire, store_async
// with arrivals_wait. What does not: shuffles, votes, tensor cores, other atomics. Blocks are not ordered otherwise.
#include "racecheck.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "emulator.h"

namespace emulator::race {

namespace {

// How far a thread has seen the others: times by thread. The threads of a block are neighbours, so a range is short.
struct Clock {
  unsigned first = 0;
  std::vector<uint32_t> times;

  uint32_t at(unsigned id) const { return id - first < times.size() ? times[id - first] : 0; }
  void cover(unsigned begin, unsigned end) {
    if (times.empty()) first = begin;
    if (begin < first) {
      times.insert(times.begin(), first - begin, 0);
      first = begin;
    }
    if (end > first + times.size()) times.resize(end - first, 0);
  }
  void merge(const Clock& other) {
    if (other.times.empty()) return;
    const size_t n = other.times.size();
    cover(other.first, other.first + static_cast<unsigned>(n));
    uint32_t* to = times.data() + (other.first - first);
    for (size_t i = 0; i < n; ++i) to[i] = to[i] < other.times[i] ? other.times[i] : to[i];
  }
};

struct Actor {
  unsigned id = 0;
  uint32_t time = 1;
  Clock seen;
  const ThreadView* view = nullptr;
  const void* departed = nullptr;  // of a store under way: where in the kernel
};

struct Event {
  uint32_t id = 0, time = 0, code = 0;  // code: the address in this library
  uint8_t bytes = 0;                    // which of the two
  bool atomic = false;
};

// The latest accesses of two bytes of memory.
struct Cell {
  uint32_t launch = 0;
  Event write, reads[2];
};

constexpr size_t kPageBytes = 1 << 16, kCells = kPageBytes / 2;

// Null on the host: before anything here is constructed, and in other threads of the operating system.
thread_local Actor* now = nullptr;

struct Detector {
  std::vector<std::unique_ptr<Actor>> actors;  // by id - 1
  uint32_t launch = 1;
  std::unordered_map<uintptr_t, Cell*> pages;
  std::unordered_map<const void*, Clock> tags;
  std::map<std::pair<uint32_t, uint32_t>, unsigned> reported;
  uintptr_t library = 0;
  const char* path = "";
  unsigned long long accesses = 0, races = 0;
  std::string first_race;  // of this launch

  ~Detector() {
    fprintf(stderr, "racecheck: %llu accesses checked, %llu race(s) at %zu place(s)\n", accesses, races,
            reported.size());
    if (!races) return;
    fflush(nullptr);
    _exit(66);
  }
} d;

Cell* cell_of(uintptr_t address) {
  static uintptr_t keys[64];
  static Cell* pages[64];
  const uintptr_t key = address / kPageBytes;
  const size_t slot = key % 64;
  if (!pages[slot] || keys[slot] != key) {
    Cell*& page = d.pages[key];
    if (!page) page = static_cast<Cell*>(calloc(kCells, sizeof(Cell)));
    keys[slot] = key;
    pages[slot] = page;
  }
  return pages[slot] + address % kPageBytes / 2;
}

std::string line_of(uint32_t code) {
  if (!code) return "its begin or end";
  char command[600], line[400] = "?";
  snprintf(command, sizeof command, "addr2line -s -e '%s' 0x%x 2>/dev/null", d.path, code - 1);
  if (FILE* pipe = popen(command, "r")) {
    if (fgets(line, sizeof line, pipe)) line[strcspn(line, " \n")] = 0;
    pclose(pipe);
  }
  return line;
}

std::string name_of(const Actor& actor) {
  const ThreadView& v = *actor.view;
  char name[128];
  snprintf(name, sizeof name, "block (%u,%u,%u) thread (%u,%u,%u)", v.block.x, v.block.y, v.block.z, v.thread.x,
           v.thread.y, v.thread.z);
  return name;
}

void report(uintptr_t address, const char* what, uint32_t code, const char* other_what, const Event& other) {
  ++d.races;
  if (d.reported[{code, other.code}]++ && !d.first_race.empty()) return;
  const uintptr_t offset = address - reinterpret_cast<uintptr_t>(self->shared);
  char place[64];
  if (offset < kSharedBytes)
    snprintf(place, sizeof place, "dynamic shared memory + %zu", static_cast<size_t>(offset));
  else
    snprintf(place, sizeof place, "memory at %p", reinterpret_cast<void*>(address));
  const std::string text = std::string("racecheck: ") + place + ": " + what + " by " + name_of(*now) + " at " +
                           line_of(code) + " is not ordered after the " + other_what + " by " +
                           name_of(*d.actors[other.id - 1]) + " at " + line_of(other.code);
  if (d.first_race.empty()) d.first_race = text;
  fprintf(stderr, "%s\n", text.c_str());
}

bool unordered(const Event& event, uint8_t bytes) {
  if (event.id == now->id && !now->departed) return false;
  return event.id && (event.bytes & bytes) && event.time > now->seen.at(event.id);
}

enum Kind { kRead, kWrite, kAtomicRead, kAtomicWrite };

void access(const volatile void* p, size_t n, Kind kind, const void* caller) {
  if (!now || n == 0) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(p), end = begin + n;
  if (begin - reinterpret_cast<uintptr_t>(self->stack) < kStackBytes) return;  // the thread's own
  ++d.accesses;
  const uint32_t code = caller ? static_cast<uint32_t>(reinterpret_cast<uintptr_t>(caller) - d.library) : 0;
  const bool atomic = kind >= kAtomicRead, writes = kind == kWrite || kind == kAtomicWrite;
  bool quiet = false;  // one report an access
  for (uintptr_t at = begin & ~uintptr_t{1}; at < end; at += 2) {
    const uint8_t bytes = static_cast<uint8_t>((at >= begin ? 1 : 0) | (at + 1 < end ? 2 : 0));
    Cell& cell = *cell_of(at);
    if (cell.launch != d.launch) {
      cell = Cell();
      cell.launch = d.launch;
    }
    if (!quiet && unordered(cell.write, bytes) && !(atomic && cell.write.atomic)) {
      report(at, writes ? "write" : "read", code, "write", cell.write);
      quiet = true;
    }
    const Event event{now->id, now->time, code, bytes, atomic};
    if (writes) {
      for (const Event& read : cell.reads) {
        if (quiet || !unordered(read, bytes) || (atomic && read.atomic)) continue;
        report(at, "write", code, "read", read);
        quiet = true;
      }
      cell.write = event;
      if (!atomic) cell.reads[0].id = cell.reads[1].id = 0;
    } else if (atomic) {  // takes nobody's place
      if (!cell.reads[1].id || cell.reads[1].atomic) cell.reads[1] = event;
    } else {
      if (cell.reads[0].id != event.id) cell.reads[1] = cell.reads[0];
      cell.reads[0] = event;
    }
  }
  if (!atomic && caller && !now->departed) maybe_preempt();
}

void find_library() {
  Dl_info info;
  if (d.library || !dladdr(reinterpret_cast<void*>(&find_library), &info)) return;
  d.library = reinterpret_cast<uintptr_t>(info.dli_fbase);
  d.path = info.dli_fname;
}

}  // namespace

void begin_launch() {
  find_library();
  d.first_race.clear();
  ++d.launch;
  d.actors.clear();
  d.tags.clear();
}

std::string end_launch() { return d.first_race; }

void* make_thread(const ThreadView* view) {
  d.actors.push_back(std::make_unique<Actor>());
  Actor* actor = d.actors.back().get();
  actor->id = static_cast<unsigned>(d.actors.size());
  actor->view = view;
  return actor;
}

void run_thread(void* thread) { now = static_cast<Actor*>(thread); }

void release(const void* tag) {
  if (!now) return;
  Clock& clock = d.tags[tag];
  clock.merge(now->seen);
  clock.cover(now->id, now->id + 1);
  clock.times[now->id - clock.first] = now->time++;
}

void acquire(const void* tag) {
  const auto found = d.tags.find(tag);
  if (now && found != d.tags.end()) now->seen.merge(found->second);
}

void forget(const void* tag) { d.tags.erase(tag); }
void read(const void* p, size_t bytes) { access(p, bytes, kRead, nullptr); }
void write(const void* p, size_t bytes, const void* caller) { access(p, bytes, kWrite, caller); }
void atomic_read(const void* p, size_t bytes, const void* caller) { access(p, bytes, kAtomicRead, caller); }

void* depart(const void* caller) {
  Actor* actor = new Actor(*now);
  actor->departed = caller;
  actor->seen.cover(now->id, now->id + 1);
  actor->seen.times[now->id - actor->seen.first] = now->time++;
  return actor;
}

void arrive(void* departed, const void* p, size_t bytes, const uint64_t* barrier, const void* tag) {
  const std::unique_ptr<Actor> actor(static_cast<Actor*>(departed));
  Actor* running = std::exchange(now, actor.get());
  access(p, bytes, barrier ? kWrite : kAtomicWrite, actor->departed);
  if (barrier) access(barrier, sizeof *barrier, kAtomicRead, actor->departed);
  now = running;
  if (barrier) d.tags[tag].merge(actor->seen);
}

}  // namespace emulator::race

using namespace emulator::race;

// ---- what -fsanitize=thread calls

extern "C" {

#define ADL_ACCESS(name, bytes, kind) \
  void __tsan_##name(void* p) { access(p, bytes, kind, __builtin_return_address(0)); }
#define ADL_ACCESSES(bytes)                       \
  ADL_ACCESS(read##bytes, bytes, kRead)           \
  ADL_ACCESS(write##bytes, bytes, kWrite)         \
  ADL_ACCESS(unaligned_read##bytes, bytes, kRead) \
  ADL_ACCESS(unaligned_write##bytes, bytes, kWrite)
ADL_ACCESSES(1)
ADL_ACCESSES(2)
ADL_ACCESSES(4)
ADL_ACCESSES(8)
ADL_ACCESSES(16)

void __tsan_read_range(void* p, unsigned long n) { access(p, n, kRead, __builtin_return_address(0)); }
void __tsan_write_range(void* p, unsigned long n) { access(p, n, kWrite, __builtin_return_address(0)); }
void __tsan_vptr_read(void*) {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
void __tsan_atomic_signal_fence(int) {}

#define ADL_FETCH(bits, T, operation)                                  \
  T __tsan_atomic##bits##_fetch_##operation(volatile T* p, T v, int) { \
    access(p, sizeof(T), kAtomicWrite, __builtin_return_address(0));   \
    return __atomic_fetch_##operation(p, v, __ATOMIC_SEQ_CST);         \
  }
#define ADL_COMPARE(bits, T, strength, weak)                                                  \
  int __tsan_atomic##bits##_compare_exchange_##strength(volatile T* p, T* c, T v, int, int) { \
    access(p, sizeof(T), kAtomicWrite, __builtin_return_address(0));                          \
    return __atomic_compare_exchange_n(p, c, v, weak, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);    \
  }
#define ADL_ATOMICS(bits, T)                                         \
  T __tsan_atomic##bits##_load(const volatile T* p, int) {           \
    access(p, sizeof(T), kAtomicRead, __builtin_return_address(0));  \
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);                     \
  }                                                                  \
  void __tsan_atomic##bits##_store(volatile T* p, T v, int) {        \
    access(p, sizeof(T), kAtomicWrite, __builtin_return_address(0)); \
    __atomic_store_n(p, v, __ATOMIC_SEQ_CST);                        \
  }                                                                  \
  T __tsan_atomic##bits##_exchange(volatile T* p, T v, int) {        \
    access(p, sizeof(T), kAtomicWrite, __builtin_return_address(0)); \
    return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);              \
  }                                                                  \
  ADL_FETCH(bits, T, add)                                            \
  ADL_FETCH(bits, T, sub)                                            \
  ADL_FETCH(bits, T, and)                                            \
  ADL_FETCH(bits, T, or) ADL_FETCH(bits, T, xor) ADL_COMPARE(bits, T, strong, false) ADL_COMPARE(bits, T, weak, true)
ADL_ATOMICS(8, uint8_t) ADL_ATOMICS(16, uint16_t) ADL_ATOMICS(32, uint32_t) ADL_ATOMICS(64, uint64_t)

}  // extern "C"
