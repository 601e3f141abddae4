// Plain parameter structs of the recurrent scans: one direction of one layer. No torch here.
//
// Rows are (step, sequence) pairs: step t holds batch_sizes[t] rows from offsets[t] on, as in a
// PackedSequence; a padded batch has batch_sizes[t] == B throughout. Where sequences of a padded batch end early, rows
// and sequences are still counted in this way, the longest sequence first; `places` and `order` say where they lie.
#pragma once

#include <cstdint>

#include "recurrent/cells/number.h"

namespace adl {

// Rows of a call up to which weights are used as they are. A round figure, not tuned: for one row packing costs many
// times the product.
constexpr int64_t kFewRows = 16;

struct Sequence {
  int64_t T;                   // steps
  int64_t B;                   // sequences, == batch_sizes[0] when T > 0
  int64_t N;                   // rows, sum of batch_sizes
  const int64_t* batch_sizes;  // [T] non-increasing
  const int64_t* offsets;      // [T + 1] offsets[t] = sum of batch_sizes[:t]
  bool reverse;                // scan from the last step to the first
  int threads;
  const int64_t* places;  // [N] where each row lies in x, y, their gradients and zoneout's masks; null: row n at n
  const int64_t* order;   // [B] where each sequence lies in the states and the recurrent mask; null: b at b
  const bool* resets;     // at the place of each row, whether a new sequence begins there; null: nowhere
  int64_t bptt_steps;     // gradients do not pass from a multiple of so many steps to the step before; 0: they do
};

// Weights of one direction in PyTorch's layout, gates stacked along the first dimension.
template <class T>
struct Weights {
  int64_t I, H, P;      // input size, hidden size, width of h (== H without projection)
  const T* w_ih;        // [G * H, I]
  const T* w_hh;        // [G * H, P]
  const T* b_ih;        // [G * H] or null
  const T* b_hh;        // [G * H] or null, together with b_ih
  const T* w_hr;        // [P, H] or null: h = w_hr h_cell
  const T* w_ch;        // [kPeepholes, H] or null
  const T* ln_ih;       // [G * H] gains of the layer norms, or all null
  const T* ln_hh;       // [G * H]
  const T* ln_c;        // [H]; null for cells without c
  const T* ln_c_shift;  // [H]; likewise
};

// What a step does to the state besides the cell.
template <class T>
struct Extras {
  Choice choice;
  const T* mask;          // [B, P] multiplies h_{t-1} before W_hh does, or null
  const uint8_t* zone_h;  // [rows, P] 1: h stays as it was; null: `zone[0]` of it stays
  const uint8_t* zone_c;  // [rows, H] likewise c; null for cells without c
  double zone[2];         //
  bool zoneout;           // whether there is any of that
};

// J blocks of U units, `pre` values per unit: see cells.h. With layer norm `gates` are the products instead, from
// which everything else is made again: [J, N, 2 G, U], W_ih x before W_hh h.
template <class T>
struct Forward {
  Sequence sequence;
  Weights<T> weights;
  Extras<T> extras;
  const T* x;        // [rows, I]
  const T* h_0;      // [B, P]
  const T* c_0;      // [B, H]; null for cells without c
  T* y;              // [rows, P], rows y_stride apart
  int64_t y_stride;  //
  T* h_n;            // [B, P]
  T* c_n;            // [B, H]; null for cells without c
  T* all_c;          // [rows, H] c of every step, rows c_stride apart; null: not wanted
  int64_t c_stride;  //
  T* gates;          // [J, N, pre, U] kept for backward; null: not kept
  T* c;              // [J, N, U] kept for backward; null: not kept
  T* h_cell;         // [N, H] h before the projection, kept for backward; null: not kept
  void* packed;      // the weights as the products want them; null: in scratch
  bool is_packed;    // whether they are there already; else the scan puts them there
};

// Gradients that are null on the way in are zero; those null on the way out are not wanted.
template <class T>
struct Backward {
  Sequence sequence;
  Weights<T> weights;
  Extras<T> extras;
  const T* x;          // [rows, I]
  const T* h_0;        // [B, P]
  const T* c_0;        // [B, H]
  const T* y;          // [rows, P], rows y_stride apart
  int64_t kept_rows;   // of the three that follow; more than N where this is a part of a scan
  const T* gates;      // as Forward left them
  const T* c;          //
  const T* h_cell;     //
  const T* dy;         // [rows, P], rows y_stride apart, or null
  int64_t y_stride;    //
  const T* dall_c;     // [rows, H], rows c_stride apart, or null
  int64_t c_stride;    //
  const T* dh_n;       // [B, P] or null
  const T* dc_n;       // [B, H] or null
  T* dx;               // [rows, I] or null
  bool accumulate_dx;  // add to dx, which the other direction wrote
  T* dh_0;             // [B, P]
  T* dc_0;             // [B, H]; null for cells without c
  T* dw_ih;            // [G * H, I] or null
  T* dw_hh;            // [G * H, P] or null
  T* db_ih;            // [G * H] or null
  T* db_hh;            // [G * H] or null
  T* dw_hr;            // [P, H] or null
  T* dw_ch;            // [kPeepholes, H] or null
  T* dln_ih;           // [G * H] or null
  T* dln_hh;           // [G * H] or null
  T* dln_c;            // [H] or null
  T* dln_c_shift;      // [H] or null
};

}  // namespace adl
