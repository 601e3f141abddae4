// A launch from begin to end: blocks are set up, their threads run, and what went wrong is thrown.
#include "cuda_on_cpu.h"

#include <cstdarg>
#include <cstdio>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "racecheck.h"
#include "runtime.h"

namespace emulator {

Launch current;

namespace {

void set_up(Block& block, unsigned index) {
  const LaunchShape& shape = current.shape;
  const dim3 grid = shape.grid, threads = shape.block;
  const unsigned n = threads.x * threads.y * threads.z;
  void* p = nullptr;
  if (posix_memalign(&p, 128, shape.shared_bytes)) throw std::bad_alloc();
  memset(p, 0xFF, shape.shared_bytes);  // NaN until written
  block.shared = static_cast<unsigned char*>(p);
  block.index = index;
  block.live = n;
  block.cluster = index / shape.cluster;
  block.rank = index % shape.cluster;
  block.threads.resize(n);
  block.warps.resize((n + 31) / 32);
  for (Warp& warp : block.warps) warp.priority = random_number();
  for (unsigned i = 0; i < n; ++i) {
    Thread& t = block.threads[i];
    t.thread = uint3{i % threads.x, i / threads.x % threads.y, i / threads.x / threads.y};
    t.ThreadView::block = uint3{index % grid.x, index / grid.x % grid.y, index / grid.x / grid.y};
    t.lane = i % 32;
    t.in_block = i;
    t.block_threads = n;
    t.block_index = index;
    t.cluster_rank = block.rank;
    t.shared = block.shared;
    t.warp = &block.warps[i / 32];
    t.warp->exists |= 1u << t.lane;
    t.in = &block;
    t.race = race::make_thread(&t);
  }
}

void tear_down(Block& block) {
  for (auto& [key, array] : block.arrays) free(array.data);
  free(block.shared);
}

// Blocks of a cluster see each other's shared memory, but neither before the owner has started nor after it
// has ended: then it is NaN, and a write to it is a race.
void wipe_shared(Block& block) {
  const auto wipe = [](unsigned char* p, size_t bytes) {
    race::write(p, bytes);
    memset(p, 0xFF, bytes);
  };
  wipe(block.shared, current.shape.shared_bytes);
  for (auto& [key, array] : block.arrays) wipe(array.data, array.bytes);
}

void begin_thread() {
  me()->site.what = "running";
  if (current.shape.cluster == 1) return;
  Block& block = *me()->in;
  if (!block.started) {
    block.started = true;
    wipe_shared(block);
    race::release(&block.started);
  }
  race::acquire(&block.started);
}

void end_thread() {
  Thread* t = me();
  Block& block = *t->in;
  for (const auto& group : t->copies)
    if (!group.empty()) fail("a thread ended with a copy_async under way");
  for (const Meeting* m : t->warp->meetings)
    if (!m->complete() && (m->mask >> t->lane & 1))
      fail("a thread has exited, but %s at line %d waits for its lane", m->site.what, m->site.line);
  if (!current.grid.waiting.empty()) fail("a thread has exited, but others wait for it at a grid barrier");
  t->done = true;
  t->warp->exited |= 1u << t->lane;
  --current.live;
  --block.live;
  if (block.live == 0) no_stores_to(block);
  if (current.shape.cluster > 1) {
    race::release(&block.live);
    race::acquire(&block.live);
    if (block.live == 0) wipe_shared(block);
  }
  // CUDA's wait for the threads that have not exited.
  open_if_full(block.barrier, block.live);
  Barrier& cluster = current.clusters[block.cluster];
  if (!cluster.waiting.empty()) open_if_full(cluster, live_in(block.cluster));
}

// The error of a launch that CUDA would not begin; what no launcher should ask for is thrown.
int check(const LaunchShape& shape, const Allowed& allowed) {
  const auto& [grid, block, shared_bytes, cooperative, cluster] = shape;
  const size_t threads = size_t{block.x} * block.y * block.z, blocks = size_t{grid.x} * grid.y * grid.z;
  if (threads == 0 || threads > 1024 || block.z > 64) fail("blocks of %u x %u x %u threads", block.x, block.y, block.z);
  if (blocks == 0 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
    fail("a grid of %u x %u x %u blocks", grid.x, grid.y, grid.z);
  if (shared_bytes > (allowed.dynamic_bytes ? allowed.dynamic_bytes : kStaticSharedBytes)) return cudaErrorInvalidValue;
  if (cluster == 0 || cluster > (allowed.large_clusters ? 16 : 8)) fail("clusters of %u blocks", cluster);
  if (grid.x % cluster) fail("%u blocks are not a multiple of the cluster's %u", grid.x, cluster);
  const size_t fit = size_t{cluster} * active_clusters(cluster, static_cast<unsigned>(threads), shared_bytes);
  if (fit == 0) fail("clusters of %u such blocks fit nowhere", cluster);
  if (cooperative && (blocks > fit || settings().refuse_cooperative)) return cudaErrorCooperativeLaunchTooLarge;
  return settings().refuse_all ? cudaErrorInvalidConfiguration : cudaSuccess;
}

// The clusters of the grid, in the order in which they start.
std::vector<unsigned> cluster_order(size_t clusters) {
  std::vector<unsigned> order(clusters);
  for (unsigned i = 0; i < clusters; ++i) order[i] = i;
  if (settings().schedule == Schedule::kLifo) std::reverse(order.begin(), order.end());
  if (settings().schedule == Schedule::kRandom)
    for (size_t i = clusters; i > 1; --i) std::swap(order[i - 1], order[random_number() % i]);
  return order;
}

}  // namespace

unsigned multiprocessors() {
  update_settings();
  return settings().multiprocessors;
}

unsigned blocks_per_multiprocessor(unsigned threads, size_t shared_bytes) {
  const unsigned warps = (threads + 31) / 32;
  const size_t by_memory = (kSharedBytes + 1024) / (shared_bytes + 1024);  // the system takes 1 KiB of each block
  return static_cast<unsigned>(std::min<size_t>({32, 64 / warps, by_memory}));
}

// The blocks of a cluster run in one group of multiprocessors, of which some are larger than others.
unsigned active_clusters(unsigned size, unsigned threads, size_t shared_bytes) {
  constexpr unsigned kGroup = 17;  // 132: clusters of 8 and 16 fit as often as on an H200
  const unsigned each = blocks_per_multiprocessor(threads, shared_bytes), all = multiprocessors();
  if (size == 1) return all * each;
  if (size > 16) return 0;
  return all / kGroup * (kGroup * each / size) + all % kGroup * each / size;
}

void fail(const char* format, ...) {
  char text[512], thread[128];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  if (!self) throw std::runtime_error(std::string("cuda_on_cpu: ") + text);
  snprintf(thread, sizeof thread, " [block (%u,%u,%u) thread (%u,%u,%u)]", self->block.x, self->block.y, self->block.z,
           self->thread.x, self->thread.y, self->thread.z);
  current.error = std::string("cuda_on_cpu: ") + text + thread + who_waits();
  Fiber* fiber = me()->fiber;
  become(nullptr);
  switch_fiber(fiber, &host_fiber);  // for good
  abort();
}

void run_threads() {
  for (;;) {
    Fiber* fiber = me()->fiber;
    begin_thread();
    (*current.body)();
    end_thread();
    Thread* next = next_ready();
    if (!next && current.live) fail("deadlock: the last thread that could run has exited");
    if (next && !next->fiber) {  // takes over this fiber
      next->fiber = fiber;
      next->stack = fiber->stack;
      become(next);
    } else {
      put_fiber(fiber);
      become(next);
      switch_fiber(fiber, next ? next->fiber : &host_fiber);
    }
  }
}

int& last_error() {
  static thread_local int error = 0;
  return error;
}

Allowed& allowed(const void* kernel) {
  static std::unordered_map<const void*, Allowed> kernels;
  return kernels[kernel];
}

int run(const void* kernel, const LaunchShape& shape, const std::function<void()>& body) {
  if (self) fail("a launch from a kernel");
  if (const int error = std::exchange(last_error(), 0))
    fail("error %d was left behind when this was launched: %s", error, name_of(kernel).c_str());
  static std::mutex one_launch;
  const std::lock_guard<std::mutex> lock(one_launch);
  update_settings();
  if (const int error = check(shape, allowed(kernel))) return error;
  const size_t threads = size_t{shape.block.x} * shape.block.y * shape.block.z;
  const size_t blocks = size_t{shape.grid.x} * shape.grid.y * shape.grid.z;
  count_launch(kernel, blocks * threads);
  const std::vector<unsigned> order = cluster_order(blocks / shape.cluster);
#ifdef ADL_EMULATOR_RACE
  const size_t at_once = blocks;  // nothing must order one block after another
#else
  const size_t wanted = shape.cooperative ? blocks : std::min<size_t>(settings().resident, blocks);
  const size_t at_once = (wanted + shape.cluster - 1) / shape.cluster * shape.cluster;
#endif
  blockDim = shape.block;
  gridDim = shape.grid;
  race::begin_launch();
  begin_host();
  for (size_t begin = 0; begin < blocks; begin += at_once) {
    const size_t count = std::min(at_once, blocks - begin);
    current = Launch{shape, allowed(kernel), &body, std::vector<Block>(count), std::vector<Barrier>(order.size())};
    current.live = static_cast<unsigned>(count * threads);
    begin_schedule(count * threads);
    for (size_t i = 0; i < count; ++i) {
      const size_t at = begin + i;
      set_up(current.blocks[i], static_cast<unsigned>(order[at / shape.cluster] * shape.cluster + at % shape.cluster));
    }
    for (Block& block : current.blocks)
      for (Thread& thread : block.threads) make_ready(&thread);
    resume(next_ready());
    for (Block& block : current.blocks) tear_down(block);
    current.blocks.clear();
    if (current.error.empty()) current.error = race::end_launch();
    if (!current.error.empty()) throw std::runtime_error(current.error);
  }
  return cudaSuccess;
}

}  // namespace emulator
