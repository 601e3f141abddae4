// Runs the kernels of wrappers.cuh and compares them with plain C++: one line per check, exit code 1 if one is wrong.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "checks.h"
#include "wrappers.cuh"

namespace {

using adl::BFloat;
using adl::GemmTile;
using adl::Half;

// Small whole numbers over 8: exact in every type, and so are their products' sums.
std::vector<float> numbers(size_t n, unsigned seed) {
  std::vector<float> v(n);
  for (float& x : v) {
    seed = seed * 1664525u + 1013904223u;
    x = static_cast<float>(static_cast<int>(seed >> 27) - 16) / 8;
  }
  return v;
}

void test_blocks() {
  const int rows = 200, columns = 5;
  const auto x = numbers(rows * columns, 1);
  std::vector<float> sums(columns);
  for (int i = 0; i < rows * columns; ++i) sums[i % columns] += x[i];
  const Array<float> xd(x), yd(std::vector<float>(columns, NAN));
  check(adl::launch(adl::column_sums<float>, 2, 128, nullptr, {}, xd, yd, rows, columns));
  compare("column_sums", yd.host(), sums);

  std::vector<float> reversed(x.begin(), x.begin() + 384);
  for (size_t i = 0; i < reversed.size(); ++i) reversed[i] = x[i / 32 * 32 + 31 - i % 32];
  const Array<float> rd(std::vector<float>(384, NAN));
  check(adl::launch(adl::reverse, 1, 128, nullptr, {}, xd, rd, 3));
  compare("reverse", rd.host(), reversed);

  float total = 0;
  for (int i = 0; i < 256; ++i) total += x[i];
  const Array<float> partial(std::vector<float>(8, NAN)), sum(std::vector<float>(1, NAN));
  const Array<unsigned> done(std::vector<unsigned>(1, 0));
  check(adl::launch(adl::last_block_sum, 8, 32, nullptr, {}, xd, partial, done, sum));
  compare("last_block_sum", sum.host(), std::vector<float>{total});
}

template <bool own_barrier>
void test_relay(const char* name) {
  const size_t blocks = 4, threads = 64, n = blocks * threads, steps = 5;
  auto x = numbers(n * (steps + 1), 2);
  const Array<float> xd(x);
  const Array<unsigned> arrived(std::vector<unsigned>(1, 0));
  for (size_t t = 0; t < steps; ++t)
    for (size_t i = 0; i < n; ++i) x[(t + 1) * n + i] = x[t * n + (i + threads + 1) % n] + 1;
  adl::LaunchOptions options;
  options.cooperative = true;
  check(adl::launch(adl::relay<own_barrier>, blocks, threads, nullptr, options, xd, arrived, static_cast<int>(steps)));
  compare(name, xd.host(), x);
}

// So that sums of words are anything but small.
std::vector<uint32_t> bits(size_t n, uint32_t seed) {
  std::vector<uint32_t> v(n);
  for (uint32_t& x : v) x = (seed = seed * 1664525u + 1013904223u) & 0x7fffffffu;
  return v;
}

void test_words() {
  const size_t blocks = 4, threads = 64, n = blocks * threads, steps = 20;
  auto words = bits(n, 9);
  words.resize(n * (steps + 1), adl::kAbsent);
  const Array<uint32_t> wd(words);
  for (size_t t = 0; t < steps; ++t)
    for (size_t i = 0; i < n; ++i) {
      const uint32_t* v = words.data() + t * n + (i + threads + 1) % (n / 4) * 4;
      words[(t + 1) * n + i] = (v[0] + 3 * v[1] + 5 * v[2] + 7 * v[3]) & 0x7fffffffu;
    }
  adl::LaunchOptions options;
  options.cooperative = true;
  check(adl::launch(adl::word_relay, blocks, threads, nullptr, options, wd, static_cast<int>(steps)));
  compare("word_relay", wd.host(), words);
}

bool has_clusters() {
  int major = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  if (major < 9) printf("clusters: skipped, they need compute capability 9.0\n");
  return major >= 9;
}

void test_exchange(unsigned size) {
  const size_t blocks = 2 * size, threads = 32, n = blocks * threads * 4, steps = 21;
  const auto x = bits(n, 10);
  auto y = x;
  for (size_t t = 0; t < steps; ++t) {
    const auto v = y;
    for (size_t i = 0; i < n; ++i)
      for (size_t r = 0; r < size; ++r) {
        const size_t block = i / 4 / threads, thread = i / 4 % threads, word = i % 4;
        const size_t from = block / size * size + r, sender = (thread + r + 1) % threads;
        y[i] += static_cast<uint32_t>(word < 2 ? r : 1) * v[(from * threads + sender) * 4 + word];
      }
  }
  const Array<uint32_t> xd(x), yd(std::vector<uint32_t>(n, 0));
  const auto words = [](uint32_t* p) { return reinterpret_cast<uint4*>(p); };
  adl::LaunchOptions options;
  options.cluster = size;
  options.shared_bytes = 2 * size * threads * sizeof(uint4);
  check(adl::launch(adl::exchange, blocks, threads, nullptr, options, words(xd), words(yd), size,
                    static_cast<int>(steps)));
  compare("exchange between " + std::to_string(size), yd.host(), y);
}

void test_wait_in_vain() {
  const Array<unsigned> yd(std::vector<unsigned>{9, 9});
  check(adl::launch(adl::wait_in_vain, 1, 1, nullptr, {}, yd));
  compare("wait_in_vain", yd.host(), std::vector<unsigned>{0, 1});
}

// As many clusters as the emulator pretends; on a GPU as many as it has.
void test_occupancy() {
  const auto* kernel = reinterpret_cast<const void*>(adl::exchange);
  const auto clusters = [&](int size) { return adl::active_clusters(kernel, size, 256, 200 * 1024); };
  std::vector<int> got, expected{132, 31, 15, 7, 0};
  for (int size : {1, 4, 8, 16, 17}) got.push_back(clusters(size));
#ifndef ADL_CUDA_ON_CPU
  printf("active_clusters: %d of 4 blocks, %d of 8, %d of 16\n", got[1], got[2], got[3]);
  expected = {got[0], std::min(got[1], got[0] / 4), std::min(got[2], got[0] / 8), std::min(got[3], got[0] / 16), 0};
#endif
  compare("active_clusters", got, expected);
}

void test_too_many() {
  const auto* kernel = reinterpret_cast<const void*>(adl::relay<false>);
  adl::LaunchOptions options;
  options.cooperative = true;
  const auto blocks = static_cast<unsigned>(adl::active_blocks(kernel, 1024, 0)) + 1;
  const cudaError_t error = adl::launch(adl::relay<false>, blocks, 1024, nullptr, options, static_cast<float*>(nullptr),
                                        static_cast<unsigned*>(nullptr), 0);
  // Nothing of it is left for the next launch.
  compare("active_blocks", std::vector<int>{error, cudaPeekAtLastError()},
          std::vector<int>{cudaErrorCooperativeLaunchTooLarge, cudaSuccess});
}

void test_cluster() {
  const size_t blocks = 8, threads = 64, steps = 5;
  const auto x = numbers(blocks * threads, 3);
  std::vector<float> y = x;
  for (size_t t = 0; t < steps; ++t) {
    const auto h = y;
    for (size_t b = 0; b < blocks; ++b)
      for (size_t i = 0; i < threads; ++i)
        y[(b / 4 * 4 + (b + 1) % 4) * threads + i] = h[b * threads + (i + 1) % threads] + 1;
  }
  for (size_t i = 0; i < y.size(); ++i) y[i] += 100.0f * static_cast<float>((i / threads + 1) % 4);
  const Array<float> xd(x), yd(std::vector<float>(y.size(), NAN));
  adl::LaunchOptions options;
  options.cluster = 4;
  options.shared_bytes = 2 * threads * sizeof(float);
  check(adl::launch(adl::cluster_relay, blocks, threads, nullptr, options, xd, yd, static_cast<int>(steps)));
  compare("cluster_relay", yd.host(), y);
}

std::vector<float> product(const std::vector<float>& a, const std::vector<float>& b, size_t M, size_t N, size_t K) {
  std::vector<float> c(M * N);
  for (size_t m = 0; m < M; ++m)
    for (size_t k = 0; k < K; ++k)
      for (size_t n = 0; n < N; ++n) c[m * N + n] += a[m * K + k] * b[k * N + n];
  return c;
}

template <class T, class Kernel>
void test_product(const char* name, Kernel kernel, size_t K) {
  const auto a = numbers(16 * K, 4), b = numbers(K * 8, 5), c0 = numbers(16 * 8, 6);
  auto c = product(a, b, 16, 8, K);
  for (size_t i = 0; i < c.size(); ++i) c[i] += c0[i];
  const Array<T> ad(converted<T>(a)), bd(converted<T>(b));
  const Array<float> cd(c0);
  check(adl::launch(kernel, 1, 32, nullptr, {}, ad, bd, cd));
  compare(name, cd.host(), c);
}

void test_gemm() {
  const size_t M = 100, N = 72, K = 104;
  const auto a = numbers(M * K, 7), b = numbers(K * N, 8);
  const Array<BFloat> ad(converted<BFloat>(a)), bd(converted<BFloat>(b));
  const Array<float> cd(std::vector<float>(M * N, NAN));
  adl::LaunchOptions options;
  options.shared_bytes = GemmTile::kBytes;
  const dim3 grid((N + GemmTile::kN - 1) / GemmTile::kN, (M + GemmTile::kM - 1) / GemmTile::kM);
  check(adl::launch(adl::gemm, grid, 128, nullptr, options, ad, bd, cd, static_cast<int>(M), static_cast<int>(N),
                    static_cast<int>(K)));
  compare("gemm", cd.host(), product(a, b, M, N, K));
}

template <int N, bool transpose>
void test_fragments(const char* name) {
  std::vector<uint16_t> x(N * 64);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint16_t>(i * 251 + 7);
  std::vector<uint32_t> y(N * 32);
  for (size_t i = 0; i < y.size(); ++i) {
    const size_t lane = i % 32, row = lane / 4, column = lane % 4 * 2;
    const uint16_t* matrix = x.data() + i / 32 * 64;
    const uint32_t low = transpose ? matrix[column * 8 + row] : matrix[row * 8 + column];
    const uint32_t high = transpose ? matrix[(column + 1) * 8 + row] : matrix[row * 8 + column + 1];
    y[i] = low | high << 16;
  }
  const Array<uint16_t> xd(x);
  const Array<uint32_t> yd(std::vector<uint32_t>(y.size(), 0));
  adl::LaunchOptions options;
  options.shared_bytes = N * 64 * sizeof(uint16_t);
  check(adl::launch(adl::fragments<N, transpose>, 1, 32, nullptr, options, xd, yd));
  compare(name, yd.host(), y);
}

template <class T, class A>
void test_conversion(const char* name, const std::vector<A>& x, const std::vector<A>& expected) {
  const Array<A> xd(x), back(std::vector<A>(x.size(), A(0)));
  const Array<T> yd(std::vector<T>(x.size(), T(0)));
  check(adl::launch(adl::convert<T>, 1, 64, nullptr, {}, xd, yd, back, static_cast<int>(x.size())));
  compare(name, back.host(), expected);
}

void test_conversions() {
  const auto p = [](int e) { return std::ldexp(1.0f, e); };
  const float one = 1, inf = INFINITY;
  test_conversion<float>("float", std::vector<float>{p(-149), 3.3f}, {p(-149), 3.3f});
  test_conversion<double>("double", std::vector<double>{1e-300, 3.3}, {1e-300, 3.3});
  // Nearest; halfway, to even; too large, to infinity.
  test_conversion<BFloat>(
      "BFloat", std::vector<float>{one, one + p(-8), one + 3 * p(-8), one + p(-8) + p(-20), 3.4e38f, 3.395e38f},
      {one, one, one + 4 * p(-8), one + p(-7), inf, (2 - p(-7)) * p(127)});
  test_conversion<Half>(
      "Half", std::vector<float>{one + p(-11), one + 3 * p(-11), -65504, 65519, 65520, p(-24), p(-25), 3 * p(-26)},
      {one, one + 4 * p(-11), -65504, 65504, inf, p(-24), 0, p(-24)});
  // Nearest; halfway, away from zero.
  const std::vector<float> x{one, one + p(-11), -one - p(-11), one + p(-11) - p(-23), 2 - p(-23), inf};
  const std::vector<float> rounded{one, one + p(-10), -one - p(-10), one, 2, inf};
  const Array<float> xd(x);
  const Array<uint32_t> yd(std::vector<uint32_t>(x.size(), 0));
  check(adl::launch(adl::round_to_tf32, 1, 32, nullptr, {}, xd, yd, static_cast<int>(x.size())));
  std::vector<float> y;
  for (uint32_t bits : yd.host()) {
    bits &= ~0x1fffu;  // no part of the number
    float f;
    memcpy(&f, &bits, sizeof f);
    y.push_back(f);
  }
  compare("to_tf32", y, rounded);
}

void run_all() {
  test_blocks();
  test_relay<true>("relay, own barrier");
  test_relay<false>("relay, grid_barrier");
  test_words();
  test_too_many();
  if (has_clusters()) {
    test_cluster();
    for (unsigned size : {4u, 8u, 16u}) test_exchange(size);
    test_occupancy();
  }
  test_product<BFloat>("mma_bf16", adl::product<BFloat>, 16);
  test_product<Half>("mma_f16", adl::product<Half>, 16);
  test_product<float>("mma_tf32", adl::product_tf32, 8);
  test_gemm();
  test_fragments<2, false>("load_matrices<2>");
  test_fragments<4, false>("load_matrices<4>");
  test_fragments<2, true>("load_matrices<2>, transposed");
  test_fragments<4, true>("load_matrices<4>, transposed");
  test_conversions();
}

}  // namespace

int main() { return run_checks(run_all); }
