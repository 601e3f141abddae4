// What the emulator tells the race detector; nothing at all in a build without it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace emulator {

struct ThreadView;

namespace race {

#ifdef ADL_EMULATOR_RACE
void begin_launch();                        // all that happened before is ordered before it
std::string end_launch();                   // its first race; empty: there was none
void* make_thread(const ThreadView* view);  // until the next begin_launch()
void run_thread(void* thread);              // null: the host
void release(const void* tag);              // what the thread did so far is ordered before ...
void acquire(const void* tag);              // ... what it does after this
void forget(const void* tag);               // it will stand for something else
// By the running thread; `caller` is where in the kernel.
void read(const void* p, size_t bytes);
void write(const void* p, size_t bytes, const void* caller = nullptr);
void atomic_read(const void* p, size_t bytes, const void* caller);
// A store that lands later is ordered as its thread was when that departed. If a barrier counts it, it releases that to
// the tag; else it is atomic.
void* depart(const void* caller);
void arrive(void* departed, const void* p, size_t bytes, const uint64_t* barrier, const void* tag);
#else
inline void begin_launch() {}
inline std::string end_launch() { return {}; }
inline void* make_thread(const ThreadView*) { return nullptr; }
inline void run_thread(void*) {}
inline void release(const void*) {}
inline void acquire(const void*) {}
inline void read(const void*, size_t) {}
inline void write(const void*, size_t, const void* = nullptr) {}
inline void forget(const void*) {}
inline void atomic_read(const void*, size_t, const void*) {}
inline void* depart(const void*) { return nullptr; }
inline void arrive(void*, const void*, size_t, const uint64_t*, const void*) {}
#endif

}  // namespace race
}  // namespace emulator
