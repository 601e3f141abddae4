// Stores that others do not see yet, and the barriers that count those into shared memory.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <utility>

#include "racecheck.h"
#include "runtime.h"

namespace emulator {

namespace {

// What the 64 bits of a barrier hold here; the bytes are those still to come, so negative before it is armed.
constexpr unsigned kMark = 0xBA44;
constexpr int kMostBytes = (1 << 20) - 1;
struct Arrivals {
  uint64_t mark : 16, phase : 23, armed : 1;
  int64_t bytes : 24;
};
static_assert(sizeof(Arrivals) == sizeof(uint64_t));

bool misaligned(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes != 0; }

Arrivals& arrivals(const char* what, uint64_t* barrier) {
  auto& a = *reinterpret_cast<Arrivals*>(barrier);
  if (a.mark != kMark) fail("%s: the barrier is not initialised", what);
  return a;
}

Arrivals& own_arrivals(const char* what, uint64_t* barrier) {
  if (misaligned(barrier, sizeof *barrier)) fail("%s: misaligned barrier", what);
  shared_of(barrier, me()->cluster_rank);  // fails unless it is in this block
  return arrivals(what, barrier);
}

// Stands for a phase of the barrier; those that follow each other differ.
const char* tag(const uint64_t* barrier, unsigned phase) {
  return reinterpret_cast<const char*>(barrier) + (phase & 1);
}

void end_phase_if_complete(uint64_t* barrier, Block& in) {
  auto& a = *reinterpret_cast<Arrivals*>(barrier);
  if (a.bytes > kMostBytes || a.bytes < -kMostBytes)
    fail("a barrier counts at most %d bytes, one of block %u: %s", kMostBytes, in.index,
         barrier_state(barrier).c_str());
  if (!a.armed || a.bytes > 0) return;
  if (a.bytes < 0)
    fail("more bytes came than a barrier of block %u expects: %s", in.index, barrier_state(barrier).c_str());
  a.phase = a.phase + 1;
  a.armed = 0;
  race::forget(tag(barrier, a.phase));  // of the phase before the last
  current.spins = 0;
  std::erase_if(in.waiting, [&](Thread* thread) {
    if (thread->awaits != barrier) return false;
    make_ready(thread);
    return true;
  });
}

void land(const Store& store) {
  current.spins = 0;
  memcpy(store.to, store.value, store.bytes);
  if (store.barrier) {
    Arrivals& a = arrivals("store_async", store.barrier);
    race::arrive(store.departed, store.to, store.bytes, store.barrier, tag(store.barrier, a.phase));
    a.bytes = a.bytes - store.bytes;
    end_phase_if_complete(store.barrier, *store.in);
  } else {
    --store.by->relaxed_stores;
    race::arrive(store.departed, store.to, store.bytes, nullptr, nullptr);
  }
}

void land_at(size_t i) {
  std::swap(current.under_way[i], current.under_way.back());
  const Store store = current.under_way.back();
  current.under_way.pop_back();
  land(store);
}

// Whether a thread of the cluster has waited in vain.
bool gave_up(unsigned cluster) {
  return std::any_of(current.blocks.begin(), current.blocks.end(),
                     [&](const Block& block) { return block.cluster == cluster && block.gave_up; });
}

size_t any_store() { return random_number() % current.under_way.size(); }

}  // namespace

std::string barrier_state(const uint64_t* barrier) {
  const auto& a = *reinterpret_cast<const Arrivals*>(barrier);
  char text[128];
  const int bytes = static_cast<int>(a.bytes);
  snprintf(text, sizeof text, "phase %u, %s, %d bytes %s", static_cast<unsigned>(a.phase),
           a.armed ? "armed" : "not armed", bytes < 0 ? -bytes : bytes, bytes < 0 ? "too many" : "to come");
  return text;
}

// ---- when a store is seen: soon, or late and in another order

void some_stores_land() {
  if (settings().schedule == Schedule::kFifo)
    for (const Store& store : std::exchange(current.under_way, {})) land(store);
  if (settings().schedule == Schedule::kRandom)
    while (!current.under_way.empty() && random_number() % current.patience == 0) land_at(any_store());
}

bool one_store_lands() {
  if (current.under_way.empty()) return false;
  const bool random = settings().schedule == Schedule::kRandom;
  land_at(random ? any_store() : current.under_way.size() - 1);
  return true;
}

void publish(const void* tag) {
  for (size_t i = 0; me()->relaxed_stores; ++i) {
    const Store store = current.under_way[i];
    if (!store.barrier && store.by == me()) land_at(i--);
  }
  if (tag) race::release(tag);
}

// ---- counted stores

void arrivals_init(uint64_t* barrier, const void* caller) {
  if (misaligned(barrier, sizeof *barrier)) fail("arrivals_init: misaligned barrier");
  shared_of(barrier, me()->cluster_rank);
  auto& a = *reinterpret_cast<Arrivals*>(barrier);
  if (a.mark == kMark) fail("arrivals_init: the barrier is initialised already: %s", barrier_state(barrier).c_str());
  race::write(barrier, sizeof *barrier, caller);
  a = Arrivals{kMark, 0, 0, 0};
  me()->in->arrivals.push_back(barrier);
}

void arrivals_expect(uint64_t* barrier, unsigned bytes, const void* caller) {
  Arrivals& a = own_arrivals("arrivals_expect", barrier);
  race::atomic_read(barrier, sizeof *barrier, caller);
  if (a.armed) fail("arrivals_expect: twice in a phase: %s", barrier_state(barrier).c_str());
  if (bytes > kMostBytes) fail("arrivals_expect: %u bytes are too many", bytes);
  a.armed = 1;
  a.bytes = a.bytes + static_cast<int>(bytes);
  publish(tag(barrier, a.phase));
  end_phase_if_complete(barrier, *me()->in);
}

bool arrivals_wait(Site site, uint64_t* barrier, unsigned parity, unsigned microseconds, const void* caller) {
  maybe_preempt();
  const Arrivals& a = own_arrivals("arrivals_wait", barrier);
  race::atomic_read(barrier, sizeof *barrier, caller);
  if (parity > 1) fail("arrivals_wait: the parity is %u", parity);
  while ((a.phase & 1) == parity) {  // whoever comes a phase late has missed it
    me()->awaits = barrier;
    me()->microseconds = microseconds;
    me()->in->waiting.push_back(me());
    suspend(site);
    me()->awaits = nullptr;
    if (std::exchange(me()->in_vain, false)) return false;
  }
  race::acquire(tag(barrier, parity));
  return true;
}

namespace {

// In turn all wait in vain before a block wakes up; with `lifo` one thread, with `random` some.
bool wakes_up(const Block& sleeper, bool others_wait) {
  if (sleeper.asleep.empty()) return false;
  const bool was_late = gave_up(sleeper.cluster);
  const Schedule schedule = settings().schedule;
  return !others_wait ||
         (was_late && (schedule == Schedule::kLifo || (schedule == Schedule::kRandom && random_number() % 8 == 0)));
}

}  // namespace

bool time_passes() {
  std::vector<Thread*> waiting;
  for (const Block& block : current.blocks)
    for (Thread* thread : block.waiting)
      if (thread->microseconds < kForEver) waiting.push_back(thread);
  for (Block& block : current.blocks)
    if (wakes_up(block, !waiting.empty())) {
      block.awake = true;
      for (Thread* thread : std::exchange(block.asleep, {})) make_ready(thread);
      return true;
    }
  if (waiting.empty()) return false;
  const bool random = settings().schedule == Schedule::kRandom;
  Thread* thread = waiting[random ? random_number() % waiting.size() : 0];
  std::erase(thread->in->waiting, thread);
  thread->in_vain = thread->in->gave_up = true;
  make_ready(thread);
  return true;
}

void store_async(Site site, void* p, const void* value, uint64_t* barrier, unsigned rank, const void* caller) {
  Store store{nullptr, 16, {}, me(), nullptr, nullptr, nullptr};
  if (misaligned(p, store.bytes)) fail("store_async: misaligned address");
  if (misaligned(barrier, sizeof *barrier)) fail("store_async: misaligned barrier");
  store.to = shared_of(p, rank);
  shared_of(static_cast<char*>(p) + store.bytes - 1, rank);
  store.barrier = static_cast<uint64_t*>(shared_of(barrier, rank));
  store.in = block_of(rank);
  if (me()->cluster_rank == settings().sleeper && !me()->in->awake) {
    me()->in->asleep.push_back(me());
    suspend({"asleep at store_async", site.file, site.line});
  }
  if (store.in->live == 0) fail("store_async: block %u of the cluster has exited", rank);
  arrivals("store_async", store.barrier);
  memcpy(store.value, value, store.bytes);
  // PTX calls the count a release at the scope of the cluster. That it takes along what the storing thread did before,
  // say its loads from a buffer that may be filled again now, is what CUTLASS and others rely on.
  publish(nullptr);
  store.departed = race::depart(caller);
  current.under_way.push_back(store);
}

void no_stores_to(Block& block) {
  for (const Store& store : current.under_way)
    if (store.in == &block) fail("a block has exited, but a store to it is under way");
  for (const uint64_t* barrier : block.arrivals) {
    const auto& a = *reinterpret_cast<const Arrivals*>(barrier);
    if (a.mark == kMark && a.bytes < 0 && !gave_up(block.cluster))
      fail("a block has exited, but has not waited for what it was sent: %s", barrier_state(barrier).c_str());
  }
}

// ---- words that are their own flags

void load_relaxed(const void* p, uint32_t (&words)[4], const void* caller) {
  if (misaligned(p, sizeof words)) fail("load_relaxed: misaligned address");
  publish(nullptr);  // a thread sees its own stores
  const auto* from = static_cast<const uint32_t*>(p);
  const unsigned first = settings().schedule == Schedule::kRandom ? random_number() : 0;
  for (unsigned k = 0; k < 4; ++k) {
    const unsigned i = (first + k) % 4;
    maybe_preempt();
    race::atomic_read(from + i, sizeof *from, caller);
    words[i] = from[i];
  }
}

void store_relaxed(uint32_t* p, uint32_t v, const void* caller) {
  if (misaligned(p, sizeof v)) fail("store_relaxed: misaligned address");
  static_cast<void>(*const_cast<volatile uint32_t*>(p));  // for the sanitizers: here, not where it lands
  if (me()->relaxed_stores)
    for (const Store& store : current.under_way)
      if (store.to == p && store.by == me()) {  // stores to one word stay in order
        publish(nullptr);
        break;
      }
  Store store{p, sizeof v, {}, me(), nullptr, nullptr, race::depart(caller)};
  memcpy(store.value, &v, sizeof v);
  ++me()->relaxed_stores;
  current.under_way.push_back(store);
}

}  // namespace emulator
