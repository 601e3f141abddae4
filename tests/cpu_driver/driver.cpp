// Every cell forward and backward without torch, for sanitizers: a few shapes, with one thread and with
// three. The bits must be the same and close to plain loops in double; with all that may be asked for besides, the same
// and written in full (what they should be, tests/recurrent/test_extras.py knows). -DADL_NUMBER=float or double,
// -DADL_FACTOR=float, double or BFloat16: what products multiply. "-DADL_CHECKED(_)=_(Lstm)": for these cells only.
#include <cstdio>
#include <cstdlib>

#include "recurrent/cpu/table.h"
#include "reference.h"

#ifndef ADL_CHECKED
#define ADL_CHECKED ADL_CELLS
#endif

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
  const Reals* exact;  // null: not known here
};

// What is asked for besides torch.nn's own.
enum Asked { kNothing, kExtras, kExtrasAndNorms };

template <class Cell>
std::vector<Output> compute(const Shape& shape, adl::Sequence s, const Arrays& a, Asked asked) {
  std::vector<std::vector<T>> inputs;
  inputs.reserve(32);
  const auto in = [&](const Reals& values) -> const T* {
    inputs.emplace_back(values.begin(), values.end());
    return values.empty() ? nullptr : inputs.back().data();
  };
  std::vector<Output> outputs;
  outputs.reserve(32);
  const auto out_of = [&](const char* name, int64_t size, const Reals* exact) -> T* {
    // The plain loops have one product a step.
    outputs.push_back({name, unwritten(size), asked == kNothing && !Cell::kResetsBefore ? exact : nullptr});
    return size == 0 ? nullptr : outputs.back().values.data();
  };
  const auto out = [&](const char* name, const Reals& exact) { return out_of(name, exact.size(), &exact); };
  const auto run = [](auto scratch, auto kernel, const auto& params) {
    std::vector<T> memory = unwritten((scratch(params) + sizeof(T) - 1) / sizeof(T));
    kernel(params, memory.data());
  };
  const adl::CellKernels<T> kernels = adl::entry<Cell, T, Factor>();
  constexpr int64_t U = adl::unit_block(Cell::kGates);
  const int64_t units = adl::blocks(shape.H, U) * U;
  const int64_t H = shape.H, P = shape.P, G = Cell::kGates;
  adl::Weights<T> weights{};
  weights.I = shape.I, weights.H = H, weights.P = P, weights.w_ih = in(a.w_ih), weights.w_hh = in(a.w_hh);
  weights.b_ih = in(a.b_ih), weights.b_hh = in(a.b_hh), weights.w_hr = in(a.w_hr);
  const bool projected = weights.w_hr, normed = asked == kExtrasAndNorms;

  adl::Forward<T> f{};
  std::vector<int64_t> places, order;
  std::vector<uint8_t> zones(s.N * std::max(H, P)), resets(s.N);
  if (asked != kNothing) {
    std::srand(2);
    for (int64_t row = s.N; row-- > 0;) places.push_back(row), resets[row] = std::rand() % 4 == 0;
    for (int64_t b = s.B; b-- > 0;) order.push_back(b);
    for (uint8_t& zone : zones) zone = std::rand() % 2;
    s.places = places.data(), s.order = order.data(), s.bptt_steps = 2;
    s.resets = reinterpret_cast<const bool*>(resets.data());
    f.extras.mask = in(random(s.B * P, 1));
    f.extras.zoneout = true, f.extras.zone_h = zones.data();
    f.extras.choice = {adl::Squash::kSigmoid, adl::Squash::kRelu};
    if (Cell::kHasC) f.extras.zone_c = zones.data(), f.all_c = out_of("all c", s.N * H, nullptr), f.c_stride = H;
    if (Cell::kPeepholes) weights.w_ch = in(random(Cell::kPeepholes * H, 1));
  }
  if (normed) {
    weights.ln_ih = in(random(G * H, 1)), weights.ln_hh = in(random(G * H, 1));
    if (Cell::kHasC) weights.ln_c = in(random(H, 1)), weights.ln_c_shift = in(random(H, 1));
  }
  f.sequence = s, f.weights = weights, f.x = in(a.x), f.h_0 = in(a.h_0), f.c_0 = in(a.c_0);
  f.y = out("y", a.y), f.y_stride = P, f.h_n = out("h_n", a.h_n), f.c_n = out("c_n", a.c_n);
  run(kernels.forward_scratch, kernels.forward, f);
  const std::vector<Output> inference = outputs;
  const bool saves_gates = Cell::kSavesGates || asked != kNothing;
  std::vector<T> gates = unwritten(saves_gates ? s.N * units * (normed ? 2 * G : Cell::kPre) : 0);
  std::vector<T> c = unwritten(Cell::kHasC ? s.N * units : 0), h_cell = unwritten(projected ? s.N * H : 0);
  if (saves_gates) f.gates = gates.data();
  if (Cell::kHasC) f.c = c.data();
  if (projected) f.h_cell = h_cell.data();
  run(kernels.forward_scratch, kernels.forward, f);

  adl::Backward<T> p{};
  p.sequence = s, p.weights = weights, p.extras = f.extras, p.x = f.x, p.h_0 = f.h_0, p.c_0 = f.c_0;
  p.kept_rows = s.N, p.y = f.y, p.y_stride = P, p.gates = f.gates, p.c = f.c, p.h_cell = f.h_cell;
  p.dy = in(a.dy), p.dh_n = in(a.dh_n), p.dc_n = in(a.dc_n);
  if (f.all_c) p.dall_c = in(random(s.N * H, 1)), p.c_stride = H;
  p.dx = out("dx", a.dx), p.dh_0 = out("dh_0", a.dh_0), p.dc_0 = out("dc_0", a.dc_0);
  p.dw_ih = out("dw_ih", a.dw_ih), p.dw_hh = out("dw_hh", a.dw_hh), p.dw_hr = out("dw_hr", a.dw_hr);
  p.db_ih = out("db_ih", a.db_ih), p.db_hh = out("db_hh", a.db_hh);
  if (weights.w_ch) p.dw_ch = out_of("dw_ch", Cell::kPeepholes * H, nullptr);
  if (normed) p.dln_ih = out_of("dln_ih", G * H, nullptr), p.dln_hh = out_of("dln_hh", G * H, nullptr);
  if (normed && Cell::kHasC) p.dln_c = out_of("dln_c", H, nullptr), p.dln_c_shift = out_of("dln_c_shift", H, nullptr);
  run(kernels.backward_scratch, kernels.backward, p);
  outputs.insert(outputs.end(), inference.begin(), inference.end());
  return outputs;
}

bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

bool written(const std::vector<T>& values) {
  for (T value : values)
    if (value != value) return false;
  return true;
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
  int wrong = 0;
  for (const Asked asked : {kNothing, kExtras, kExtrasAndNorms}) {
    s.threads = 1;
    const std::vector<Output> one = compute<Cell>(shape, s, arrays, asked);
    s.threads = 3;
    const std::vector<Output> three = compute<Cell>(shape, s, arrays, asked);
    for (size_t k = 0; k < one.size(); ++k) {
      const Output& found = one[k];
      const char* fault = found.exact && !close(found.values, *found.exact, kTolerance<Cell>) ? "is wrong"
                          : !written(found.values)                                            ? "is not written"
                          : !same_bits(found.values, three[k].values) ? "depends on the number of threads"
                                                                      : nullptr;
      if (fault)
        std::printf("%s, %s, asked for %d: %s %s\n", Cell::kName, shape.name, asked, found.name, fault), ++wrong;
    }
  }
  return wrong;
}

}  // namespace

int main() {
  int wrong = 0;
  for (const Shape& shape : kShapes) {
#define ADL_CHECK(Cell) wrong += check<adl::Cell>(shape);
    ADL_CHECKED(ADL_CHECK)
#undef ADL_CHECK
  }
  return wrong != 0;
}
