// What the calibrating programs share: a line of JSON for every figure, and kernels that time their own steps.
//
// Predictions are of the model of an H200 (docs/cuda_tiers.md); on other GPUs they are left out.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "ptx.cuh"

namespace calibrate {

constexpr double kCyclesPerMicrosecond = 1980;

// ---- the device at hand

struct Device {
  int capability = 0, multiprocessors = 0, shared_bytes = 0;
  Device() {
    int major = 0, minor = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0);
    cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0);
    cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
    capability = 10 * major + minor;
  }
};

inline const Device& device() {
  static const Device found;
  return found;
}

// ---- lines

struct Figure {
  double value = NAN, predicted = NAN, cycles = NAN;
  std::string note;  // what went wrong, or "not on this GPU"
};

inline int failures = 0;

inline std::string number(double x) {
  char text[32];
  snprintf(text, sizeof text, "%.6g", x);
  return std::isfinite(x) ? text : "null";
}

inline void line(const std::string& name, const char* unit, const Figure& figure) {
  const double predicted = device().capability == 90 ? figure.predicted : NAN;
  std::string note = figure.note, cycles;
  std::replace(note.begin(), note.end(), '"', '\'');
  if (!note.empty()) note = ", \"note\": \"" + note + "\"";
  if (std::isfinite(figure.cycles)) cycles = ", \"cycles\": " + number(figure.cycles);
  printf("{\"name\": \"%s\", \"value\": %s, \"unit\": \"%s\", \"predicted\": %s%s%s}\n", name.c_str(),
         number(figure.value).c_str(), unit, number(predicted).c_str(), cycles.c_str(), note.c_str());
  fflush(stdout);
}

inline Figure absent() { return {NAN, NAN, NAN, "not on this GPU"}; }

inline Figure failed(const std::string& why) {
  ++failures;
  return {NAN, NAN, NAN, "FAILED: " + why};
}

// ---- time, taken inside a kernel

struct Times {
  long long cycles = 0, ns = 0;  // of the timed steps, in one thread
  unsigned late = 0, wrong = 0;  // threads that gave up waiting; that have got something else than was sent
};

// In every thread; one of them writes down the time between start and stop.
struct Stopwatch {
  long long cycles = 0, ns = 0;
  __device__ __forceinline__ void start() { ns = nanoseconds_now(), cycles = cycles_now(); }
  __device__ __forceinline__ void stop(Times* times) const {
    if (blockIdx.x + threadIdx.x != 0) return;
    times->cycles = cycles_now() - cycles;
    times->ns = nanoseconds_now() - ns;
  }
};

__device__ __forceinline__ void judge(Times* times, bool late, bool wrong) {
  if (late) atomicAdd(&times->late, 1u);
  if (!late && wrong) atomicAdd(&times->wrong, 1u);
}

#ifdef ADL_CUDA_ON_CPU
constexpr int kRounds = 1;  // time stands for nothing there
#else
constexpr int kRounds = 4;
#endif

using Launch = std::function<cudaError_t(Times*)>;

// The fastest of some launches; `prepare` comes before each.
inline Times fastest(const Launch& run, std::string& problem, const std::function<void()>& prepare = [] {}) {
  Times best, *times = nullptr;
  cudaError_t error = cudaMalloc(&times, sizeof *times);
  for (int round = 0; round < kRounds && error == cudaSuccess; ++round) {
    Times now;
    prepare();
    error = cudaMemcpy(times, &now, sizeof now, cudaMemcpyHostToDevice);
    if (error == cudaSuccess) error = run(times);
    if (error == cudaSuccess) error = cudaDeviceSynchronize();
    if (error == cudaSuccess) error = cudaMemcpy(&now, times, sizeof now, cudaMemcpyDeviceToHost);
    if (error != cudaSuccess) break;
    if (now.late) problem = std::to_string(now.late) + " threads waited in vain";
    if (now.wrong) problem = std::to_string(now.wrong) + " threads have got something wrong";
    if (!problem.empty()) break;
    if (round == 0 || now.cycles < best.cycles) best = now;
  }
  if (error != cudaSuccess) problem = cudaGetErrorString(error);
  cudaGetLastError();  // forget it, if it can be forgotten
  cudaFree(times);
  return best;
}

// Microseconds for each of the steps that were timed.
inline Figure per_step(const Launch& run, int steps, double predicted, const std::function<void()>& prepare = [] {}) {
  std::string problem;
  const Times times = fastest(run, problem, prepare);
  if (!problem.empty()) return failed(problem);
  return {times.ns * 1e-3 / steps, predicted, static_cast<double>(times.cycles) / steps, ""};
}

// The slope of a line through the points, x by y: bytes per cycle, from bytes and cycles.
inline double slope(const std::vector<double>& y, const std::vector<double>& x) {
  double mx = 0, my = 0, xx = 0, xy = 0;
  for (size_t i = 0; i < x.size(); ++i) mx += x[i] / x.size(), my += y[i] / y.size();
  for (size_t i = 0; i < x.size(); ++i) xx += (x[i] - mx) * (x[i] - mx), xy += (x[i] - mx) * (y[i] - my);
  return x.size() > 1 ? xy / xx : NAN;
}

}  // namespace calibrate
