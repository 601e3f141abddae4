// How often each kernel was launched, and with how many threads: the tests ask for it.
#include <cxxabi.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "runtime.h"

namespace emulator {

namespace {

struct Count {
  uint64_t launches = 0, threads = 0;
};

struct Log {
  std::map<const void*, Count> counts;
  std::map<const void*, std::string> names;  // asked for while the library is still there

  ~Log() {
    const char* path = getenv("ADL_EMULATOR_LOG");
    if (!path) return;
    std::string lines;
    for (const auto& [kernel, count] : counts)
      lines += std::to_string(count.launches) + "\t" + std::to_string(count.threads) + "\t" + names[kernel] + "\n";
    // One write, so that the lines of several processes do not mix.
    const int file = open(path, O_WRONLY | O_APPEND | O_CREAT, 0644);
    if (file < 0 || write(file, lines.data(), lines.size()) < 0) perror(path);
    if (file >= 0) close(file);
  }
} log;

}  // namespace

std::string name_of(const void* kernel) {
  Dl_info info;
  if (!dladdr(kernel, &info) || !info.dli_sname || info.dli_saddr != kernel) return "a kernel without a symbol";
  int status;
  char* readable = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status);
  const std::string name = readable ? readable : info.dli_sname;
  free(readable);
  return name;
}

void count_launch(const void* kernel, uint64_t threads) {
  Count& count = log.counts[kernel];
  if (!count.launches++) log.names[kernel] = name_of(kernel);
  count.threads += threads;
}

}  // namespace emulator
