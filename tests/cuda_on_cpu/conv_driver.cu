// Runs the kernels of the depthwise convolutions, through the launchers that the ops use, and compares them with plain
// loops in double: one line per check, exit code 1 if one is wrong. Needs no torch.
#include "checks.h"
#include "depthwise/cuda/kernels.h"

namespace {

using adl::Acc;
using adl::Activation;
using adl::BFloat;
using adl::Conv;
using adl::Half;

using Doubles = std::vector<double>;

constexpr cudaStream_t kStream = nullptr;
// So few multiprocessors and so little shared memory that blocks have several tiles and not all channels fit.
constexpr adl::Gpu kGpu{1, 4 * 1024};

template <class T>
struct Type;
template <>
struct Type<double> {
  static constexpr const char* kName = "f64";
  static constexpr double kError = 1e-13;
};
template <>
struct Type<float> {
  static constexpr const char* kName = "f32";
  static constexpr double kError = 1e-5;
};
template <>
struct Type<BFloat> {
  static constexpr const char* kName = "bf16";
  static constexpr double kError = 1e-2;
};
template <>
struct Type<Half> {
  static constexpr const char* kName = "f16";
  static constexpr double kError = 2e-3;
};

// Small numbers that every type has exactly.
template <class T>
Doubles numbers(int64_t n, unsigned& seed) {
  Doubles v(n);
  for (double& x : v) {
    seed = seed * 1664525 + 1013904223;
    x = (int(seed >> 24) - 128) / 64.0;
  }
  return v;
}

Conv square(int64_t B, int64_t C, int64_t height, int64_t width, int64_t kernel, int64_t stride, bool last) {
  Conv c{};
  c.B = B, c.C = C, c.multiplier = 1, c.channels_last = last;
  const int64_t in[] = {1, height, width};
  for (int d = 0; d < adl::kSpatial; ++d) {
    c.in[d] = in[d], c.dilation[d] = 1;
    c.kernel[d] = d ? kernel : 1, c.stride[d] = d ? stride : 1, c.pad[d] = d ? kernel / 2 : 0;
    c.out[d] = (c.in[d] + 2 * c.pad[d] - c.kernel[d]) / c.stride[d] + 1;
  }
  return c;
}

int64_t at(const Conv& c, int64_t channels, int64_t positions, int64_t b, int64_t o, int64_t i) {
  return c.channels_last ? (b * positions + i) * channels + o : (b * channels + o) * positions + i;
}

// f(place of y, place of x, place of the weight) for all that meet.
template <class F>
void each_product(const Conv& c, F f) {
  const int64_t size = c.out_size(), k = c.kernel[2];
  for (int64_t b = 0; b < c.B; ++b)
    for (int64_t o = 0; o < c.C; ++o)
      for (int64_t i = 0; i < size; ++i)
        for (int64_t tap = 0; tap < c.taps(); ++tap) {
          const int64_t y = i / c.out[2] * c.stride[1] + tap / k * c.dilation[1] - c.pad[1];
          const int64_t x = i % c.out[2] * c.stride[2] + tap % k * c.dilation[2] - c.pad[2];
          if (y < 0 || y >= c.in[1] || x < 0 || x >= c.in[2]) continue;
          f(at(c, c.C, size, b, o, i), at(c, c.C, c.in_size(), b, o, y * c.in[2] + x), o * c.taps() + tap);
        }
}

double largest(const Doubles& v) {
  double most = 1;
  for (double x : v) most = std::fmax(most, std::fabs(x));
  return most;
}

template <class T>
void convolution(const char* name, const Conv& c) {
  unsigned seed = 7;
  const int64_t n_x = c.B * c.C * c.in_size(), n_y = c.B * c.C * c.out_size(), n_w = c.C * c.taps();
  const Doubles x = numbers<T>(n_x, seed), w = numbers<T>(n_w, seed), dy = numbers<T>(n_y, seed);
  Doubles y(n_y, 0), dx(n_x, 0), dw(n_w, 0), db(c.C, 0);
  each_product(c, [&](int64_t to, int64_t from, int64_t tap) {
    y[to] += x[from] * w[tap], dx[from] += dy[to] * w[tap], dw[tap] += dy[to] * x[from];
  });
  for (int64_t i = 0; i < n_y; ++i) db[c.channels_last ? i % c.C : i / c.out_size() % c.C] += dy[i];

  const Array<T> x_d(converted<T>(x)), w_d(converted<T>(w)), dy_d(converted<T>(dy)),
      y_d(converted<T>(Doubles(n_y, NAN)));
  const Array<T> dx_d(converted<T>(Doubles(n_x, NAN))), dw_d(converted<T>(Doubles(n_w, NAN)));
  const Array<T> db_d(converted<T>(Doubles(c.C, NAN)));
  check(adl::cuda::convolve(adl::ConvForward<T>{c, x_d, w_d, nullptr, nullptr, y_d, Activation::kNone}, kGpu, kStream));
  check(adl::cuda::convolve(adl::ConvInputGrad<T>{c, dy_d, w_d, dx_d}, kGpu, kStream));
  const adl::ConvWeightGrad<T> grad{c, dy_d, x_d, dw_d, db_d};
  const Array<Acc<T>> sums(std::vector<Acc<T>>(adl::cuda::conv_sums(grad, kGpu), NAN));
  check(adl::cuda::convolve(grad, sums, kGpu, kStream));

  const std::string title = std::string(name) + (c.channels_last ? " last " : " first ") + Type<T>::kName;
  const auto one = [&](const char* part, const Array<T>& got, const Doubles& expected) {
    compare(title + " " + part, {{"", converted<double>(got.host()), expected}}, Type<T>::kError * largest(expected));
  };
  one("y", y_d, y), one("dx", dx_d, dx), one("dweight", dw_d, dw), one("dbias", db_d, db);
}

template <class T>
void separable(const Conv& c, int64_t N) {
  unsigned seed = 9;
  const int64_t n_x = c.B * c.C * c.in_size(), size = c.out_size(), n_y = c.B * N * size;
  const Doubles x = numbers<T>(n_x, seed), w = numbers<T>(c.C * c.taps(), seed), pw = numbers<T>(N * c.C, seed);
  Doubles between(c.B * c.C * size, 0), y(n_y, 0);
  each_product(c, [&](int64_t to, int64_t from, int64_t tap) { between[to] += x[from] * w[tap]; });
  const Doubles rounded = converted<double>(converted<T>(between));
  for (int64_t b = 0; b < c.B; ++b)
    for (int64_t n = 0; n < N; ++n)
      for (int64_t i = 0; i < size; ++i)
        for (int64_t o = 0; o < c.C; ++o)
          y[at(c, N, size, b, n, i)] += rounded[at(c, c.C, size, b, o, i)] * pw[n * c.C + o];

  const Array<T> x_d(converted<T>(x)), w_d(converted<T>(w)), pw_d(converted<T>(pw)),
      y_d(converted<T>(Doubles(n_y, NAN)));
  const adl::ConvForward<T> depthwise{c, x_d, w_d, nullptr, nullptr, nullptr, Activation::kNone};
  check(adl::cuda::separable(
      adl::SeparableForward<T>{depthwise, N, pw_d, nullptr, nullptr, nullptr, y_d, Activation::kNone}, kGpu, kStream));
  const std::string title = std::string("separable") + (c.channels_last ? " last " : " first ") + Type<T>::kName;
  compare(title, {{"", converted<double>(y_d.host()), y}}, Type<T>::kError * largest(y));
}

void run_all() {
  for (bool last : {false, true}) {
    convolution<double>("any size", square(3, 5, 9, 8, 4, 3, last));
    convolution<BFloat>("any size", square(2, 33, 4, 5, 9, 1, last));
    convolution<float>("tiles", square(12, 4, 9, 7, 3, 1, last));
    convolution<BFloat>("tiles", square(9, 6, 30, 9, 5, 2, last));
    convolution<Half>("tiles", square(2, 2, 20, 33, 7, 1, last));
    separable<double>(square(2, 40, 5, 4, 3, 1, last), 20);
    separable<float>(square(2, 20, 5, 4, 3, 1, last), 150);
    separable<float>(square(1, 150, 4, 3, 3, 1, last), 33);
    separable<BFloat>(square(2, 24, 5, 4, 3, 2, last), 150);
    separable<Half>(square(1, 400, 4, 3, 3, 1, last), 33);
  }
}

}  // namespace

int main() { return run_checks(run_all); }
