// Truncated BPTT on the CPU: where gradients are cut, the backward scan is too, part by part. What it holds on the way,
// most of all the gradients of the gates, is as large as a part, not as the sequence.
#pragma once

#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>

#include "recurrent/cpu/kernels.h"
#include "recurrent/layer.h"

namespace adl {
namespace {

// Rows of a part, at least: enough for the products of a part, which packs all weights anew.
constexpr int64_t kRowsOfAPart = 1024;

// Steps [begin, end) of one direction.
template <class T>
class BackwardPart {
 public:
  BackwardPart(const CellFacts& cell, const Backward<T>& whole, int64_t begin, int64_t end)
      : cell_(cell), units_(cell.unit_block), whole_(whole), begin_(begin), end_(end) {
    const Sequence& s = whole.sequence;
    first_ = s.offsets[begin];
    for (int64_t t = begin; t <= end; ++t) offsets_.push_back(s.offsets[t] - first_);
  }

  // The part's own arguments. `states` and `grads`: h_0, c_0 and dh_n, dc_n of its size, to be filled; dh_0, dc_0 and
  // the weights' gradients are written to what `p` has.
  void fill(Backward<T>& p, T* h_0, T* c_0, T* dh_n, T* dc_n) {
    const Sequence& s = whole_.sequence;
    p.sequence.T = end_ - begin_, p.sequence.B = s.batch_sizes[begin_], p.sequence.N = offsets_.back();
    p.sequence.batch_sizes = s.batch_sizes + begin_, p.sequence.offsets = offsets_.data();
    const int64_t I = p.weights.I, H = p.weights.H, P = p.weights.P;
    if (s.places) {
      p.sequence.places = s.places + first_;
    } else {
      if (p.sequence.resets) p.sequence.resets += first_;
      p.x += first_ * I, p.y += first_ * p.y_stride;
      if (p.dx) p.dx += first_ * I;
      if (p.dy) p.dy += first_ * p.y_stride;
      if (p.dall_c) p.dall_c += first_ * p.c_stride;
      if (p.extras.zone_h) p.extras.zone_h += first_ * P;
      if (p.extras.zone_c) p.extras.zone_c += first_ * H;
    }
    if (p.gates) p.gates += first_ * (p.weights.ln_ih ? 2 * cell_.gates : cell_.pre) * units_;
    if (p.c) p.c += first_ * units_;
    if (p.h_cell) p.h_cell += first_ * H;

    for (int64_t b = 0; b < p.sequence.B; ++b) {
      const int64_t to = s.order ? s.order[b] : b;
      const int64_t before = row(s.reverse ? end_ : begin_ - 1, b);  // what the part's scan starts from
      const bool fresh = before >= 0 && s.reverse && s.resets && s.resets[place(before)];  // else the scan sees to it
      const T* h = before < 0 ? whole_.h_0 + to * P : whole_.y + place(before) * whole_.y_stride;
      for (int64_t k = 0; k < P; ++k) h_0[to * P + k] = fresh ? T{} : h[k];
      for (int64_t k = 0; k < H && cell_.has_c; ++k)
        c_0[to * H + k] = fresh        ? T{}
                          : before < 0 ? whole_.c_0[to * H + k]
                                       : whole_.c[(k / units_ * whole_.kept_rows + before) * units_ + k % units_];
      const bool ends = row(s.reverse ? begin_ - 1 : end_, b) < 0;  // its final state is that of this part
      for (int64_t k = 0; k < P && dh_n; ++k) dh_n[to * P + k] = ends && whole_.dh_n ? whole_.dh_n[to * P + k] : T{};
      for (int64_t k = 0; k < H && dc_n; ++k) dc_n[to * H + k] = ends && whole_.dc_n ? whole_.dc_n[to * H + k] : T{};
    }
    p.h_0 = h_0, p.c_0 = c_0, p.dh_n = dh_n, p.dc_n = dc_n;
  }

  // The gradients of the initial states of the sequences that start in this part.
  void keep_initial(const T* dh_0, const T* dc_0) const {
    const Sequence& s = whole_.sequence;
    const int64_t H = whole_.weights.H, P = whole_.weights.P;
    for (int64_t b = 0; b < s.batch_sizes[begin_]; ++b) {
      const int64_t to = s.order ? s.order[b] : b;
      if (row(s.reverse ? end_ : begin_ - 1, b) >= 0) continue;
      std::copy_n(dh_0 + to * P, P, whole_.dh_0 + to * P);
      if (cell_.has_c) std::copy_n(dc_0 + to * H, H, whole_.dc_0 + to * H);
    }
  }

 private:
  int64_t row(int64_t t, int64_t b) const {
    const Sequence& s = whole_.sequence;
    return t < 0 || t >= s.T || b >= s.batch_sizes[t] ? -1 : s.offsets[t] + b;
  }
  int64_t place(int64_t row) const { return whole_.sequence.places ? whole_.sequence.places[row] : row; }

  const CellFacts& cell_;
  const int64_t units_;
  const Backward<T>& whole_;
  int64_t begin_, end_, first_;
  std::vector<int64_t> offsets_;
};

// The gradients of the weights of a direction, empty where they are not wanted.
template <class T>
void point_at_gradients(Backward<T>& p, const WeightPlaces& at, const Tensor* dw) {
  const auto of = [&](int place) { return place < 0 ? nullptr : pointer<T>(dw[place]); };
  p.dw_ih = of(at.w_ih), p.dw_hh = of(at.w_hh);
  p.db_ih = of(at.b_ih), p.db_hh = of(at.b_hh);
  p.dw_hr = of(at.w_hr), p.dw_ch = of(at.w_ch);
  p.dln_ih = of(at.ln_ih), p.dln_hh = of(at.ln_hh);
  p.dln_c = of(at.ln_c), p.dln_c_shift = of(at.b_ln_c);
}

// run(part) for all parts of direction d; the gradients of the weights add up in `dw`.
template <class T, class Run>
void backward_in_parts(const Layer& layer, const Backward<T>& whole, int64_t d, const Tensor* dw, Run run) {
  const Sequence& s = whole.sequence;
  const LayerShape& shape = layer.s;
  const Tensor h_0 = at::empty_like(layer.hx[0][d]), dh_n = at::empty_like(h_0), dh_0 = at::empty_like(h_0);
  Tensor c_0, dc_n, dc_0;
  if (layer.cell.has_c) c_0 = at::empty_like(layer.hx[1][d]), dc_n = at::empty_like(c_0), dc_0 = at::empty_like(c_0);
  const at::ScalarType sum_type = layer.type == at::kBFloat16 ? at::kFloat : layer.type;
  Tensors of_part, sums;
  for (int64_t k = 0; k < shape.at.count; ++k) {
    of_part.push_back(dw[k].numel() ? at::empty_like(dw[k]) : dw[k]);
    sums.push_back(dw[k].numel() ? at::zeros_like(dw[k], dw[k].options().dtype(sum_type)) : dw[k]);
  }
  for (int64_t begin = 0; begin < s.T;) {
    int64_t end = begin;
    while (end < s.T && s.offsets[end] - s.offsets[begin] < kRowsOfAPart) end += layer.options.bptt_steps;
    end = std::min(end, s.T);
    BackwardPart<T> part(layer.cell, whole, begin, end);
    Backward<T> p = whole;
    part.fill(p, pointer<T>(h_0), pointer<T>(c_0), pointer<T>(dh_n), pointer<T>(dc_n));
    p.dh_0 = pointer<T>(dh_0), p.dc_0 = pointer<T>(dc_0);
    point_at_gradients(p, shape.at, of_part.data());
    run(p);
    part.keep_initial(p.dh_0, p.dc_0);
    for (int64_t k = 0; k < shape.at.count; ++k)
      if (dw[k].numel()) sums[k].add_(of_part[k]);
    begin = end;
  }
  for (int64_t k = 0; k < shape.at.count; ++k)
    if (dw[k].numel()) dw[k].copy_(sums[k]);
}

}  // namespace
}  // namespace adl
