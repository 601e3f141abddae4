// Remembers in a forked child which thread came from the parent.
#include "common/fork.h"

#include <pthread.h>

namespace adl {
namespace {

thread_local bool lost = false;

[[maybe_unused]] const int kRegistered = pthread_atfork(nullptr, nullptr, [] { lost = true; });

}  // namespace

bool lost_its_team() { return lost; }

}  // namespace adl
