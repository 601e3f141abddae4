// One call on a layer as the CUDA ops see it.
#pragma once

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "recurrent/cuda_tier.h"

namespace adl {
namespace {

// Gates gate .. gate + count - 1 of the weights, whose products are pre-activations pre .. pre + count - 1.
struct Run {
  int64_t gate, pre, count;
};

// Of the gates of a product, whose map this is.
inline std::vector<Run> runs(const CellFacts& cell, const int (&map)[4]) {
  std::vector<Run> out;
  for (int k = 0; k < cell.gates; ++k) {
    if (k > 0 && map[k] == map[k - 1] + 1)
      ++out.back().count;
    else
      out.push_back({k, map[k], 1});
  }
  return out;
}

// Those of W_hh that are one product: those that wait for a reset are another.
inline std::vector<Run> runs_of_hh(const CellFacts& cell) {
  if (cell.resets_before) return {{0, 0, 2}, {2, 2, 1}};
  return runs(cell, cell.hh);
}

template <class T>
struct CudaLayer {
  const char* op;
  const Layer& layer;
  const CellFacts& cell;
  const LayerOptions& options;
  const LayerShape& s;
  const bool tf32;  // whether float32 is multiplied so
  const Device device;
  const cuda::Kernels<T>& kernels;
  const cuda::CellKernels<T>& steps_of;  // the kernels of this cell
  const bool sees;                       // whether W_hh sees something else than h_{t-1}
  const bool extended;                   // whether steps go by the kernels of rows.cuh
  const bool uniform;                    // whether each step has all sequences, and before it is y of the step before
  Tensor offsets;                        // on the device; undefined where all steps have all sequences
  Tensor lengths;                        // on the device, or undefined

  CudaLayer(const char* op, const Layer& layer)
      : op(op),
        layer(layer),
        cell(layer.cell),
        options(layer.options),
        s(layer.s),
        tf32(allows_tf32(layer.s.T)),
        device(layer.x, tf32),
        kernels(cuda::kernels<T>()),
        steps_of(kernels.cells[cell.index]),
        sees(layer.mask.defined() || layer.reset.defined()),
        extended(cell.resets_before || sees || layer.lengths.defined() || layer.has_zoneout || options.layer_norm ||
                 options.all_states || options.bptt_steps),
        uniform(!extended && layer.batch_sizes.front() == layer.batch_sizes.back()) {
    if (layer.batch_sizes.front() != layer.batch_sizes.back()) offsets = on_device(layer.offsets.data(), s.T + 1);
    if (!layer.lengths.defined()) return;
    lengths = layer.lengths;
    if (lengths.device() != layer.x.device()) lengths = on_device(lengths.const_data_ptr<int64_t>(), s.B);
  }

  void check(cudaError_t error) const { check_launch(op, error); }

  Tensor buffer(at::IntArrayRef sizes, at::ScalarType type) const {
    return at::empty(sizes, layer.x.options().dtype(type));
  }
  Tensor on_device(const int64_t* numbers, int64_t count) const {
    const Tensor to = buffer({count}, at::kLong);
    check(cuda::store_numbers(numbers, count, pointer<int64_t>(to), device.stream()));
    return to;
  }

  // x, but zero where there is no step: its gradient is zero there, and zero times NaN would be NaN.
  Tensor x_of_steps() const {
    if (!lengths.defined()) return layer.x;
    return layer.x.masked_fill(at::arange(s.T, lengths.options()).unsqueeze(1).ge(lengths).unsqueeze(2), 0);
  }

  const T* hx(int64_t k, int64_t d) const { return pointer<T>(layer.hx[k], d); }
  // Null for a weight that there is not.
  const T* weight(int64_t d, int place) const { return layer.weight<T>(d, place); }
  const T* w_ih(int64_t d) const { return weight(d, s.at.w_ih); }
  const T* w_hh(int64_t d) const { return weight(d, s.at.w_hh); }
  const T* b_ih(int64_t d) const { return weight(d, s.at.b_ih); }
  const T* b_hh(int64_t d) const { return weight(d, s.at.b_hh); }
  const T* w_hr(int64_t d) const { return weight(d, s.at.w_hr); }

  // Of step t, and of the i-th step of the scan of direction d.
  int64_t row(int64_t t) const { return layer.offsets[t]; }
  int64_t count(int64_t t) const { return layer.batch_sizes[t]; }
  int64_t step(int64_t d, int64_t i) const { return d == 1 ? s.T - 1 - i : i; }
  // The first row of steps begin .. end - 1 of the scan, and how many they have.
  std::pair<int64_t, int64_t> rows(int64_t d, int64_t begin, int64_t end) const {
    const int64_t a = step(d, begin), b = step(d, end - 1), first = row(std::min(a, b));
    return {first, row(std::max(a, b) + 1) - first};
  }
  Before before(int64_t d, int64_t t) const {
    const int64_t other = d == 1 ? t + 1 : t - 1;
    return other < 0 || other >= s.T ? Before{0, 0} : Before{row(other), count(other)};
  }
  Steps steps(int64_t d) const {
    return {s.T,
            s.B,
            pointer<int64_t>(offsets),
            d == 1,
            0,
            s.T,
            pointer<int64_t>(lengths),
            pointer<bool>(layer.reset),
            options.bptt_steps};
  }

  StepExtras<T> extras(int64_t d) const {
    StepExtras<T> x{};
    x.mask = pointer<T>(layer.mask, d);
    x.zoneout = layer.has_zoneout;
    x.zone_h = pointer<uint8_t>(layer.zoneout_h, d);
    x.zone_c = pointer<uint8_t>(layer.zoneout_c, d);
    std::copy_n(layer.zoneout, 2, x.zone);
    x.ln_ih = weight(d, s.at.ln_ih), x.ln_hh = weight(d, s.at.ln_hh);
    x.ln_c = weight(d, s.at.ln_c), x.ln_c_shift = weight(d, s.at.b_ln_c);
    return x;
  }

  // Whether truncated BPTT cuts between step t and the step before it in the scan; and whether it does for every
  // sequence of step t, as far as the host knows: some may begin there in reverse.
  bool truncates(int64_t d, int64_t t) const {
    const int64_t boundary = t + d;
    return options.bptt_steps && boundary > 0 && boundary < s.T && boundary % options.bptt_steps == 0;
  }
  bool truncates_all(int64_t d, int64_t t) const {
    return truncates(d, t) && (d == 0 || (!lengths.defined() && count(t + 1) == count(t)));
  }

  // Numbers in a row of mail of H numbers, see exchange.cuh: whole 16 bytes.
  int64_t mail_width() const {
    constexpr int64_t kUnit = 16 / sizeof(T);
    return (s.H + kUnit - 1) / kUnit * kUnit;
  }
  // Makes `count` rows of mail, `stride` numbers apart, that nobody has stored; numbers that nobody will are zero.
  void clear_mail(T* mail, int64_t stride, int64_t count) const {
    const size_t words = (s.H * sizeof(T) + 3) / 4 * 4, all = mail_width() * sizeof(T), pitch = stride * sizeof(T);
    device.fill(mail, pitch, 0xff, words, count);
    device.fill(reinterpret_cast<char*>(mail) + words, pitch, 0, all - words, count);
  }

  // The tier for this layer; ADL_CUDA_TIER overrules the choice.
  Plan plan(bool backward) const {
    const bool fits = !s.projection && !cell.resets_before && !std::is_same_v<T, double>;
    const bool knows = !layer.mask.defined() && !layer.has_zoneout && !options.layer_norm && !options.all_states;
    const Scanned scanned{s.T,
                          s.B,
                          s.H,
                          int(s.D),
                          cell.gates,
                          cell.pre,
                          arithmetic(layer.type, s.T),
                          backward,
                          fits && !extended,
                          fits && knows};
    const Gpu gpu = device.facts();
    static thread_local Recent<std::pair<Scanned, Gpu>, Plan> recent;
    Plan best = recent.of({scanned, gpu}, [&] { return choose(scanned, gpu); });
    if (const std::optional<Tier> wanted = wanted_tier(op)) {
      best = plan_of(*wanted, scanned, gpu);
      TORCH_CHECK(best.microseconds < kNever, op, ": ADL_CUDA_TIER=", kTierNames[int(*wanted)],
                  " does not serve hidden size ", s.H, " in ", layer.type,
                  s.projection ? " with a projection"
                  : extended   ? " with these options"
                               : "");
    }
    if constexpr (!std::is_same_v<T, double>)
      if (best.tier == Tier::kGrid && !cuda::team_kernels<T>(cell.index).runs_at_once(best, backward))
        best = streaming_plan(scanned);
    return best;
  }

  // All steps of both directions by this plan; false where the blocks of a grid cannot be under way at once.
  bool scan(const Directions<ForwardScan<T>>& d, const Plan& plan) const {
    if constexpr (!std::is_same_v<T, double>)
      if (plan.tier != Tier::kBlock)
        return started(cuda::team_kernels<T>(cell.index).forward(d, plan, kMostPolls, device.stream()));
    return started(steps_of.block_forward(d, tf32, device.facts(), device.stream()));
  }
  bool scan(const Directions<BackwardScan<T>>& d, const Plan& plan) const {
    if constexpr (!std::is_same_v<T, double>)
      if (plan.tier != Tier::kBlock)
        return started(cuda::team_kernels<T>(cell.index).backward(d, plan, kMostPolls, device.stream()));
    return started(steps_of.block_backward(d, tf32, device.facts(), device.stream()));
  }

 private:
  bool started(cudaError_t error) const {
    if (error == cudaErrorCooperativeLaunchTooLarge) return false;
    check(error);
    return true;
  }
};

}  // namespace
}  // namespace adl
