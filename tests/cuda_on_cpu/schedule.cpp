// Which thread runs next.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>

#include "racecheck.h"
#include "runtime.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulator {

ThreadView* self = nullptr;

namespace {

std::vector<Thread*> ring;  // those that can run: `count` from `head` on
size_t head = 0, count = 0;
bool by_priority = false;
uint64_t random_state = 1;
Settings now;

unsigned number_from(const char* variable, unsigned otherwise) {
  const char* text = getenv(variable);
  return text ? static_cast<unsigned>(strtoul(text, nullptr, 10)) : otherwise;
}

Settings read_settings() {
  Settings s;
  const char* schedule = getenv("ADL_EMULATOR_SCHEDULE");
  if (!schedule || !strcmp(schedule, "fifo"))
    s.schedule = Schedule::kFifo;
  else if (!strcmp(schedule, "lifo"))
    s.schedule = Schedule::kLifo;
  else if (!strcmp(schedule, "random"))
    s.schedule = Schedule::kRandom;
  else
    fail("ADL_EMULATOR_SCHEDULE must be fifo, lifo or random, got %s", schedule);
  const bool random = s.schedule == Schedule::kRandom;
  s.seed = number_from("ADL_EMULATOR_SEED", 1);
  s.resident = std::max(1u, number_from("ADL_EMULATOR_RESIDENT", random ? 2 : 1));
  s.preempt = random ? number_from("ADL_EMULATOR_PREEMPT", 16) : 0;
  s.multiprocessors = number_from("ADL_EMULATOR_SMS", 132);
  s.sleeper = number_from("ADL_EMULATOR_SLEEPER", ~0u);
  const char* refuse = getenv("ADL_EMULATOR_REFUSE");
  s.refuse_all = refuse && !strcmp(refuse, "all");
  s.refuse_cooperative = refuse && !strcmp(refuse, "cooperative");
  if (refuse && !s.refuse_all && !s.refuse_cooperative)
    fail("ADL_EMULATOR_REFUSE must be cooperative or all, got %s", refuse);
  return s;
}

// Uniform, or the highest warp priority of a few candidates, which lets some warps run far ahead.
size_t random_candidate() {
  size_t best = ring.size();
  for (int k = by_priority ? 16 : 1; k > 0; --k) {
    const size_t i = (head + (static_cast<uint64_t>(random_number()) * count >> 32)) % ring.size();
    if (best == ring.size() || ring[i]->warp->priority > ring[best]->warp->priority) best = i;
  }
  if (by_priority && random_number() % 256 == 0) ring[best]->warp->priority = random_number();
  return best;
}

}  // namespace

const Settings& settings() { return now; }

void update_settings() {
  const Settings s = read_settings();
  if (s == now) return;
  now = s;
  random_state = s.seed * 0x9E3779B97F4A7C15ull + 0xD1B54A32D192ED03ull;
}

uint32_t random_number() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return static_cast<uint32_t>(random_state >> 32);
}

void begin_schedule(size_t threads) {
  ring.assign(threads, nullptr);
  head = count = 0;
  by_priority = random_number() % 3 != 0;
  current.patience = 1u << random_number() % 8;
}

void make_ready(Thread* thread) { ring[(head + count++) % ring.size()] = thread; }

Thread* next_ready() {
  while (!count)
    if (!one_store_lands() && !time_passes()) return nullptr;
  if (settings().schedule == Schedule::kLifo) return ring[(head + --count) % ring.size()];
  if (settings().schedule == Schedule::kRandom) std::swap(ring[random_candidate()], ring[head]);
  Thread* thread = ring[head];
  head = (head + 1) % ring.size();
  --count;
  return thread;
}

void become(Thread* thread) {
  self = thread;
  race::run_thread(thread ? thread->race : nullptr);
  if (!thread) return;
  threadIdx = thread->thread;
  blockIdx = thread->block;
}

void resume(Thread* thread) {
  Fiber* from = self ? me()->fiber : &host_fiber;
  if (!thread->fiber) {
    thread->fiber = get_fiber();
    thread->stack = thread->fiber->stack;
  }
  become(thread);
  if (from != thread->fiber) switch_fiber(from, thread->fiber);
}

void suspend(Site site) {
  Thread* thread = me();
  thread->site = site;
  some_stores_land();
  Thread* next = next_ready();
  if (!next) fail("deadlock: no thread can run");
  if (next != thread) resume(next);
  thread->site.what = "running, last at";
}

void spin(Site site) {
  if (++current.spins > 100 * ring.size() + 100000) fail("livelock: a spin-wait is never satisfied");
  if (settings().schedule == Schedule::kLifo || !count) one_store_lands();
  me()->warp->priority = 0;                      // everybody else first
  if (settings().schedule == Schedule::kLifo) {  // at the other end, or it would be next again
    head = (head + ring.size() - 1) % ring.size();
    ring[head] = me();
    ++count;
  } else {
    make_ready(me());
  }
  suspend(site);
}

void maybe_preempt() {
  if (!self || !count || !settings().preempt || random_number() % settings().preempt != 0) return;
  make_ready(me());
  suspend({"preempted", "", 0});
}

std::string who_waits() {
  std::map<std::string, std::pair<int, std::string>> places;  // how many threads, and one of them
  char text[512];
  for (const Block& block : current.blocks) {
    for (const Thread& t : block.threads) {
      if (t.done) continue;
      const std::string state = t.awaits ? ": " + barrier_state(t.awaits) : "";
      snprintf(text, sizeof text, "%s %s:%d%s", t.site.what, t.site.file, t.site.line, state.c_str());
      auto& [threads, example] = places[text];
      if (threads++) continue;
      snprintf(text, sizeof text, "block (%u,%u,%u) thread (%u,%u,%u)", t.block.x, t.block.y, t.block.z, t.thread.x,
               t.thread.y, t.thread.z);
      example = text;
    }
  }
  std::string lines;
  for (const auto& [place, threads] : places)
    lines += "\n  " + std::to_string(threads.first) + " thread(s): " + place + ", e.g. " + threads.second;
  return lines;
}

}  // namespace emulator
