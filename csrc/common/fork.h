// What a fork does to threads.
#pragma once

namespace adl {

// OpenMP keeps the threads of a team for the next one. They are gone in a forked child, where the thread
// that called fork would wait for them forever; threads made there know of none.
bool lost_its_team();

}  // namespace adl
