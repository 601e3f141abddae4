// Which cell of a tile serves a convolution, and the tiles that it makes.
#pragma once

#include <type_traits>

#include "depthwise/cuda/plane.cuh"

namespace adl::cuda {

// Calls f with a null pointer to the cell for a convolution that tiles serve: of two dimensions, or of any.
template <bool channels_last, bool transposed, class F>
auto with_square(const Conv& c, F f) {
  constexpr int kP = kTileColumns;
  const auto with = [&]<int k>(std::integral_constant<int, k>) {
    if (c.stride[2] == 1)
      return f(static_cast<Cell<Down<k, 1>, Down<k, 1>, tile_rows(k, 1, channels_last), kP>*>(nullptr));
    if constexpr (transposed)
      return f(static_cast<Cell<Up<k>, Up<k>, 4, kP>*>(nullptr));
    else
      return f(static_cast<Cell<Down<k, 2>, Down<k, 2>, tile_rows(k, 2, channels_last), kP>*>(nullptr));
  };
  if (c.kernel[2] == 3) return with(std::integral_constant<int, 3>());
  if (c.kernel[2] == 5) return with(std::integral_constant<int, 5>());
  return with(std::integral_constant<int, 7>());
}
template <bool channels_last, bool transposed, class F>
auto with_cell(const Conv& c, F f) {
  if (!is_1d(c)) return with_square<channels_last, transposed>(c, f);
  if (c.kernel[2] <= 4) return f(static_cast<Cell<Down<1, 1>, UpTo<4>, 1, kTileColumns1d>*>(nullptr));
  return f(static_cast<Cell<Down<1, 1>, UpTo<8>, 1, kTileColumns1d>*>(nullptr));
}

// How many numbers of rows of `width` can be read at once, if a row begins `lead` before a whole unit.
template <class T>
int unit_of(const T* p, int64_t width, int64_t lead) {
  for (int unit = kWideRead; unit > 1; unit /= 2)
    if (width % unit == 0 && lead % unit == 0 && lies_at(p, unit)) return unit;
  return 1;
}

template <class T, class Cell>
PlaneTiles tiles_of(const PlaneSizes& s, int64_t planes, const T* from, const T* to, const T* more) {
  using Shape = PlaneCell<T, Cell>;
  const int lead = Shape::lead(s.pad_x), unit = unit_of(from, s.from_x, Cell::Columns::first(0, s.pad_x) - lead);
  int to_unit = unit_of(to, s.to_x, 0);
  while (more && !lies_at(more, to_unit)) to_unit /= 2;
  PlaneTiles t =
      plane_tiles(planes, s.to_y, s.to_x, Cell::along_y(), Cell::along_x(), Shape::kMostLead, unit, to_unit, sizeof(T));
  t.lead = lead;
  return t;
}

// With channels side by side, what a thread reads at once has to lie so.
template <class T>
bool lies_for_tiles(const Conv& c, const T* a, const T* b, const T* more) {
  return !c.channels_last || (lies_at(a, kLaneChannels) && lies_at(b, kLaneChannels) && lies_at(more, kLaneChannels));
}

}  // namespace adl::cuda
