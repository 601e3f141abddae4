// Scans of the recurrent kernels beside the same in double, for the programs that check them. Needs no torch.
#pragma once

#include <cstring>
#include <deque>

#include "checks.h"
#include "recurrent/cuda/kernels.h"
#include "reference.h"

namespace {

using adl::Acc;
using adl::BackwardScan;
using adl::BFloat;
using adl::Directions;
using adl::ForwardScan;
using adl::Gru;
using adl::Half;
using adl::Lstm;
using adl::RnnTanh;
using adl::StepExtras;
using adl::Steps;

// Few multiprocessors, so that small batches fill them and blocks get several sequences.
constexpr adl::Gpu kGpu{4, 227 * 1024};
constexpr cudaStream_t kStream = nullptr;
constexpr int64_t kPadding = 8;  // between rows of y

template <class T>
struct Type;
template <>
struct Type<double> {
  static constexpr const char* kName = "f64";
  static constexpr double kError = 1e-12;
};
template <>
struct Type<float> {
  static constexpr const char* kName = "f32";
  static constexpr double kError = 1e-5;
};
template <>
struct Type<BFloat> {
  static constexpr const char* kName = "bf16";
  static constexpr double kError = 2e-2;
};
template <>
struct Type<Half> {
  static constexpr const char* kName = "f16";
  static constexpr double kError = 3e-3;
};
constexpr double kTf32Error = 3e-3;

template <class T>
double round_to(double x) {
  return static_cast<Acc<T>>(static_cast<T>(static_cast<Acc<T>>(x)));
}

// Where what backward needs is kept.
enum class Save { kNothing, kBeside, kInPlace };

struct Case {
  Sizes sizes;
  int directions = 1;
  Save save = Save::kBeside;
  bool tf32 = false, halves = false;  // in two launches
};

template <class Cell, class T>
const adl::cuda::CellKernels<T>& kernels_of() {
  return adl::cuda::kernels<T>().cells[adl::index_of<Cell>()];
}

template <class Cell, class T>
std::string name_of(const char* what, const Case& k) {
  const Sizes& s = k.sizes;
  std::string name = std::string(Cell::kName) + " " + what + " " + (k.tf32 ? "tf32" : Type<T>::kName);
  for (const auto& [letter, size] : {std::pair{" T", s.T}, {" B", s.B}, {" H", s.H}, {" D", int64_t(k.directions)}})
    name += letter + std::to_string(size);
  if (!s.counts.empty()) name += " packed";
  if (k.halves) name += " halves";
  return name + (k.save == Save::kNothing ? " inference" : k.save == Save::kInPlace ? " in place" : "");
}

// NaN, and what a grid takes for words that nobody has stored.
template <class T>
std::vector<T> nothing(int64_t n) {
  std::vector<T> v(n);
  if (n) std::memset(static_cast<void*>(v.data()), 0xff, n * sizeof(T));
  return v;
}

// Rows of mail for H numbers: those that nobody stores are zero.
template <class T>
std::vector<T> cleared_mail(int64_t H, int64_t width, int64_t rows) {
  std::vector<T> v = nothing<T>(rows * width);
  const int64_t stored = (H * sizeof(T) + 3) / 4 * 4 / sizeof(T);
  for (int64_t i = 0; i < rows * width; ++i)
    if (i % width >= stored) v[i] = static_cast<T>(0.0f);
  return v;
}

// Rows of `width`, with NaN between them.
Doubles spread(const Doubles& v, int64_t width, int64_t stride) {
  Doubles out(v.size() / width * stride, NAN);
  for (size_t i = 0; i < v.size(); ++i) out[i / width * stride + i % width] = v[i];
  return out;
}

template <class T>
Doubles gathered(const Array<T>& v, int64_t width, int64_t stride) {
  const Doubles all = converted<double>(v.host());
  Doubles out;
  for (size_t i = 0; i < all.size(); ++i)
    if (static_cast<int64_t>(i) % stride < width) out.push_back(all[i]);
  return out;
}

// The offsets on the device; none where every step has all sequences.
struct Offsets : Array<int64_t> {
  explicit Offsets(const Sizes& s) : Array(std::vector<int64_t>(s.counts.empty() ? 0 : s.T + 1, -1)) {
    if (!s.counts.empty()) check(adl::cuda::store_numbers(s.offsets().data(), s.T + 1, *this, kStream));
  }
};

template <class Cell, class T>
struct Forward {
  using A = Acc<T>;
  static constexpr int G = Cell::kGates, P = Cell::kPre;
  static constexpr bool kExact = std::is_same_v<A, T>;

  const Reference<Cell> r;
  const int64_t H = r.s.H, N = r.s.N(), y_stride = H + kPadding;
  const Save save;
  const int64_t gx_stride = (save == Save::kInPlace ? P : G) * H;
  const Offsets offsets{r.s};
  const Array<T> w_hh{converted<T>(r.w_hh)}, b_ih{converted<T>(r.b_ih)}, b_hh{converted<T>(r.b_hh)};
  const Array<A> h{converted<A>(r.h_0)}, c{converted<A>(r.c_0)}, gx{std::vector<A>(N * gx_stride, A(NAN))};
  const Array<T> h_0{converted<T>(r.h_0)}, c_0{converted<T>(r.c_0)}, h_rounded{converted<T>(r.h_0)};
  const Array<T> h_n{nothing<T>(r.h_0.size())}, c_n{nothing<T>(r.c_0.size())}, y{nothing<T>(N * y_stride)};
  const int64_t unit = 16 / sizeof(T), mail_width = (H + unit - 1) / unit * unit;
  const Array<T> mail{cleared_mail<T>(H, mail_width, mail_width == H ? 0 : N)};
  const Array<T> gates{nothing<T>(Cell::kSavesGates && save == Save::kBeside ? N * P * H : 0)};
  const Array<T> kept_c{nothing<T>(Cell::kHasC && save != Save::kNothing ? N * H : 0)};

  Forward(const Case& k, bool reverse, unsigned seed) : r(k.sizes, reverse, round_to<T>, seed), save(k.save) {}

  // gx of these steps alone, at the beginning of its memory unless the gates come there.
  ForwardScan<T> scan(int64_t begin, int64_t end, bool block) const {
    const auto [first, last] = r.rows(begin, end);
    const int64_t at = save == Save::kInPlace ? 0 : first;
    std::vector<A> v = gx.host();
    for (int64_t i = first * G * H; i < last * G * H; ++i)
      v[(i / (G * H) - at) * gx_stride + i % (G * H)] = static_cast<A>(r.gx[i]);
    gx.store(v);
    T* kept = gates;
    if constexpr (kExact)
      if (save == Save::kInPlace) kept = gx;
    const Steps steps{r.s.T, r.s.B, offsets, r.reverse, begin, end};
    return {.steps = steps,
            .H = H,
            .w_hh = w_hh,
            .b_ih = b_ih,
            .b_hh = b_hh,
            .h_0 = h_0,
            .c_0 = c_0,
            .gx = gx,
            .gx_stride = gx_stride,
            .gx_first = at,
            .h = h,
            .c = c,
            .h_n = h_n,
            .c_n = c_n,
            .h_rounded = kExact || block ? nullptr : +h_rounded,
            .y = y,
            .y_stride = y_stride,
            .mail = mail_width == H ? +y : +mail,
            .mail_stride = mail_width == H ? y_stride : mail_width,
            .gates = kept,
            .kept_c = kept_c,
            .choice = {},
            .w_ch = nullptr};
  }

  std::vector<Result> results() const {
    std::vector<Result> all{{"y: ", gathered(y, H, y_stride), r.y},
                            {"h_n: ", converted<double>(h_n.host()), r.h_n},
                            {"c_n: ", converted<double>(c_n.host()), r.c_n}};
    if (save == Save::kNothing) return all;
    if (Cell::kHasC) all.push_back({"c: ", converted<double>(kept_c.host()), r.c});
    if (Cell::kSavesGates)
      all.push_back(
          {"gates: ", converted<double>(save == Save::kInPlace ? converted<T>(gx.host()) : gates.host()), r.gates});
    return all;
  }
};

template <class Cell, class T>
struct Backward {
  using A = Acc<T>;

  const Reference<Cell> r;
  const int64_t H = r.s.H, N = r.s.N(), y_stride = H + kPadding;
  const Offsets offsets{r.s};
  const Array<T> w_hh{converted<T>(r.w_hh)}, h_0{converted<T>(r.h_0)}, c_0{converted<T>(r.c_0)};
  const Array<T> y{converted<T>(spread(r.y, H, y_stride))}, dy{converted<T>(spread(r.dy, H, y_stride))};
  const Array<T> gates{converted<T>(Cell::kSavesGates ? r.gates : Doubles())}, kept_c{converted<T>(r.c)};
  const Array<T> dh_n{converted<T>(r.dh_n)}, dc_n{converted<T>(r.dc_n)};
  const Array<T> dh_0{nothing<T>(r.dh_n.size())}, dc_0{nothing<T>(r.dc_n.size())};
  const Array<A> dh{converted<A>(r.dh_n)}, dc{converted<A>(r.dc_n)};
  const Array<T> dgates{nothing<T>(r.dgates.size())};
  const int64_t unit = 16 / sizeof(T), mail_width = (H + unit - 1) / unit * unit;
  const Array<T> mail{cleared_mail<T>(H, mail_width, mail_width == H ? 0 : N * Cell::kPre)};

  Backward(const Case& k, bool reverse, unsigned seed) : r(k.sizes, reverse, round_to<T>, seed) {}

  BackwardScan<T> scan() const {
    const Steps steps{r.s.T, r.s.B, offsets, r.reverse, 0, r.s.T};
    return {.steps = steps,
            .H = H,
            .w_hh = w_hh,
            .h_0 = h_0,
            .c_0 = c_0,
            .y = y,
            .y_stride = y_stride,
            .gates = gates,
            .kept_c = kept_c,
            .dy = dy,
            .dh_n = dh_n,
            .dc_n = dc_n,
            .dh_0 = dh_0,
            .dc_0 = dc_0,
            .dh = dh,
            .dc = dc,
            .dgates = dgates,
            .mail = mail_width == H ? +dgates : +mail,
            .mail_width = mail_width,
            .choice = {},
            .w_ch = nullptr,
            .dw_ch = nullptr};
  }

  std::vector<Result> results() const {
    return {{"dgates: ", converted<double>(dgates.host()), r.dgates},
            {"dh_0: ", converted<double>(dh_0.host()), r.dh_0},
            {"dc_0: ", converted<double>(dc_0.host()), r.dc_0}};
  }
};

// Gradients grow with every step, so errors are measured by the largest value.
void compare_all(const std::string& name, const std::vector<Result>& results, double error) {
  double largest = 1;
  for (const Result& one : results)
    for (double x : one.expected) largest = std::max(largest, std::fabs(x));
  compare(name, results, error * largest);
}

template <class Direction>
std::deque<Direction> directions_of(const Case& k) {
  std::deque<Direction> all;
  for (int d = 0; d < k.directions; ++d) all.emplace_back(k, d == 1, 7 + d);
  return all;
}

template <class Direction>
std::vector<Result> results_of(const std::deque<Direction>& directions) {
  std::vector<Result> all;
  for (const Direction& d : directions)
    for (Result& one : d.results()) all.push_back(std::move(one));
  return all;
}

}  // namespace
