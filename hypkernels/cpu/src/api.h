// What the library offers, in plain C: numbers, pointers and strides, nothing of PyTorch or Python.
#pragma once
#include <stdint.h>

extern "C" {

enum Dtype { FLOAT64, FLOAT32, BFLOAT16, FLOAT16 };

enum RowOp {
  EXP_MAP0,  // also with a scale
  LOG_MAP0,
  EXP_MAP,
  LOG_MAP,
  INNER,
  DIST,
  DIST0,
  HALF_APERTURE,
  OXY_ANGLE,
  ENTAILMENT,
};

enum { MAX_DIMS = 6 };

// One operand of a batch of rows: where it starts, and how many elements it is from one row to the next along each
// dimension of the batch. The elements of a row are adjacent.
struct Operand {
  const void* data;
  int64_t stride[MAX_DIMS];
};

// One row-wise op over a batch, forward or backward. Outputs are dense, in the order of the batch. Every field takes
// eight bytes: callers fill it as one row of numbers.
struct Rows {
  int64_t op, dtype, backward, threads;
  int64_t width, count;
  int64_t dims, size[MAX_DIMS];  // of the batch, after merging
  Operand x, y, grad;            // y: of two points; grad: backward, of the result's dtype
  Operand scale, curv;           // float64; scale may be null
  double options[4];             // min_radius; or aperture_scale, min_radius, margin, leak
  void* out;                     // forward
  void *by_x, *by_y;             // backward
  double *by_scale, *by_curv;    // backward: each row's share
  double *scale_total, *curv_total;  // backward: their sums, unless null
};

// A function of all pairs of two sets, of a batch of sets: out (batch, M, N).
enum PairFunction { PAIR_INNER, PAIR_DIST, PAIR_ANGLE };

struct Runtime {  // of the process: how PyTorch runs in parallel and multiplies matrices; null where it cannot
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel
  int (*thread_number)(void);                                    // omp_get_thread_num
  int (*team_size)(void);                                        // omp_get_num_threads
  void (*sgemm)(const char*, const char*, const int*, const int*, const int*, const float*, const float*, const int*,
                const float*, const int*, const float*, float*, const int*);
  void (*dgemm)(const char*, const char*, const int*, const int*, const int*, const double*, const double*,
                const int*, const double*, const int*, const double*, double*, const int*);
};
}

// Each instruction set's copy of the kernels.
struct Api {
  void (*rows)(const Rows&);
};

extern Runtime hk_runtime;
extern volatile int hk_alone;  // a fork left the parent's threads behind
