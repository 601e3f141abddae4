// Every cell forward and backward without torch, for sanitizers: a few shapes, with one thread and with
// three. The bits must be the same and close to plain loops in double. -DADL_NUMBER=float or double,
// -DADL_FACTOR=float, double or BFloat16: what products multiply.
#include <cstdio>
#include <cstdlib>

#include "cpu/table.h"
#include "reference.h"

namespace {

using adl::BFloat16;
using T = ADL_NUMBER;
using Factor = ADL_FACTOR;
// Relative to the largest value. In bfloat16 a ReLU's sign may turn, and takes all that hangs on it along.
template <class Cell>
constexpr double kTolerance = sizeof(Factor) == 8                  ? 1e-13
                              : sizeof(Factor) == 4                ? 1e-5
                              : std::is_same_v<Cell, adl::RnnRelu> ? 0.5
                                                                   : 0.05;

struct Shape {
  const char* name;
  std::vector<int64_t> batch_sizes;
  int64_t I, H, P;
  bool reverse = false;
};

const Shape kShapes[] = {
    {"units split", {5, 5, 5, 5}, 30, 140, 140},
    {"units split, packed, reverse", {9, 8, 8, 2, 1}, 70, 65, 65, true},
    {"units split, projection", {7, 7, 3}, 20, 50, 70},
    {"rows split", {25, 25, 25, 25, 25, 25}, 20, 33, 33},
    {"rows split, packed, reverse", {40, 31, 12, 12, 1}, 9, 20, 20, true},
    {"rows split, projection", {26, 26, 24}, 9, 40, 7},
    {"few rows", {1, 1, 1}, 70, 130, 130},
    {"few rows, packed, projection, reverse", {4, 2, 1}, 5, 40, 66, true},
    {"few rows, less units than threads", {2, 2}, 3, 2, 2},
};

Reals random(int64_t count, double scale) {
  Reals out(count);
  for (double& value : out) value = T(scale * (2.0 * std::rand() / RAND_MAX - 1));
  return out;
}

template <class Cell>
Arrays arguments(const Shape& shape, const adl::Sequence& s) {
  const int64_t I = shape.I, H = shape.H, P = shape.P, G = Cell::kGates;
  const int64_t C = Cell::kHasC ? s.B * H : 0, R = P == H ? 0 : P * H;
  const double scale = 1 / std::sqrt(double(H));
  Arrays a;
  a.x = random(s.N * I, 1), a.h_0 = random(s.B * P, 1), a.c_0 = random(C, 1);
  a.w_ih = random(G * H * I, scale), a.w_hh = random(G * H * P, scale), a.w_hr = random(R, scale);
  a.b_ih = random(G * H, 1), a.b_hh = random(G * H, 1);
  a.dy = random(s.N * P, 1), a.dh_n = random(s.B * P, 1), a.dc_n = random(C, 1);
  a.y.resize(s.N * P), a.h_n.resize(s.B * P), a.c_n.resize(C);
  a.dx.resize(s.N * I), a.dh_0.resize(s.B * P), a.dc_0.resize(C);
  a.dw_ih.resize(G * H * I), a.dw_hh.resize(G * H * P), a.dw_hr.resize(R);
  a.db_ih.resize(G * H), a.db_hh.resize(G * H);
  return a;
}

// What is not written is a NaN, and one past the end belongs to nobody.
std::vector<T> unwritten(int64_t count) { return std::vector<T>(count, T(NAN)); }

struct Output {
  const char* name;
  std::vector<T> values;
  const Reals* exact;
};

template <class Cell>
std::vector<Output> compute(const Shape& shape, const adl::Sequence& s, const Arrays& a) {
  std::vector<std::vector<T>> inputs;
  inputs.reserve(16);
  const auto in = [&](const Reals& values) -> const T* {
    inputs.emplace_back(values.begin(), values.end());
    return values.empty() ? nullptr : inputs.back().data();
  };
  std::vector<Output> outputs;
  outputs.reserve(16);
  const auto out = [&](const char* name, const Reals& exact) -> T* {
    outputs.push_back({name, unwritten(exact.size()), &exact});
    return exact.empty() ? nullptr : outputs.back().values.data();
  };
  const auto run = [](auto scratch, auto kernel, const auto& params) {
    std::vector<T> memory = unwritten((scratch(params) + sizeof(T) - 1) / sizeof(T));
    kernel(params, memory.data());
  };
  const adl::CellKernels<T> kernels = adl::entry<Cell, T, Factor>();
  constexpr int64_t U = adl::unit_block(Cell::kGates);
  const int64_t units = adl::blocks(shape.H, U) * U;
  const adl::Weights<T> weights{shape.I, shape.H, shape.P, in(a.w_ih), in(a.w_hh), in(a.b_ih), in(a.b_hh), in(a.w_hr)};
  const T *x = in(a.x), *h_0 = in(a.h_0), *c_0 = in(a.c_0);
  const bool projected = weights.w_hr;

  adl::Forward<T> f{s, weights, x, h_0, c_0, out("y", a.y), shape.P, out("h_n", a.h_n), out("c_n", a.c_n)};
  run(kernels.forward_scratch, kernels.forward, f);
  const std::vector<Output> inference = outputs;
  std::vector<T> gates = unwritten(Cell::kSavesGates ? s.N * units * Cell::kPre : 0);
  std::vector<T> c = unwritten(Cell::kHasC ? s.N * units : 0), h_cell = unwritten(projected ? s.N * shape.H : 0);
  if (Cell::kSavesGates) f.gates = gates.data();
  if (Cell::kHasC) f.c = c.data();
  if (projected) f.h_cell = h_cell.data();
  run(kernels.forward_scratch, kernels.forward, f);

  adl::Backward<T> p{s, weights, x, h_0, c_0, f.y, f.gates, f.c, f.h_cell, in(a.dy), shape.P, in(a.dh_n), in(a.dc_n)};
  p.dx = out("dx", a.dx), p.dh_0 = out("dh_0", a.dh_0), p.dc_0 = out("dc_0", a.dc_0);
  p.dw_ih = out("dw_ih", a.dw_ih), p.dw_hh = out("dw_hh", a.dw_hh), p.dw_hr = out("dw_hr", a.dw_hr);
  p.db_ih = out("db_ih", a.db_ih), p.db_hh = out("db_hh", a.db_hh);
  run(kernels.backward_scratch, kernels.backward, p);
  outputs.insert(outputs.end(), inference.begin(), inference.end());
  return outputs;
}

bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

bool close(const std::vector<T>& values, const Reals& exact, double tolerance) {
  double largest = 0;
  for (double value : exact) largest = std::max(largest, std::abs(value));
  for (size_t k = 0; k < exact.size(); ++k)
    if (!(std::abs(values[k] - exact[k]) <= tolerance * largest)) return false;  // nor a NaN
  return true;
}

template <class Cell>
int check(const Shape& shape) {
  if (shape.P != shape.H && !Cell::kHasC) return 0;  // only the LSTM can be projected
  std::vector<int64_t> offsets{0};
  for (int64_t size : shape.batch_sizes) offsets.push_back(offsets.back() + size);
  adl::Sequence s{int64_t(shape.batch_sizes.size()),
                  shape.batch_sizes[0],
                  offsets.back(),
                  shape.batch_sizes.data(),
                  offsets.data(),
                  shape.reverse,
                  1};
  Arrays arrays = arguments<Cell>(shape, s);
  reference<Cell>(s, shape.I, shape.H, shape.P, arrays);
  const std::vector<Output> one = compute<Cell>(shape, s, arrays);
  s.threads = 3;
  const std::vector<Output> three = compute<Cell>(shape, s, arrays);
  int wrong = 0;
  for (size_t k = 0; k < one.size(); ++k) {
    const char* fault = !close(one[k].values, *one[k].exact, kTolerance<Cell>) ? "is wrong"
                        : !same_bits(one[k].values, three[k].values)           ? "depends on the number of threads"
                                                                               : nullptr;
    if (fault) std::printf("%s, %s: %s %s\n", Cell::kName, shape.name, one[k].name, fault), ++wrong;
  }
  return wrong;
}

}  // namespace

int main() {
  int wrong = 0;
  for (const Shape& shape : kShapes) {
#define ADL_CHECK(Cell) wrong += check<adl::Cell>(shape);
    ADL_CELLS(ADL_CHECK)
#undef ADL_CHECK
  }
  return wrong != 0;
}
