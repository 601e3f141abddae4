// Runs the convolutions' kernels without torch, with one thread and with three, for the sanitizers. Results are
// compared with sums as the definition has them, and with each other bit by bit.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <vector>

#include "depthwise/cpu/separable.h"
#include "depthwise/cpu/weight_grad.h"

namespace {

using T = ADL_NUMBER;
using Reals = std::vector<double>;
using Numbers = std::vector<T>;

// Large enough for three threads.
struct Shape {
  const char* name;
  int64_t B, C, multiplier, size[3], kernel[3], stride[3], pad[3];
  bool channels_last, documents;
};
const Shape kShapes[] = {
    {"wide", 2, 5, 1, {1, 61, 70}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, false, false},
    {"strided", 2, 7, 1, {1, 91, 90}, {1, 5, 3}, {1, 2, 3}, {0, 2, 1}, false, false},
    {"transposed", 1, 33, 1, {1, 31, 33}, {1, 5, 5}, {1, 1, 1}, {0, 0, 4}, false, false},
    {"last", 1, 37, 1, {1, 30, 40}, {1, 5, 3}, {1, 2, 1}, {0, 3, 1}, true, false},
    {"in place", 1, 32, 1, {1, 40, 40}, {1, 3, 3}, {1, 2, 1}, {0, 1, 1}, true, false},
    {"multiplied", 1, 9, 4, {1, 33, 33}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, true, false},
    {"volume", 1, 5, 1, {7, 22, 26}, {3, 3, 3}, {2, 1, 1}, {1, 1, 0}, false, false},
    {"line", 2, 20, 1, {1, 1, 1100}, {1, 1, 9}, {1, 1, 1}, {0, 0, 8}, false, true},
};

Numbers random(int64_t count, uint32_t seed) {
  Numbers values(count);
  for (T& value : values) value = T(int32_t(seed = seed * 1664525u + 1013904223u) / 2147483648.0);
  return values;
}

adl::Conv conv_of(const Shape& s, std::vector<int32_t>& documents) {
  adl::Conv c{};
  c.B = s.B, c.C = s.C, c.multiplier = s.multiplier, c.channels_last = s.channels_last;
  for (int k = 0; k < 3; ++k) {
    c.in[k] = s.size[k], c.kernel[k] = s.kernel[k], c.stride[k] = s.stride[k], c.dilation[k] = 1, c.pad[k] = s.pad[k];
    const int64_t after = s.documents ? 0 : s.pad[k];
    c.out[k] = (c.in[k] + c.pad[k] + after - c.kernel[k]) / c.stride[k] + 1;
  }
  for (int64_t k = 0; s.documents && k < c.B * c.in[2]; ++k) documents.push_back(int32_t(k / 97));
  if (s.documents) c.documents = documents.data();
  return c;
}

// f(place in x, place in y, place in the weight, output channel) for every product of the definition.
void each_product(const adl::Conv& c, const std::function<void(int64_t, int64_t, int64_t, int64_t)>& f) {
  const int64_t M = c.channels();
  const auto place = [&](const int64_t (&n)[3], int64_t channels, int64_t b, int64_t o, int64_t i) {
    const int64_t size = n[0] * n[1] * n[2];
    return c.channels_last ? (b * size + i) * channels + o : (b * channels + o) * size + i;
  };
  for (int64_t b = 0; b < c.B; ++b)
    for (int64_t i = 0; i < c.out_size(); ++i)
      for (int64_t t = 0; t < c.taps(); ++t) {
        const int64_t out[3] = {i / c.out[2] / c.out[1], i / c.out[2] % c.out[1], i % c.out[2]};
        const int64_t tap[3] = {t / c.kernel[2] / c.kernel[1], t / c.kernel[2] % c.kernel[1], t % c.kernel[2]};
        int64_t at = 0;
        bool inside = true;
        for (int k = 0; k < 3; ++k) {
          const int64_t from = out[k] * c.stride[k] + tap[k] - c.pad[k];
          inside = inside && from >= 0 && from < c.in[k];
          at = at * c.in[k] + from;
        }
        if (!inside || (c.documents && c.documents[b * c.in[2] + at] != c.documents[b * c.in[2] + i])) continue;
        for (int64_t o = 0; o < M; ++o)
          f(place(c.in, c.C, b, o / c.multiplier, at), place(c.out, M, b, o, i), o * c.taps() + t, o);
      }
}

template <class Work, class Params>
void run(const Params& params) {
  std::vector<char> memory(Work(params).take(nullptr) + 64);
  Work work(params);
  work.take(memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64);
  work.run();
}

int check(const Shape& shape, const char* what, const Numbers (&found)[2], const Reals& exact) {
  double largest = 0, off = 0;
  for (double value : exact) largest = std::max(largest, std::abs(value));
  for (size_t k = 0; k < exact.size(); ++k) off = std::max(off, std::abs(found[0][k] - exact[k]));
  const bool same = std::memcmp(found[0].data(), found[1].data(), exact.size() * sizeof(T)) == 0;
  if (off <= 1e-5 * largest && same) return 0;
  std::printf("%s, %s: %s\n", shape.name, what, same ? "wrong" : "depends on the number of threads");
  return 1;
}

int check(const Shape& shape) {
  std::vector<int32_t> documents;
  adl::Conv c = conv_of(shape, documents);
  const int64_t M = c.channels(), N = 70;
  const Numbers x = random(c.B * c.C * c.in_size(), 1), dy = random(c.B * M * c.out_size(), 2);
  const Numbers w = random(M * c.taps(), 3), bias = random(M, 4), points = random(N * M, 5);
  Reals y(dy.size()), dx(x.size()), dw(w.size()), db(M), z(c.B * N * c.out_size());
  for (size_t k = 0; k < y.size(); ++k) {
    const int64_t o = c.channels_last ? k % M : k / c.out_size() % M;
    y[k] = bias[o], db[o] += dy[k];
  }
  each_product(c, [&](int64_t i, int64_t j, int64_t t, int64_t) {
    y[j] += double(x[i]) * w[t], dx[i] += double(dy[j]) * w[t], dw[t] += double(dy[j]) * x[i];
  });
  for (int64_t k = 0; k < c.B * c.out_size() * N; ++k) {
    const int64_t n = c.channels_last ? k % N : k / c.out_size() % N;
    const int64_t row = c.channels_last ? k / N : k / c.out_size() / N * c.out_size() + k % c.out_size();
    const int64_t b = row / c.out_size(), i = row % c.out_size();
    for (int64_t o = 0; o < M; ++o)
      z[k] += points[n * M + o] * y[c.channels_last ? row * M + o : (b * M + o) * c.out_size() + i];
  }
  const T nan = T(NAN);
  Numbers of_y[2], of_dx[2], of_dw[2], of_db[2], of_z[2];
  for (int k = 0; k < 2; ++k) {
    c.threads = k == 0 ? 1 : 3;
    of_y[k].assign(y.size(), nan), of_dx[k].assign(dx.size(), nan), of_dw[k].assign(dw.size(), nan);
    of_db[k].assign(M, nan), of_z[k].assign(z.size(), nan);
    const adl::ConvForward<T> forward{
        c, x.data(), w.data(), bias.data(), nullptr, of_y[k].data(), adl::Activation::kNone};
    run<adl::Correlation<T>>(forward);
    run<adl::Correlation<T>>(adl::ConvInputGrad<T>{c, dy.data(), w.data(), of_dx[k].data()});
    run<adl::WeightGradient<T>>(adl::ConvWeightGrad<T>{c, dy.data(), x.data(), of_dw[k].data(), of_db[k].data()});
    if (!c.documents)
      run<adl::Separable<T>>(adl::SeparableForward<T>{forward, N, points.data(), nullptr, nullptr, nullptr,
                                                      of_z[k].data(), adl::Activation::kNone});
  }
  return check(shape, "y", of_y, y) + check(shape, "dx", of_dx, dx) + check(shape, "dweight", of_dw, dw) +
         check(shape, "dbias", of_db, db) + (c.documents ? 0 : check(shape, "separable", of_z, z));
}

}  // namespace

int main() {
  int wrong = 0;
  for (const Shape& shape : kShapes) wrong += check(shape);
  return wrong != 0;
}
