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

template <int n>
std::vector<Run> runs(const int (&map)[n]) {
  std::vector<Run> out;
  for (int k = 0; k < n; ++k) {
    if (k > 0 && map[k] == map[k - 1] + 1)
      ++out.back().count;
    else
      out.push_back({k, map[k], 1});
  }
  return out;
}

// Those of W_hh that are one product: those that wait for a reset are another.
template <class Cell>
std::vector<Run> runs_of_hh() {
  if (Cell::kResetsBefore) return {{0, 0, 2}, {2, 2, 1}};
  return runs(Cell::kHh);
}

template <class Cell, class T>
struct GpuLayer {
  static constexpr int64_t kGates = Cell::kGates;

  const char* op;
  const Layer<Cell>& layer;
  const LayerShape& s;
  const bool tf32;  // whether float32 is multiplied so
  const Device device;
  const cuda::Kernels<T>& kernels;
  const cuda::CellKernels<T>& cell;
  const bool sees;      // whether W_hh sees something else than h_{t-1}
  const bool extended;  // whether steps go by the kernels of rows.cuh
  const bool uniform;   // whether each step has all sequences, and before it is y of the step before
  Tensor offsets;       // on the device; undefined where all steps have all sequences
  Tensor lengths;       // on the device, or undefined

  GpuLayer(const char* op, const Layer<Cell>& layer)
      : op(op),
        layer(layer),
        s(layer.s),
        tf32(allows_tf32(layer.s.T)),
        device(layer.x, tf32),
        kernels(cuda::kernels<T>()),
        cell(kernels.cells[index_of<Cell>()]),
        sees(layer.mask.defined() || layer.reset.defined()),
        extended(Cell::kResetsBefore || sees || layer.lengths.defined() || layer.has_zoneout || layer.layer_norm ||
                 layer.all_states || layer.bptt_steps),
        uniform(!extended && layer.batch_sizes.front() == layer.batch_sizes.back()) {
    if (layer.batch_sizes.front() != layer.batch_sizes.back()) offsets = on_device(layer.offsets.data(), s.T + 1);
    if (!layer.lengths.defined()) return;
    lengths = layer.lengths;
    if (lengths.device() != layer.x.device()) lengths = on_device(lengths.template const_data_ptr<int64_t>(), s.B);
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
  // k < 0: there is none.
  const T* weight(int64_t d, int64_t k) const {
    return k < 0 ? nullptr : pointer<T>(layer.weights[d * s.per_direction + k]);
  }
  const T* w_ih(int64_t d) const { return weight(d, 0); }
  const T* w_hh(int64_t d) const { return weight(d, 1); }
  const T* b_ih(int64_t d) const { return weight(d, s.bias ? 2 : -1); }
  const T* b_hh(int64_t d) const { return weight(d, s.bias ? 3 : -1); }
  const T* w_hr(int64_t d) const { return weight(d, s.w_hr); }

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
            layer.bptt_steps};
  }

  StepExtras<T> extras(int64_t d) const {
    StepExtras<T> x{};
    x.mask = pointer<T>(layer.mask, d);
    x.zoneout = layer.has_zoneout;
    x.zone_h = pointer<uint8_t>(layer.zoneout_h, d);
    x.zone_c = pointer<uint8_t>(layer.zoneout_c, d);
    std::copy_n(layer.zoneout, 2, x.zone);
    if (!layer.layer_norm) return x;
    x.ln_ih = weight(d, s.ln), x.ln_hh = weight(d, s.ln + 1);
    if (Cell::kHasC) x.ln_c = weight(d, s.ln + 2), x.ln_c_shift = weight(d, s.ln + 3);
    return x;
  }

  // Whether truncated BPTT cuts between step t and the step before it in the scan; and whether it does for every
  // sequence of step t, as far as the host knows: some may begin there in reverse.
  bool truncates(int64_t d, int64_t t) const {
    const int64_t boundary = t + d;
    return layer.bptt_steps && boundary > 0 && boundary < s.T && boundary % layer.bptt_steps == 0;
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
    const bool fits = !s.projection && !Cell::kResetsBefore && !std::is_same_v<T, double>;
    const bool knows = !layer.mask.defined() && !layer.has_zoneout && !layer.layer_norm && !layer.all_states;
    const Scanned scanned{s.T,
                          s.B,
                          s.H,
                          int(s.D),
                          int(kGates),
                          Cell::kPre,
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
                  : extended   ? " with what else is asked for"
                               : "");
    }
    if constexpr (!std::is_same_v<T, double>)
      if (best.tier == Tier::kGrid && !cuda::team_kernels<T>(index_of<Cell>()).runs_at_once(best, backward))
        best = streaming_plan(scanned);
    return best;
  }

  // All steps of both directions by this plan; false where the blocks of a grid cannot be under way at once.
  bool scan(const Directions<ForwardScan<T>>& d, const Plan& plan) const {
    if constexpr (!std::is_same_v<T, double>)
      if (plan.tier != Tier::kBlock)
        return started(cuda::team_kernels<T>(index_of<Cell>()).forward(d, plan, kMostPolls, device.stream()));
    return started(cell.block_forward(d, tf32, device.facts(), device.stream()));
  }
  bool scan(const Directions<BackwardScan<T>>& d, const Plan& plan) const {
    if constexpr (!std::is_same_v<T, double>)
      if (plan.tier != Tier::kBlock)
        return started(cuda::team_kernels<T>(index_of<Cell>()).backward(d, plan, kMostPolls, device.stream()));
    return started(cell.block_backward(d, tf32, device.facts(), device.stream()));
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
