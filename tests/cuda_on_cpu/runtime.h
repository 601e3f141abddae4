// What the emulator's own files share.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "emulator.h"

namespace emulator {

struct Fiber {
  void* stack_pointer = nullptr;
  unsigned char* stack = nullptr;  // null: the host's
  void* fake_stack = nullptr;      // ASan's
};

struct Copy {
  void* to;
  const void* from;
  unsigned bytes, valid;
};

struct Thread;
struct Block;

// A store that only its thread has seen.
struct Store {
  void* to;
  unsigned bytes;
  unsigned char value[16];
  Thread* by;
  uint64_t* barrier;  // counts it; null: of store_relaxed
  Block* in;          // of the barrier
  void* departed;     // for the race detector
};

// Lanes of a warp that meet at one statement.
struct Meeting : Lanes {
  Site site;
  unsigned mask = 0, arrived = 0, left = 0;
  std::vector<Thread*> waiting;
  bool complete() const { return arrived == mask; }
};

struct Warp {
  unsigned exists = 0, exited = 0;  // lanes
  uint32_t priority = 0;
  std::vector<Meeting*> meetings;
};

struct Barrier {
  Site site{};
  std::vector<Thread*> waiting;
  unsigned round = 0;
  char tags[2];  // their addresses stand for the rounds, by turns
};

struct Array {
  unsigned char* data = nullptr;
  size_t bytes = 0;
};

struct Block {
  unsigned index = 0, live = 0, cluster = 0, rank = 0;
  bool started = false;
  Barrier barrier;
  std::vector<Warp> warps;
  std::vector<Thread> threads;
  unsigned char* shared = nullptr;
  std::unordered_map<const void*, Array> arrays;
  size_t array_bytes = 0;
  std::vector<uint64_t*> arrivals;      // barriers that count stores
  std::vector<Thread*> waiting;         // for one of them
  std::vector<Thread*> asleep;          // until `awake`
  bool awake = false, gave_up = false;  // a thread of it
};

struct Thread : ThreadView {
  Warp* warp = nullptr;
  Block* in = nullptr;
  Fiber* fiber = nullptr;  // null before it starts
  void* race = nullptr;
  Site site{"not started", "", 0};
  bool done = false;
  std::vector<std::vector<Copy>> copies;  // by group; the last one is open
  uint64_t* awaits = nullptr;             // a barrier that counts stores
  unsigned microseconds = 0;              // for so long
  bool in_vain = false;
  unsigned relaxed_stores = 0;  // under way
};

enum class Schedule { kFifo, kLifo, kRandom };

struct Settings {
  Schedule schedule = Schedule::kFifo;
  unsigned resident = 1, preempt = 0, multiprocessors = 0;
  bool refuse_cooperative = false, refuse_all = false;
  unsigned sleeper = ~0u;
  uint64_t seed = 0;
  bool operator==(const Settings&) const = default;
};
const Settings& settings();
void update_settings();  // from the environment; what is random begins again where they changed

// The launch under way.
struct Launch {
  LaunchShape shape;
  Allowed allowed{};
  const std::function<void()>* body = nullptr;
  std::vector<Block> blocks;  // those under way
  std::vector<Barrier> clusters;
  Barrier grid{};
  unsigned live = 0;   // threads of these blocks that have not ended
  unsigned spins = 0;  // since the last progress
  std::vector<Store> under_way{};
  unsigned patience = 1;  // of `random`: scheduling points for each that lands
  std::string error{};
};
extern Launch current;

inline Thread* me() { return static_cast<Thread*>(self); }

// ---- fibers.cpp
extern Fiber host_fiber;
Fiber* get_fiber();
void put_fiber(Fiber* fiber);
void switch_fiber(Fiber* from, Fiber* to);
void begin_host();   // the launch may come from another stack than the last
void run_threads();  // in cuda_on_cpu.cpp: what a fiber does, for ever

// ---- schedule.cpp
void begin_schedule(size_t threads);
uint32_t random_number();
void make_ready(Thread* thread);
Thread* next_ready();
void become(Thread* thread);  // null: the host
void resume(Thread* thread);
void suspend(Site site);  // until someone calls make_ready()
std::string who_waits();

// ---- collectives.cpp
void wait_at(Barrier& barrier, unsigned expected, Site site);
void open_if_full(Barrier& barrier, unsigned expected);

Block* block_of(unsigned rank);      // in this cluster
unsigned live_in(unsigned cluster);  // threads that have not exited

// ---- arrivals.cpp
void some_stores_land();          // at every scheduling point
bool one_store_lands();           // where no thread can run; false: none is under way
bool time_passes();               // nor any store land: a wait is in vain, or a block wakes up; false: nothing changes
void publish(const void* tag);    // race::release, but first its relaxed stores land; null: only that
void no_stores_to(Block& block);  // which has exited
std::string barrier_state(const uint64_t* barrier);

// ---- log.cpp
std::string name_of(const void* kernel);
void count_launch(const void* kernel, uint64_t threads);

}  // namespace emulator
