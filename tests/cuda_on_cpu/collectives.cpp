// Barriers, warps, asynchronous copies and shared memory: what threads do together.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "racecheck.h"
#include "runtime.h"

namespace emulator {

namespace {

bool same_place(Site a, Site b) { return a.line == b.line && !strcmp(a.what, b.what) && !strcmp(a.file, b.file); }

// Meetings are used again, never destroyed.
std::vector<Meeting*>& idle = *new std::vector<Meeting*>;

Meeting* find_meeting(Site site, unsigned mask) {
  Warp& warp = *me()->warp;
  if (!(mask >> me()->lane & 1)) fail("%s: the calling lane is not in the mask", site.what);
  if (mask & ~warp.exists) fail("%s: the mask 0x%x names lanes that do not exist", site.what, mask);
  if (mask & warp.exited) fail("%s: the mask 0x%x names lanes that have exited", site.what, mask);
  for (Meeting* m : warp.meetings) {
    if (m->complete() || !(m->mask & mask)) continue;
    if (m->mask != mask || !same_place(m->site, site))
      fail("divergent warp: %s at line %d (mask 0x%x) and %s at line %d (mask 0x%x)", m->site.what, m->site.line,
           m->mask, site.what, site.line, mask);
    return m;
  }
  Meeting* m;
  if (idle.empty()) {
    m = new Meeting;
  } else {
    m = idle.back();
    idle.pop_back();
  }
  m->site = site;
  m->mask = mask;
  m->arrived = m->left = 0;
  warp.meetings.push_back(m);
  return m;
}

// Returns when all lanes of the mask have come; leave() must follow.
Meeting* meet(Site site, unsigned mask, const void* in, size_t bytes, void (*combine)(Lanes&) = nullptr,
              bool orders_memory = false) {
  Meeting* m = find_meeting(site, mask);
  if (bytes) memcpy(m->in[me()->lane], in, bytes);
  m->arrived |= 1u << me()->lane;
  if (orders_memory) publish(m);
  if (m->complete()) {
    if (combine) combine(*m);
    for (Thread* thread : m->waiting) make_ready(thread);
    m->waiting.clear();
    if (settings().schedule != Schedule::kFifo) {
      make_ready(me());
      suspend(site);
    }
  } else {
    m->waiting.push_back(me());
    suspend(site);
  }
  if (orders_memory) race::acquire(m);
  return m;
}

void leave(Meeting* m) {
  m->left |= 1u << me()->lane;
  if (m->left != m->mask) return;
  std::erase(me()->warp->meetings, m);
  race::forget(m);
  idle.push_back(m);
}

void land(const Copy& copy) {
  race::read(copy.from, copy.valid);
  race::write(copy.to, copy.bytes);
  memcpy(copy.to, copy.from, copy.valid);
  memset(static_cast<char*>(copy.to) + copy.valid, 0, copy.bytes - copy.valid);
}

unsigned char* array_of(Block& block, const void* key, size_t bytes) {
  Array& array = block.arrays[key];
  if (array.data) return array.data;
  void* p = nullptr;
  if (posix_memalign(&p, 128, bytes)) throw std::bad_alloc();
  memset(p, 0xFF, bytes);  // NaN until written
  array = {static_cast<unsigned char*>(p), bytes};
  block.array_bytes += bytes;
  if (block.array_bytes > kStaticSharedBytes) fail("%zu bytes in shared arrays of fixed size", block.array_bytes);
  const size_t asked = current.allowed.dynamic_bytes, most = asked ? kSharedBytes : kStaticSharedBytes;
  const size_t dynamic = asked ? asked : current.shape.shared_bytes;
  if (block.array_bytes + dynamic > most)
    fail("%zu bytes of shared memory in arrays of fixed size and %zu beside them, where %zu are allowed",
         block.array_bytes, dynamic, most);
  return array.data;
}

bool misaligned(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes != 0; }

}  // namespace

// ---- barriers

void open_if_full(Barrier& barrier, unsigned expected) {
  if (barrier.waiting.empty() || barrier.waiting.size() < expected) return;
  ++barrier.round;
  current.spins = 0;
  for (Thread* thread : barrier.waiting) {
    make_ready(thread);
    if (!thread->warp->priority) thread->warp->priority = random_number();
  }
  barrier.waiting.clear();
}

void wait_at(Barrier& barrier, unsigned expected, Site site) {
  if (barrier.waiting.empty())
    barrier.site = site;
  else if (!same_place(barrier.site, site))
    fail("%s: threads of one barrier are at lines %d and %d", site.what, barrier.site.line, site.line);
  const char* tag = &barrier.tags[barrier.round & 1];
  publish(tag);
  barrier.waiting.push_back(me());
  open_if_full(barrier, expected);
  suspend(site);
  race::acquire(tag);
}

void block_barrier(Site site) { wait_at(me()->in->barrier, me()->in->live, site); }

void cluster_barrier(Site site) { wait_at(current.clusters[me()->in->cluster], live_in(me()->in->cluster), site); }

unsigned live_in(unsigned cluster) {
  unsigned live = 0;
  for (const Block& block : current.blocks) live += block.cluster == cluster ? block.live : 0;
  return live;
}

void grid_barrier(Site site) {
  if (!current.shape.cooperative) fail("grid barrier in a launch that is not cooperative");
  wait_at(current.grid, current.live, site);
}

// ---- flags

void release(const void* flag) {
  current.spins = 0;
  publish(flag);
}
void acquire(const void* flag) { race::acquire(flag); }

// ---- shared memory

void* block_array(const void* key, size_t bytes) { return array_of(*me()->in, key, bytes); }

Block* block_of(unsigned rank) {
  if (rank >= current.shape.cluster) fail("shared_of: the cluster has no block of rank %u", rank);
  return me()->in - me()->in->rank + rank;
}

void* shared_of(void* p, unsigned rank) {
  const Block& mine = *me()->in;
  Block& other = *block_of(rank);
  const auto* place = static_cast<unsigned char*>(p);
  if (place >= mine.shared && place < mine.shared + current.shape.shared_bytes)
    return other.shared + (place - mine.shared);
  for (const auto& [key, array] : mine.arrays)
    if (place >= array.data && place < array.data + array.bytes)
      return array_of(other, key, array.bytes) + (place - array.data);
  fail("shared_of: the address is not in the shared memory of this block");
}

// ---- warps

void warp_barrier(Site site, unsigned mask) { leave(meet(site, mask, nullptr, 0, nullptr, true)); }

void shuffle(Site site, unsigned mask, const void* value, size_t bytes, int source, void* result) {
  if (bytes > sizeof Lanes::in[0]) fail("%s: %zu bytes are too many", site.what, bytes);
  if (!(mask >> source & 1)) fail("%s reads lane %d, which is not in the mask", site.what, source);
  Meeting* m = meet(site, mask, value, bytes);
  memcpy(result, m->in[source], bytes);
  leave(m);
}

unsigned ballot(Site site, unsigned mask, bool predicate) {
  const unsigned char vote = predicate;
  Meeting* m = meet(site, mask, &vote, 1);
  unsigned votes = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) votes |= static_cast<unsigned>(m->in[lane][0]) << lane;
  leave(m);
  return votes;
}

void warp_collective(Site site, const void* in, size_t in_bytes, void* out, size_t out_bytes, void (*combine)(Lanes&)) {
  Meeting* m = meet(site, 0xffffffffu, in, in_bytes, combine);
  memcpy(out, m->out[me()->lane], out_bytes);
  leave(m);
}

// ---- asynchronous copies

void copy_async(void* shared, const void* global, unsigned bytes, unsigned valid) {
  if (misaligned(shared, bytes) || (valid && misaligned(global, bytes))) fail("copy_async: misaligned address");
  const Copy copy{shared, global, bytes, valid};
  if (settings().schedule == Schedule::kRandom && random_number() % 2) return land(copy);  // it may be that fast
  race::write(shared, bytes);
  memset(shared, 0xFF, bytes);
  auto& groups = me()->copies;
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back(copy);
}

void copy_async_commit() {
  auto& groups = me()->copies;
  if (groups.empty()) groups.emplace_back();
  groups.emplace_back();
}

void copy_async_wait(unsigned pending) {
  auto& groups = me()->copies;
  while (groups.size() > pending + 1) {  // the last one is open
    for (const Copy& copy : groups.front()) land(copy);
    groups.erase(groups.begin());
  }
}

}  // namespace emulator
