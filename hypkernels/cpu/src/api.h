// The library's interface, in plain C: numbers, pointers and strides, no types of PyTorch or Python.
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
  BUSEMANN,
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
  int64_t adds_to_x, adds_to_y;  // backward: whether to what is there, of ops of two points that return a number
  double *by_scale, *by_curv;    // backward: each row's share
  double *scale_total, *curv_total;  // backward: their sums, unless null
  double* kept;                  // KEPT_OF_ROW numbers of each row, from the forward to the backward pass; or null
};

enum { KEPT_OF_ROW = 5 };

enum Similarity { SIM_DIST, SIM_SQDIST, SIM_INNER, SIM_ANGLE };

// A set of points of the contrastive losses. As for rows, every field takes eight bytes.
struct PointSet {
  const void* points;
  int64_t stride, count;  // stride: of rows
  double* table;          // (count, 1 + n_sets): |x|^2 and the products with all centres; forward: written
  void* grad;             // backward: (count, width), dense, of the points' dtype; null: not wanted
};

struct Pairing {
  int64_t x, y;  // indices of sets, M and N points
  int64_t symmetric;       // whether columns have their softmax, too
  const int64_t* targets;  // (M,); null: row i belongs to column i
  double* positives;       // (matrices, M): gaps in units of c^-power; forward: written, as the next two
  double* row_negatives;   // (M,): log-sum-exp over what is no positive
  double* column_negatives;  // (N,); unused if not symmetric
  void* losses;            // forward: (M,), float64 for float64 points, else float32
  const void* grad;        // backward: by the losses, of their dtype
  int64_t grad_stride;
};

// Contrastive losses of pairings of sets that share width, dtype and curvature.
struct Contrastive {
  int64_t dtype, threads, width, n_sets, n_pairings, similarity;
  const PointSet* sets;     // of a caller an argument of its own, as the next
  const Pairing* pairings;
  double c;
  const double* scale;    // one for all rows, or for each
  int64_t scale_stride;
  double* centres;        // (n_sets, width); forward: written
  void* kept;             // from the forward to the backward pass, kept_bytes of it; null: everything is made again
  double *by_curv, *by_scale;  // backward: one number; one or M numbers
};

// A function of all pairs of two sets.
enum PairFunction { PAIR_INNER, PAIR_DIST, PAIR_ANGLE };

struct Pairs {
  int64_t function, dtype, threads, width, M, N;
  const void *x, *y;
  int64_t x_stride, y_stride;  // of rows
  double c;
  void* out;                   // forward: (M, N), dense, float64 for float64 points, else float32
  const void* grad;            // backward: of that dtype
  int64_t grad_row, grad_column;  // its strides
  void *by_x, *by_y;           // backward: dense, of the points' dtype
  double* by_curv;
  void* kept;                  // the pairs' products, from the forward to the backward pass; or null
};

enum PairsDone { PAIRS_OUT_OF_RANGE, PAIRS_DONE, PAIRS_DONE_AND_KEPT };

// A piece of a gallery against a set of queries. The caller keeps the results from piece to piece.
enum SearchMode { SEARCH_NEAREST, SEARCH_COUNT, SEARCH_RANGE, SEARCH_PAIRS };
enum Cone { NO_CONE, CONE_OF_QUERY, CONE_OF_ITEM };

struct Search {
  int64_t mode, query_dtype, dtype, threads, width, Q, N;
  const void *queries, *items;
  int64_t query_stride, stride;  // of rows
  int64_t first;                 // the index of the first item
  int64_t* bad;                  // written: the first row that is not finite, if it was INT64_MAX
  const uint8_t* allowed;        // (N,); null: all
  const int64_t* groups;         // (N,); null: none
  const void* query_groups;      // (Q, n_groups) of bool; or with no n_groups the one of each query, (Q,) of int64
  int64_t n_groups, cone;
  int64_t k, *found, *ids;       // nearest: how many of each query, (Q,); (Q, k), each a heap, the last at its root
  double* z;
  const int64_t* targets;        // count: (Q,)
  int64_t* counts;               // (3, Q): nearer than the limit, as near, and those of them before the target
  const double* limits;          // count and range: (Q,), of z
  int64_t capacity, *n_hits, *hit_queries, *hit_ids;  // range: room for hits, and how many there are, perhaps more
  double* hit_z;
  const int64_t* pair_queries;   // pairs: (N,), the query of each item
  double* pair_z;                // (N,)
  double c, aperture_scale, min_radius;
};

struct Runtime {  // of the process: how PyTorch runs in parallel and multiplies matrices; null where it cannot
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel
  int (*thread_number)(void);                                    // omp_get_thread_num
  int (*team_size)(void);                                        // omp_get_num_threads
  void (*sgemm)(const char*, const char*, const int*, const int*, const int*, const float*, const float*, const int*,
                const float*, const int*, const float*, float*, const int*);
  void (*dgemm)(const char*, const char*, const int*, const int*, const int*, const double*, const double*,
                const int*, const double*, const int*, const double*, double*, const int*);
  int (*product_threads)(int);  // MKL_Set_Num_Threads_Local, where the products are MKL's
};
}

// Each instruction set's copy of the kernels.
struct Api {
  void (*rows)(const Rows&);
  // These two and the next return whether the points are in range; if not, they did nothing.
  bool (*contrastive_forward)(const Contrastive&);
  bool (*contrastive_backward)(const Contrastive&);
  PairsDone (*pairs)(const Pairs&);
  void (*search)(const Search&);
};

extern Runtime hk_runtime;
extern volatile int hk_alone;  // a fork left the parent's threads behind
