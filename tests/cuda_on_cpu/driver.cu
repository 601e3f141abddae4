// Runs the recurrent kernels, through the launchers that the ops use, and compares them with a plain scan in double:
// one line per check, exit code 1 if one is wrong. Needs no torch. Those for teams of blocks: team_driver.cu.
#include "scans.h"

namespace {

// ---- the block-resident tier

template <class Cell, class T>
void block_forward(const Case& k) {
  const auto& kernels = kernels_of<Cell, T>();
  const auto directions = directions_of<Forward<Cell, T>>(k);
  const int64_t steps = k.sizes.T, parts = k.halves ? 2 : 1;
  for (int64_t part = 0; part < parts; ++part) {
    Directions<ForwardScan<T>> scans{k.directions, {}};
    for (int d = 0; d < k.directions; ++d)
      scans.of[d] = directions[d].scan(part * steps / parts, (part + 1) * steps / parts, true);
    check(kernels.block_forward(scans, k.tf32, kGpu, kStream));
  }
  compare_all(name_of<Cell, T>("block forward", k), results_of(directions), k.tf32 ? kTf32Error : Type<T>::kError);
}

template <class Cell, class T>
void block_backward(const Case& k) {
  const auto directions = directions_of<Backward<Cell, T>>(k);
  Directions<BackwardScan<T>> scans{k.directions, {}};
  for (int d = 0; d < k.directions; ++d) scans.of[d] = directions[d].scan();
  check(kernels_of<Cell, T>().block_backward(scans, k.tf32, kGpu, kStream));
  compare_all(name_of<Cell, T>("block backward", k), results_of(directions), k.tf32 ? kTf32Error : Type<T>::kError);
}

template <class Cell, class T>
void block(const Case& k) {
  block_forward<Cell, T>(k);
  block_backward<Cell, T>(k);
}

// ---- the streaming tier, with its products on the host

// gh [count, G, H] = W_hh h, what the streaming kernels take.
template <class A>
std::vector<A> product(const Doubles& w_hh, int64_t G, int64_t H, const std::vector<A>& h, int64_t count) {
  std::vector<A> gh(count * G * H);
  for (int64_t b = 0; b < count; ++b)
    for (int64_t row = 0; row < G * H; ++row) {
      double sum = 0;
      for (int64_t j = 0; j < H; ++j) sum += w_hh[row * H + j] * h[b * H + j];
      gh[b * G * H + row] = static_cast<A>(sum);
    }
  return gh;
}

template <class Cell, class T>
void streaming_forward(const Case& k) {
  using A = Acc<T>;
  const Forward<Cell, T> f(k, k.directions == 2, 9);
  const ForwardScan<T> scan = f.scan(0, k.sizes.T, false);
  const bool uniform = k.sizes.counts.empty();
  for (int64_t i = 0; i < k.sizes.T; ++i) {
    const int64_t t = f.r.step(i), count = k.sizes.count(t);
    const std::vector<A> h = f.kExact ? f.h.host() : converted<A>(f.h_rounded.host());
    const Array<A> gh(product(f.r.w_hh, f.G, f.H, h, count));
    const bool first = uniform && i == 0, last = uniform && i == k.sizes.T - 1;
    check(kernels_of<Cell, T>().streaming_forward(scan, f.r.offsets[t], count, first, last, gh, kStream));
  }
  if (!uniform) f.h_n.store(converted<T>(f.h.host())), f.c_n.store(converted<T>(f.c.host()));
  compare_all(name_of<Cell, T>("streaming forward", k), f.results(), Type<T>::kError);
}

// dh += W_hh^T dgates of the rows from `row` on.
template <class Cell, class T>
void add_product(const Backward<Cell, T>& b, int64_t row, int64_t count) {
  std::vector<Acc<T>> dh = b.dh.host();
  const Doubles dgates = converted<double>(b.dgates.host());
  for (int64_t n = 0; n < count; ++n)
    for (int64_t i = 0; i < Cell::kGates * b.H; ++i) {
      const double d = dgates[((row + n) * Cell::kPre + Cell::kHh[i / b.H]) * b.H + i % b.H];
      for (int64_t u = 0; u < b.H; ++u) dh[n * b.H + u] += static_cast<Acc<T>>(b.r.w_hh[i * b.H + u] * d);
    }
  b.dh.store(dh);
}

template <class Cell, class T>
void streaming_backward(const Case& k) {
  const Backward<Cell, T> b(k, k.directions == 2, 9);
  for (int64_t i = k.sizes.T - 1; i >= 0; --i) {
    const int64_t t = b.r.step(i), row = b.r.offsets[t], count = k.sizes.count(t);
    adl::Before before{0, 0};
    if (i > 0) before = {b.r.offsets[b.r.step(i - 1)], k.sizes.count(b.r.step(i - 1))};
    const bool first = k.sizes.counts.empty() && i == k.sizes.T - 1;
    check(kernels_of<Cell, T>().streaming_backward(b.scan(), row, count, first, before, kStream));
    add_product(b, row, count);
  }
  b.dh_0.store(converted<T>(b.dh.host())), b.dc_0.store(converted<T>(b.dc.host()));
  compare_all(name_of<Cell, T>("streaming backward", k), b.results(), Type<T>::kError);
}

template <class Cell, class T>
void streaming(const Case& k) {
  streaming_forward<Cell, T>(k);
  streaming_backward<Cell, T>(k);
}

// ---- a step with layer norms, whose sums several warps add up

// (x - mean) / std
Doubles normed(const Doubles& x) {
  double mean = 0, variance = 0;
  for (double v : x) mean += v / x.size();
  for (double v : x) variance += (v - mean) * (v - mean) / x.size();
  Doubles out;
  for (double v : x) out.push_back((v - mean) / std::sqrt(variance + 1e-5));
  return out;
}

template <class T>
void layer_norm(int64_t H) {
  const int64_t B = 2;
  unsigned seed = 5;
  const auto numbers = [&](int64_t n) { return converted<double>(converted<T>(uniform(n, seed, 1))); };
  const Doubles gx = numbers(B * H), gh = numbers(B * H), ln_ih = numbers(H), ln_hh = numbers(H);
  Doubles expected;
  for (int64_t b = 0; b < B; ++b) {
    const auto row = [&](const Doubles& v) { return normed(Doubles(v.begin() + b * H, v.begin() + (b + 1) * H)); };
    const Doubles x = row(gx), h = row(gh);
    for (int64_t u = 0; u < H; ++u) expected.push_back(std::tanh(x[u] * ln_ih[u] + h[u] * ln_hh[u]));
  }
  using A = Acc<T>;
  const Array<A> gx_d(converted<A>(gx)), gh_d(converted<A>(gh)), state(converted<A>(numbers(B * H)));
  const Array<T> ih(converted<T>(ln_ih)), hh(converted<T>(ln_hh)), y(converted<T>(Doubles(B * H, NAN)));
  ForwardScan<T> scan{};
  scan.steps = {1, B, nullptr, false, 0, 1};
  scan.H = H, scan.gx = gx_d, scan.gx_stride = H, scan.h = state, scan.y = y, scan.y_stride = H;
  adl::ForwardExtras<T> extras{};
  extras.ln_ih = ih, extras.ln_hh = hh;
  check(kernels_of<RnnTanh, T>().row_forward(scan, extras, 0, B, gh_d, kStream));
  compare_all(std::string("layer_norm ") + Type<T>::kName + " H" + std::to_string(H),
              {{"y: ", converted<double>(y.host()), expected}, {"h: ", converted<double>(state.host()), expected}},
              Type<T>::kError);
}

// ---- what surrounds the scans

template <class T>
void previous_states(bool reverse) {
  const Sizes s{4, 9, 0, {9, 7, 2, 1}};
  const int64_t P = 37, stride = P + kPadding, N = s.N();
  const std::vector<int64_t> first = s.offsets();
  unsigned seed = 3;
  const Doubles y = converted<double>(converted<T>(uniform(N * P, seed, 1)));
  const Doubles h_0 = converted<double>(converted<T>(uniform(s.B * P, seed, 1)));
  Doubles expected;
  for (int64_t t = 0; t < s.T; ++t)
    for (int64_t i = 0; i < s.count(t) * P; ++i) {
      const int64_t other = reverse ? t + 1 : t - 1;
      const bool begun = other >= 0 && other < s.T && i / P < s.count(other);
      expected.push_back(begun ? y[first[other] * P + i] : h_0[i]);
    }
  const Offsets offsets(s);
  const Array<T> y_d(converted<T>(spread(y, P, stride))), h_d(converted<T>(h_0)),
      out(converted<T>(Doubles(N * P, NAN)));
  const Steps steps{s.T, s.B, offsets, reverse, 0, s.T};
  check(adl::cuda::kernels<T>().previous_states(steps, StepExtras<T>{}, P, y_d, stride, h_d, out, kStream));
  compare(std::string("previous_states ") + Type<T>::kName, {{"", converted<double>(out.host()), expected}});
}

template <class T>
void rows() {
  const int64_t rows = 3, width = 300, n = rows * width;
  unsigned seed = 4;
  const Doubles a = converted<double>(converted<T>(uniform(n, seed, 1))),
                sums = converted<double>(converted<Acc<T>>(a));
  const Doubles b = converted<double>(converted<T>(uniform(n, seed, 1)));
  Doubles both;
  for (int64_t i = 0; i < n; ++i) both.push_back(round_to<T>(static_cast<Acc<T>>(a[i]) + static_cast<Acc<T>>(b[i])));
  const Array<T> from(converted<T>(spread(a, width, width + 1))), more(converted<T>(spread(b, width, width + 2)));
  const Array<Acc<T>> sum(converted<Acc<T>>(spread(a, width, width + 3)));
  const Array<T> to(converted<T>(spread(Doubles(n, NAN), width, width + 4)));
  const auto& kernels = adl::cuda::kernels<T>();
  const auto result = [&](const Doubles& expected) {
    std::vector<Result> all{{"", gathered(to, width, width + 4), expected}};
    to.store(converted<T>(Doubles(rows * (width + 4), NAN)));
    return all;
  };
  check(kernels.copy_rows(to, width + 4, from, width + 1, rows, width, kStream));
  compare(std::string("copy_rows ") + Type<T>::kName, result(a));
  check(kernels.add_rows(to, width + 4, sum, width + 3, nullptr, 0, rows, width, kStream));
  compare(std::string("add_rows of one ") + Type<T>::kName, result(a));
  check(kernels.add_rows(to, width + 4, sum, width + 3, more, width + 2, rows, width, kStream));
  compare(std::string("add_rows of two ") + Type<T>::kName, result(both));
}

void store_numbers() {
  std::vector<int64_t> v(1000);  // more than one launch takes
  for (size_t i = 0; i < v.size(); ++i) v[i] = (int64_t(1) << 40) + int64_t(i * i);
  const Array<int64_t> to(std::vector<int64_t>(v.size(), -1));
  check(adl::cuda::store_numbers(v.data(), int64_t(v.size()), to, kStream));
  compare("store_numbers", {{"", Doubles(1, to.host() == v), Doubles(1, 1)}});
}

// Sequences end one after another, so that blocks are idle at the end, or at first in the other direction.
const Sizes kPacked{4, 9, 18, {9, 7, 2, 1}};
const Sizes kFull{4, 9, 18, {}};

template <class Cell>
void cell() {
  block<Cell, float>({kFull, 2});
  block<Cell, float>({kPacked, 2});
  block<Cell, float>({kPacked, 2, Save::kBeside, true});
  block<Cell, BFloat>({kPacked, 2});
  block<Cell, Half>({kFull, 1});
  block_forward<Cell, float>({kPacked, 2, Save::kNothing, false, true});
  block_forward<Cell, BFloat>({kFull, 2, Save::kNothing, false, true});
  if (Cell::kSavesGates) block_forward<Cell, float>({kFull, 2, Save::kInPlace});
  streaming<Cell, float>({kPacked, 1});
  streaming<Cell, float>({kPacked, 2});
  streaming<Cell, BFloat>({kFull, 1});
  streaming<Cell, double>({kFull, 2, Cell::kSavesGates ? Save::kInPlace : Save::kNothing});
}

void run_all() {
  store_numbers();
  cell<Lstm>();
  cell<Gru>();
  cell<RnnTanh>();
  // Weights that do not fit into registers lie in shared memory.
  block<Lstm, float>({{3, 2, 70, {}}, 1});
  block<Lstm, float>({{3, 2, 70, {}}, 1, Save::kBeside, true});
  // As many units as a block holds, as many sequences as it takes.
  block<Lstm, BFloat>({{2, 33, 17, {}}, 1});
  block<Gru, BFloat>({{2, 2, 128, {}}, 1});
  streaming<Gru, Half>({{2, 2, 300, {}}, 1});
  layer_norm<double>(70);
  layer_norm<float>(300);
  for (bool reverse : {false, true}) previous_states<float>(reverse), previous_states<BFloat>(reverse);
  rows<double>();
  rows<float>();
  rows<BFloat>();
  rows<Half>();
}

}  // namespace

int main() { return run_checks(run_all); }
