// What the programs that run kernels share: memory of the device, numbers to put there, and comparisons.
#pragma once

#include <cmath>
#include <cstdio>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/cuda/types.h"

namespace {

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

// Memory of the device, filled from a vector; null if that is empty.
template <class T>
class Array {
 public:
  explicit Array(const std::vector<T>& v) : n_(v.size()) {
    if (n_) check(cudaMalloc(&p_, n_ * sizeof(T)));
    store(v);
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { cudaFree(p_); }
  operator T*() const { return p_; }
  void store(const std::vector<T>& v) const {
    if (v.size() != n_) throw std::runtime_error("an array has another size");
    if (n_) check(cudaMemcpy(p_, v.data(), n_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  std::vector<T> host() const {
    std::vector<T> v(n_);
    if (n_) check(cudaMemcpy(v.data(), p_, n_ * sizeof(T), cudaMemcpyDeviceToHost));
    return v;
  }

 private:
  T* p_ = nullptr;
  size_t n_;
};

template <class T, class From>
std::vector<T> converted(const std::vector<From>& v) {
  std::vector<T> result;
  result.reserve(v.size());
  for (From x : v) result.push_back(static_cast<T>(static_cast<adl::Acc<T>>(static_cast<adl::Acc<From>>(x))));
  return result;
}

// One of the results of a check.
struct Result {
  const char* name;
  std::vector<double> got, expected;
};

int wrong = 0;

// One line: what is wrong in the first result that is.
inline void compare(const std::string& name, const std::vector<Result>& results, double tolerance = 0) {
  for (const auto& [part, got, expected] : results) {
    size_t bad = 0, first = 0;
    if (got.size() != expected.size()) throw std::runtime_error(name + ": results of different sizes");
    for (size_t i = 0; i < expected.size(); ++i) {
      // Infinity is equal to itself; NaN is wrong.
      if (got[i] == expected[i] || std::fabs(got[i] - expected[i]) <= tolerance) continue;
      if (bad++ == 0) first = i;
    }
    if (bad == 0) continue;
    ++wrong;
    printf("%s: %s%zu of %zu are WRONG, the first at %zu: %.9g, expected %.9g\n", name.c_str(), part, bad,
           expected.size(), first, got[first], expected[first]);
    return;
  }
  printf("%s: ok\n", name.c_str());
}

template <class T>
void compare(const std::string& name, const std::vector<T>& got, const std::vector<T>& expected) {
  compare(name, std::vector<Result>{{"", converted<double>(got), converted<double>(expected)}});
}

// The exit code of a program that is nothing but these checks.
template <class Checks>
int run_checks(Checks checks) {
  setvbuf(stdout, nullptr, _IOLBF, 0);  // what was said of a program that has to be stopped
  try {
    checks();
  } catch (const std::exception& error) {
    printf("%s\n", error.what());
    return 1;
  }
  return wrong != 0;
}

}  // namespace
