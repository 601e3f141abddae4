// Plain parameter structs of the CUDA scans: one direction of one layer without its projections. No torch here.
//
// Rows are (step, sequence) pairs, as in csrc/recurrent/params.h; G gates and `pre` values per unit: see csrc/cells.
// All pointers are the device's.
#pragma once

#include <cstdint>

#include "common/cuda/types.h"
#include "recurrent/cells/number.h"

namespace adl {

struct Steps {
  int64_t T, B;            // steps, sequences
  const int64_t* offsets;  // [T + 1] first row of each step; null: t * B
  bool reverse;            // scan from the last step to the first
  int64_t begin, end;      // the part of the scan to run, 0 .. T in the order of the scan
  // What a layer asks for besides torch.nn's own, see csrc/recurrent/schema.cpp. Null, 0: it does not.
  const int64_t* lengths = nullptr;  // [B]
  const bool* reset = nullptr;       // [T, B]
  int64_t bptt_steps = 0;            //
};

// Where the state before a step stands: in the rows of another step, or for the sequences from `count` on
// (all of them at the first step of the scan) in h_0 and c_0.
struct Before {
  int64_t row, count;
};

template <class T>
struct ForwardScan {
  Steps steps;
  int64_t H;
  const T* w_hh;      // [G * H, H]
  const T* b_ih;      // [G * H] or null
  const T* b_hh;      // [G * H] or null
  const T* h_0;       // [B, H]
  const T* c_0;       // [B, H]; null for cells without c
  const Acc<T>* gx;   // [rows, G, H] W_ih x, rows gx_stride apart
  int64_t gx_stride;  //
  int64_t gx_first;   // the row of the layer that is the first of gx
  Acc<T>* h;          // [B, H] the state between two parts of the scan; null: nobody reads it
  Acc<T>* c;          // [B, H] likewise; null for cells without c
  T* h_n;             // [B, H] the state after the last part
  T* c_n;             // [B, H] likewise; null for cells without c
  T* h_rounded;       // [B, H] h for the next product of the streaming tier; null: that is h itself, or y
  T* y;               // [N, H], rows y_stride apart
  int64_t y_stride;   //
  T* mail;  // [N, H] y for the blocks of a team, rows mail_stride apart: it may be y; in a grid whole 16 bytes
  int64_t mail_stride;  //
  T* gates;             // [N, pre, H] kept for backward, possibly where gx lies; null: not kept
  T* kept_c;            // [N, H] kept for backward; null: not kept
  Choice choice;        // of cells that leave one
  const T* w_ch;        // [kPeepholes, H] or null
};

template <class T>
struct BackwardScan {
  Steps steps;
  int64_t H;
  const T* w_hh;     // [G * H, H]
  const T* h_0;      // [B, H]
  const T* c_0;      // [B, H]; null for cells without c
  const T* y;        // [N, H], rows y_stride apart
  int64_t y_stride;  //
  const T* gates;    // [N, pre, H] as forward left them; null for cells that keep none
  const T* kept_c;   // [N, H] likewise
  const T* dy;       // [N, H], rows y_stride apart, or null
  const T* dh_n;     // [B, H] or null for zeros
  const T* dc_n;     // [B, H] likewise
  T* dh_0;           // [B, H]
  T* dc_0;           // [B, H]; null for cells without c
  Acc<T>* dh;        // [B, H] dL/dh between two steps of the streaming tier
  Acc<T>* dc;        // [B, H] likewise; null for cells without c
  T* dgates;         // [N, pre, H] gradients of the pre-activations
  T* mail;           // [N, pre, mail_width] dgates for the blocks of a grid, rows of whole 16 bytes: they may be dgates
  int64_t mail_width;  //
  Choice choice;       // of cells that leave one
  const T* w_ch;       // [kPeepholes, H] or null
  Acc<T>* dw_ch;       // [B, kPeepholes, H] what each sequence adds to its gradient, zero at first; or null
};

// What else a layer may ask for. Null: it does not.
template <class T>
struct StepExtras {
  const T* mask;          // [B, P]
  bool zoneout;           //
  const uint8_t* zone_h;  // [N, P]; null: zone[0]
  const uint8_t* zone_c;  // [N, H]; null: zone[1]
  double zone[2];         //
  const T* ln_ih;         // [G * H] gains; then `gates` holds products instead: [N, 2, G, H] W_ih x and W_hh h
  const T* ln_hh;         // [G * H]
  const T* ln_c;          // [H]; null for cells without c
  const T* ln_c_shift;    // [H]
};

template <class T>
struct ForwardExtras : StepExtras<T> {
  T* all_c;          // [N, H], rows c_stride apart
  int64_t c_stride;  //
};

template <class T>
struct BackwardExtras : StepExtras<T> {
  const T* dall_c;   // [N, H], rows c_stride apart
  int64_t c_stride;  //
  // With layer norm; sums as those of w_ch.
  const T* b_ih;  // [G * H] or null
  const T* b_hh;  // [G * H] or null
  T* dproducts;   // [N, 2, G, H] gradients of W_ih x and W_hh h
  Acc<T>* dln;    // [B, 2, G, H] of ln_ih and ln_hh
  Acc<T>* dln_c;  // [B, 2, H] of ln_c and ln_c_shift
};

// The directions of a layer, scanned at the same time.
template <class Scan>
struct Directions {
  int count;
  Scan of[2];
};

}  // namespace adl
