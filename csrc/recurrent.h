// Plain parameter structs of the recurrent scans: one direction of one layer. No torch here.
//
// Rows are (step, sequence) pairs: step t holds batch_sizes[t] rows from offsets[t] on, as in a
// PackedSequence; a padded batch has batch_sizes[t] == B throughout.
#pragma once

#include <cstdint>

namespace adl {

struct Sequence {
  int64_t T;                   // steps
  int64_t B;                   // sequences, == batch_sizes[0] when T > 0
  int64_t N;                   // rows, sum of batch_sizes
  const int64_t* batch_sizes;  // [T] non-increasing
  const int64_t* offsets;      // [T + 1] offsets[t] = sum of batch_sizes[:t]
  bool reverse;                // scan from the last step to the first
  int threads;
};

// Weights of one direction in PyTorch's layout, gates stacked along the first dimension.
template <class T>
struct Weights {
  int64_t I, H, P;  // input size, hidden size, width of h (== H without projection)
  const T* w_ih;    // [G * H, I]
  const T* w_hh;    // [G * H, P]
  const T* b_ih;    // [G * H] or null
  const T* b_hh;    // [G * H] or null, together with b_ih
  const T* w_hr;    // [P, H] or null: h = w_hr h_cell
};

// J blocks of U units, `pre` values per unit: see cells.h.
template <class T>
struct Forward {
  Sequence sequence;
  Weights<T> weights;
  const T* x;        // [N, I]
  const T* h_0;      // [B, P]
  const T* c_0;      // [B, H]; null for cells without c
  T* y;              // [N, P], rows y_stride apart
  int64_t y_stride;  //
  T* h_n;            // [B, P]
  T* c_n;            // [B, H]; null for cells without c
  T* gates;          // [J, N, pre, U] kept for backward; null: not kept
  T* c;              // [J, N, U] kept for backward; null: not kept
  T* h_cell;         // [N, H] h before the projection, kept for backward; null: not kept
};

// Gradients that are null on the way in are zero; those null on the way out are not wanted.
template <class T>
struct Backward {
  Sequence sequence;
  Weights<T> weights;
  const T* x;          // [N, I]
  const T* h_0;        // [B, P]
  const T* c_0;        // [B, H]
  const T* y;          // [N, P], rows y_stride apart
  const T* gates;      // as Forward left them
  const T* c;          //
  const T* h_cell;     //
  const T* dy;         // [N, P], rows y_stride apart, or null
  int64_t y_stride;    //
  const T* dh_n;       // [B, P] or null
  const T* dc_n;       // [B, H] or null
  T* dx;               // [N, I] or null
  bool accumulate_dx;  // add to dx, which the other direction wrote
  T* dh_0;             // [B, P]
  T* dc_0;             // [B, H]; null for cells without c
  T* dw_ih;            // [G * H, I] or null
  T* dw_hh;            // [G * H, P] or null
  T* db_ih;            // [G * H] or null
  T* db_hh;            // [G * H] or null
  T* dw_hr;            // [P, H] or null
};

}  // namespace adl
