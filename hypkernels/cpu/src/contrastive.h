// Contrastive losses: tiles of pairs between the products of matrices, four in all, or three where the forward pass
// could keep z. The formulas are those of hypkernels/contrastive/problem.py and tiles.py.
//
// A tile's product is one sequential call by the thread that computes the rest of the tile, in its own cache. Tiles,
// tasks and the orders of sums depend on shapes alone: results do not depend on the number of threads.
//
// Pairs are computed a stage at a time: a rectangle of the pairs of one pairing, or all pairs of several small ones.
// All other memory grows with the number of points, not of pairs.
#pragma once
#include "sides.h"
#include "similarity.h"

namespace {

constexpr int64_t TILE_ROWS = 256, TILE_BYTES = 2048;  // of a row of a tile
constexpr int64_t PUSH_BYTES = int64_t(8) << 20;       // of the weights of a stage
constexpr int64_t CENTRED_BYTES = int64_t(16) << 20;   // of all centred points; if more, each stage makes its own
constexpr int64_t WINDOW_BYTES = int64_t(4) << 20;     // of a stage's own centred points of either set
constexpr int64_t LEAST_WINDOW = 1024;                 // a stage has at least so many points of either set
constexpr int64_t OUT_ROWS = 256;                      // rows of a product with the weights that is one task
constexpr int64_t FEW = 32;                            // terms of a column that are summed in the tile's precision
constexpr int64_t FEW_VECTORS = 16;                    // the same of a row, in vectors
constexpr double LEAST_LOG_SUM = -60, LARGEST_SPREAD = 32, LARGEST_EXPONENT = 64;
// The range of norms times k in which z^2 and z^-2 are finite and points stay apart; beyond it PyTorch computes.
inline double largest_norm(const float*) { return 1.1e9; }
inline double largest_norm(const double*) { return 1e40; }
inline double least_norm(const float*) { return 1e-12; }
inline double least_norm(const double*) { return 1e-60; }
// The largest logit of one unit of the gap for which the rounding of z does no harm; for inner products it is absolute.
constexpr double LARGEST_SCALE = 1024, LARGEST_SCALE_OF_INNER = 128;
inline double largest_inner(const float*) { return 1e6; }  // the largest logit of inner products
inline double largest_inner(const double*) { return 1e12; }
constexpr double FARTHEST_NEAR = 0.6;  // beyond this z nothing cancels in a gap's derivatives

inline double log_add(double a, double b) {
  const double high = a > b ? a : b, low = a > b ? b : a;
  return high == -__builtin_inf() || !(high - low < __builtin_inf()) ? high
                                                                     : high + __builtin_log1p(__builtin_exp(low - high));
}
inline double sigmoid(double x) {
  const double e = __builtin_exp(-absolute(x));
  return x > 0 ? 1 / (1 + e) : e / (1 + e);
}
inline double softplus(double x) { return (x > 0 ? x : 0) + __builtin_log1p(__builtin_exp(-absolute(x))); }

template <class F>
class ContrastiveRun {
  typedef typename Vector<F>::type V;
  typedef typename Vector<F>::mask Mask;
  typedef typename Vector<F>::index Index;
  static constexpr int64_t lanes = Vector<F>::lanes, tile_columns = TILE_BYTES / sizeof(F);
  static constexpr bool wide = sizeof(F) == sizeof(double);

  struct Positive {
    Split<double> split;
    Gradient<double> gradient;
  };

  struct Pair {  // a pairing
    const Pairing* q;
    const Side<F>*x, *y;
    int64_t M, N, ld;
    F *t_x, *t_y;
    F* z;             // of all pairs, kept; or null
    // The rectangle of the stage: its rows and columns, tiles, centred points; the log-sum-exp of each tile's rows and
    // columns, (tiles_j, rows) and (tiles_i, columns); sums of each tile and the weights.
    int64_t i0, i1, j0, j1, tiles_i, tiles_j;
    const F *u_x, *u_y;
    double *part_x, *part_y, *tile_sums;
    F* W;
    int64_t ld_W;
    // Backward: of each row or column.
    double *row_weight, *row_total, *column_weight, *column_total;
    double* by_positive[2];  // by each positive's logit in the first matrix and in the last
    double *gap, *Q, *own_x, *radial, *P, *own_y, excess;  // sums over the negatives
    int64_t *first_row, *rows_of;  // of each column, the rows whose target it is; null: its own
    Positive* positives[2];        // of each row, in the first matrix and in the last

    int64_t target(int64_t i) const { return q->targets ? q->targets[i] : i; }
  };

  struct Tile {
    int64_t i0, j0, rows, columns, ld;
    F *z, *least;  // least: the least z of each row's negatives
    F* held;       // gaps, where they are no functions of z
    int64_t held_ld;
  };

  typedef void (ContrastiveRun::*LogSums)(const Pair&, const Tile&, F level, double* by_row, double* by_column) const;
  typedef void (ContrastiveRun::*Weigh)(const Pair&, const Tile&, F level, const F* row_factor, const F* row_total,
                                        const F* column_factor, const F* column_total, F* W, double* sums) const;

  // The functions that depend on the similarity.
  struct Gap {
    double power;
    F (*of_z)(F);
    double (*of_rows)(const PairGeometry<double>&);
    Gradient<double> (*of_rows_gradient)(double, const PairGeometry<double>&);
    LogSums log_sums, log_sums_apart;
    Weigh weigh[2][2];  // near pairs or not; one level for all or not
  };

  template <class S>
  static Gap gap_by() {
    return {S::power,
            [](F z) { return F(S::gap(all_of(z))[0]); },
            S::of_rows,
            S::of_rows_gradient,
            &ContrastiveRun::log_sums<S>,
            &ContrastiveRun::log_sums_apart<S>,
            {{&ContrastiveRun::weigh<S, wide, false>, &ContrastiveRun::weigh<S, wide, true>},
             {&ContrastiveRun::weigh<S, true, false>, &ContrastiveRun::weigh<S, true, true>}}};
  }

  // Tiles hold laterals, and the gaps in a buffer beside them.
  static Gap gap_of_angle() {
    return {0,
            [](F held) { return held; },
            pair_angle,
            pair_angle_gradient,
            &ContrastiveRun::log_sums<HeldGap>,
            &ContrastiveRun::log_sums_apart<HeldGap>,
            {}};
  }

  static Gap gap_by_name(int64_t similarity) {
    switch (similarity) {
      case SIM_SQDIST: return gap_by<GapOfZ<SquaredDistanceGap>>();
      case SIM_INNER: return gap_by<GapOfZ<NegativeInnerGap>>();
      case SIM_ANGLE: return gap_of_angle();
      default: return gap_by<GapOfZ<DistanceGap>>();
    }
  }

  const Contrastive& q;
  const PointReader<F>& rows;
  const Gap gap;
  const int64_t D;
  const bool is_angle;  // one matrix of logits for rows, another for columns
  const double c, k, unit;  // unit: of gaps, c^-power
  Arena arena;
  Side<F>* sides;
  Pair* pairs;
  double typical = 0, *cosines;
  int64_t tile_rows = TILE_ROWS, table_width, all_pairs = 0, all_points = 0;
  F* window[2] = {};      // centred points of the stage, where not all of them are held
  int64_t in_window = 0;  // points of either set
  int threads;

 public:
  ContrastiveRun(const Contrastive& call, const PointReader<F>* reader)
      : q(call), rows(*reader), gap(gap_by_name(call.similarity)), D(call.width),
        is_angle(call.similarity == SIM_ANGLE), c(call.c), k(root(call.c)),
        unit(gap.power == 0 ? 1 : gap.power == 0.5 ? 1 / k : 1 / c), table_width(1 + call.n_sets),
        threads((int)call.threads) {
    sides = arena.take<Side<F>>(q.n_sets + 1), pairs = arena.take<Pair>(q.n_pairings + 1);
    cosines = arena.take<double>(q.n_sets * q.n_sets + 1);
    int64_t most = 0;
    for (int64_t s = 0; s < q.n_sets; ++s) most = larger_of(q.sets[s].count, most), all_points += q.sets[s].count;
    // Small problems in smaller tiles, so that there are some for each thread.
    const int64_t quarter = up(most * q.n_pairings / 4, 32);
    tile_rows = quarter < 32 ? 32 : at_most(TILE_ROWS, quarter);
    for (int64_t n = 0; n < q.n_pairings; ++n)
      all_pairs += q.sets[q.pairings[n].x].count * q.sets[q.pairings[n].y].count;
    if (all_pairs * D <= SMALL) threads = 1;
  }

  bool forward() {
    lay_out();
    for_tasks(q.n_sets, threads, [&](int64_t s) { find_centre(sides[s], D); });
    for_blocks_of_rows([&](int64_t s, int64_t begin, int64_t end) { fill_table(s, begin, end); });
    if (!in_range()) return false;
    prepare();
    sum_negatives();
    for (int64_t n = 0; n < q.n_pairings; ++n) finish_forward(pairs[n]);
    return true;
  }

  bool backward() {
    lay_out();
    if (!in_range()) return false;
    prepare();
    double by_curv = 0;
    for (int64_t n = 0; n < q.n_pairings; ++n) weigh_rows(pairs[n]), find_positives(pairs[n]);
    gradients();
    for (int64_t n = 0; n < q.n_pairings; ++n) by_curv += finish_scalars(pairs[n]);
    *q.by_curv = by_curv;
    return true;
  }

 private:
  // ---- preparation ---------------------------------------------------------------------------------------------

  // What is kept is z of all pairs, from a multiple of 64 bytes.
  void lay_out() {
    if (all_points * D * (int64_t)sizeof(F) > CENTRED_BYTES) {
      const int64_t fitting = WINDOW_BYTES / (int64_t)sizeof(F) / D / OUT_ROWS * OUT_ROWS;
      in_window = larger_of(fitting, LEAST_WINDOW);
      for (F*& w : window) w = arena.take<F>(in_window * D);
    }
    F* kept = q.kept ? (F*)up((int64_t)q.kept, 64) : nullptr;
    for (int64_t s = 0; s < q.n_sets; ++s) {
      const PointSet& of = q.sets[s];
      Side<F>& side = sides[s];
      side.reader = &rows, side.points = (const char*)of.points, side.stride = of.stride * rows.item;
      side.count = of.count, side.table = of.table;
      side.centre = q.centres + s * D;
      const int64_t padded = up(of.count, LANES) + LANES;
      side.u = in_window ? nullptr : arena.take<F>(of.count * D + 1);
      F** scalars[] = {&side.P, &side.A, &side.inverse_A, &side.apart, &side.growth, &side.shrink};
      for (F** f : scalars) *f = arena.take<F>(padded);
      side.P_wide = arena.take<double>(of.count + 1), side.A_wide = arena.take<double>(of.count + 1);
    }
    for (int64_t n = 0; n < q.n_pairings; ++n) {
      Pair& o = pairs[n];
      o.q = &q.pairings[n], o.x = &sides[o.q->x], o.y = &sides[o.q->y];
      o.M = o.x->count, o.N = o.y->count, o.ld = up(o.N, lanes);
      o.t_x = arena.take<F>(up(o.M, LANES) + LANES), o.t_y = arena.take<F>(up(o.N, LANES) + LANES);
      o.z = kept;
      if (kept) kept += o.M * o.ld;
    }
    in_large_pages(q.kept, (char*)kept - (char*)q.kept);
  }

  template <class Body>
  void for_blocks_of_rows(const Body& body) {
    int64_t tasks = 0;
    for (int64_t s = 0; s < q.n_sets; ++s) tasks += blocks_of(sides[s].count, PREPARED_ROWS);
    for_tasks(tasks, threads, [&](int64_t task) {
      int64_t s = 0;
      for (; task >= blocks_of(sides[s].count, PREPARED_ROWS); ++s) task -= blocks_of(sides[s].count, PREPARED_ROWS);
      body(s, task * PREPARED_ROWS, at_most((task + 1) * PREPARED_ROWS, sides[s].count));
    });
  }

  void fill_table(int64_t s, int64_t begin, int64_t end) {
    const Side<F>& side = sides[s];
    for (int64_t i = begin; i < end; ++i)
      rows.summary(side.row(i), q.centres, q.n_sets, D, side.table + i * table_width);
  }

  bool in_range() const {
    if (!(c >= LEAST_CURV && c <= LARGEST_CURV)) return false;
    const double largest = largest_norm((const F*)nullptr), least = least_norm((const F*)nullptr);
    double farthest = 0;
    bool all = true;
    for (int64_t s = 0; s < q.n_sets; ++s)
      for (int64_t i = 0; i < sides[s].count; ++i) {
        const double P = k * root(sides[s].table[i * table_width]);
        // Only squares of doubles underflow: a square of 0 may be one of them.
        all &= P <= largest && (P >= least || (P == 0 && !wide));
        farthest = P > farthest ? P : farthest;
      }
    double largest_scale = LARGEST_SCALE;
    if (q.similarity == SIM_INNER) {
      largest_scale = largest_inner((const F*)nullptr) / (1 + farthest * farthest);
      if (largest_scale > LARGEST_SCALE_OF_INNER) largest_scale = LARGEST_SCALE_OF_INNER;
    }
    for (int64_t n = 0; n < q.n_pairings; ++n)
      for (int64_t i = 0; i < (q.scale_stride ? pairs[n].M : 1); ++i)
        all &= q.scale[i * q.scale_stride] * unit <= largest_scale;
    return all;
  }

  void prepare() {
    double total = 0, count = 0;
    for (int64_t s = 0; s < q.n_sets; ++s) {
      const int64_t step = sides[s].count > 16 ? sides[s].count / 16 : 1;
      for (int64_t i = 0; i < sides[s].count; i += step, ++count)
        total += __builtin_asinh(k * root(sides[s].table[i * table_width]));
      for (int64_t o = 0; o < q.n_sets; ++o)
        cosines[s * q.n_sets + o] = ReaderOf<double, double>::dot(sides[s].centre, sides[o].centre, D);
    }
    typical = count ? total / count : 0;
    for_blocks_of_rows([&](int64_t s, int64_t begin, int64_t end) {
      prepare_rows(sides[s], begin, end, D, table_width, c, typical);
      for (int64_t n = 0; n < q.n_pairings; ++n) {
        const Pair& o = pairs[n];
        if (o.q->x == s) fill_offsets(o.t_x, s, o.q->y, begin, end);
        if (o.q->y == s) fill_offsets(o.t_y, s, o.q->x, begin, end);
      }
    });
  }

  void fill_offsets(F* offsets, int64_t s, int64_t other, int64_t begin, int64_t end) {
    const double half = (1 + cosines[s * q.n_sets + other]) / 2;
    for (int64_t i = begin; i < end; ++i)
      offsets[i] = (F)(sides[s].P_wide[i] * half - k * sides[s].table[i * table_width + 1 + other]);
    if (end == sides[s].count)
      for (int64_t i = end; i < up(end, LANES) + LANES; ++i) offsets[i] = 0;
  }

  // ---- tiles ---------------------------------------------------------------------------------------------------

  // Minus the logit of row i for one unit of gap over ln 2, in bits. Rounded, so that positives and negatives have the
  // same.
  F bits_per_unit(int64_t i) const { return (F)(q.scale[i * q.scale_stride] * unit); }

  Tile tile_at(const Pair& o, int64_t index, F* buffer) const {
    Tile t;
    t.i0 = o.i0 + index / o.tiles_j * tile_rows, t.j0 = o.j0 + index % o.tiles_j * tile_columns;
    t.rows = at_most(tile_rows, o.i1 - t.i0), t.columns = at_most(tile_columns, o.j1 - t.j0);
    t.least = buffer;
    t.held = buffer + up(tile_rows, LANES), t.held_ld = tile_columns;
    t.z = o.z ? o.z + t.i0 * o.ld + t.j0 : t.held + (is_angle ? tile_rows * tile_columns : 0);
    t.ld = o.z ? o.ld : tile_columns;
    return t;
  }

  int64_t buffer_size() const { return up(tile_rows, LANES) + ((q.kept ? 0 : 1) + is_angle) * tile_rows * tile_columns; }

  // ---- stages --------------------------------------------------------------------------------------------------

  // The pairings [first, last), each with its rectangle.
  struct Stage {
    int64_t first, last;
  };

  // body(stage) for every stage.
  template <class Body>
  void for_stages(const Body& body) {
    const int64_t most = PUSH_BYTES / (int64_t)sizeof(F);
    for (int64_t first = 0, last; first < q.n_pairings; first = last) {
      last = first + 1;
      Pair& o = pairs[first];
      int64_t held = o.M * o.ld;
      if (in_window || held > most) {
        for_rectangles(o, most, [&] { body(Stage{first, last}); });
        continue;
      }
      while (last < q.n_pairings && held + pairs[last].M * pairs[last].ld <= most) {
        held += pairs[last].M * pairs[last].ld;
        ++last;
      }
      for (int64_t n = first; n < last; ++n) set_rectangle(pairs[n], 0, pairs[n].M, 0, pairs[n].N);
      body(Stage{first, last});
    }
  }

  // Memory for the stages, of at most `most` pairs.
  template <class Body>
  void for_rectangles(Pair& o, int64_t most, const Body& body) {
    const int64_t points = in_window ? in_window : most;
    const int64_t columns = at_most(at_most(points, most / OUT_ROWS), up(o.N, tile_columns)) / tile_columns * tile_columns;
    const int64_t rows = at_most(points, most / larger_of(columns, 1)) / OUT_ROWS * OUT_ROWS;
    for (int64_t i = 0; i < o.M; i += rows)
      for (int64_t j = 0; j < o.N; j += columns) {
        set_rectangle(o, i, at_most(i + rows, o.M), j, at_most(j + columns, o.N));
        body();
      }
  }

  void set_rectangle(Pair& o, int64_t i0, int64_t i1, int64_t j0, int64_t j1) const {
    o.i0 = i0, o.i1 = i1, o.j0 = j0, o.j1 = j1;
    o.tiles_i = blocks_of(i1 - i0, tile_rows), o.tiles_j = blocks_of(j1 - j0, tile_columns);
    o.ld_W = up(j1 - j0, lanes);
  }

  // The centred points of a stage.
  void centre(Stage stage) {
    for (int64_t n = stage.first; n < stage.last; ++n) {
      Pair& o = pairs[n];
      o.u_x = in_window ? window[0] : o.x->u + o.i0 * D, o.u_y = in_window ? window[1] : o.y->u + o.j0 * D;
      if (!in_window) continue;
      if (o.j0 == 0) centre_rows(*o.x, o.i0, o.i1, window[0]);
      centre_rows(*o.y, o.j0, o.j1, window[1]);
    }
  }

  void centre_rows(const Side<F>& side, int64_t begin, int64_t end, F* u) {
    for_rows(end - begin, threads, [&](int64_t i) {
      rows.centred(u + i * D, k, side.row(begin + i), side.P_wide[begin + i], side.centre, D);
    });
  }

  struct Job {
    int32_t pairing, index;
  };

  template <class Body>
  void for_tiles(Arena& here, Stage stage, const Body& body) {
    int64_t tasks = 0;
    for (int64_t n = stage.first; n < stage.last; ++n) tasks += pairs[n].tiles_i * pairs[n].tiles_j;
    Job* jobs = here.template take<Job>(tasks + 1);
    tasks = 0;
    for (int64_t n = stage.first; n < stage.last; ++n)
      for (int64_t t = 0; t < pairs[n].tiles_i * pairs[n].tiles_j; ++t) jobs[tasks++] = {(int32_t)n, (int32_t)t};
    for_tasks_with_buffer(tasks, threads, buffer_size() * sizeof(F), [&](int64_t task, void* buffer) {
      Pair& o = pairs[jobs[task].pairing];
      Tile t = tile_at(o, jobs[task].index, (F*)buffer);
      body(o, jobs[task].index, t);
    });
  }

  static Mask negatives(int64_t left, int64_t positive, Mask numbers) {  // lanes that hold one
    return (numbers < (Index)left) & (numbers != (Index)positive);
  }
  // Whether a vector holds nothing else. `left`: columns from its first to the tile's end; `positive`: its lane, if any.
  static bool whole(int64_t left, int64_t positive) { return (left >= lanes) & ((uint64_t)positive >= (uint64_t)lanes); }
  int64_t positive_in(const Pair& o, const Tile& t, int64_t i) const {  // column in the tile, or none
    const int64_t j = o.target(t.i0 + i) - t.j0;
    return j >= 0 && j < t.columns ? j : -(lanes + 1) - t.columns;
  }

  // z of all pairs, and the least z of each row's negatives, infinite if there are none. A positive gets that least z.
  void fill_z(const Pair& o, const Tile& t) const {
    product_of_rows<F>(t.rows, t.columns, D, o.u_x + (t.i0 - o.i0) * D, o.u_y + (t.j0 - o.j0) * D, t.z,
                       t.ld);
    const Mask numbers = lane_numbers<F>();
    const F *Q = o.y->P + t.j0, *t_y = o.t_y + t.j0, *growth = o.y->growth + t.j0, *shrink = o.y->shrink + t.j0;
    for (int64_t i = 0; i < t.rows; ++i) {
      F* z = t.z + i * t.ld;
      const int64_t r = t.i0 + i, positive = positive_in(o, t, i);
      const V P = all_of(o.x->P[r]), t_x = all_of(o.t_x[r]), g = all_of(o.x->growth[r]);
      const V half = all_of(F(o.x->shrink[r] * F(0.70710678118654752440)));
      V low = all_of(F(__builtin_inf()));
      for (int64_t j = 0; j < t.columns; j += lanes) {
        const V lateral = t_x * load(Q + j) + (P * load(t_y + j) - load(z + j));
        const V chord = (load(growth + j) - g) * (half * load(shrink + j));
        const V value = larger(lateral, V{}) + (is_angle ? V{} : chord * chord);
        if (whole(t.columns - j, positive - j)) {
          low = smaller(low, value);
          store(z + j, value);
        } else {
          const Mask mask = negatives(t.columns - j, positive - j, numbers);
          low = smaller(low, mask ? value : all_of(F(__builtin_inf())));
          store(z + j, mask ? value : all_of(F(1)));
        }
      }
      t.least[i] = least_lane(low);
      set_positive(t, i, positive);
    }
  }

  static void set_positive(const Tile& t, int64_t i, int64_t positive) {
    if (positive >= 0) t.z[i * t.ld + positive] = t.least[i] < F(__builtin_inf()) ? t.least[i] : F(1);
  }

  void find_least(const Tile& t) const {  // of z that was kept
    const Mask numbers = lane_numbers<F>();
    for (int64_t i = 0; i < t.rows; ++i) {
      const F* z = t.z + i * t.ld;
      V low = all_of(F(__builtin_inf()));
      for (int64_t j = 0; j < t.columns; j += lanes)
        low = smaller(low, numbers < (Index)(t.columns - j) ? load(z + j) : low);
      t.least[i] = least_lane(low);
    }
  }

  // The greatest logit of a tile's negatives, in bits below 0; infinite if there are none.
  F level_of(const Tile& t) const {
    const F none = F(__builtin_inf());
    F level = none, least = none;
    for (int64_t i = 0; i < t.rows; ++i) {
      least = at_least(least, t.least[i]);
      if (q.scale_stride && t.least[i] < none) level = at_least(level, level_of_row(t, i));
    }
    if (q.scale_stride || !(least < none)) return level;
    return bits_per_unit(t.i0) * gap.of_z(least);
  }

  F level_of_row(const Tile& t, int64_t i) const {
    return bits_per_unit(t.i0 + i) * gap.of_z(t.least[i]);
  }

  static F at_least(F a, F b) { return b < a ? b : a; }

  // ---- forward -------------------------------------------------------------------------------------------------

  void sum_negatives() {
    for (int64_t n = 0; n < q.n_pairings; ++n) {
      const Pair& o = pairs[n];
      for (int64_t i = 0; i < o.M; ++i) o.q->row_negatives[i] = -__builtin_inf();
      for (int64_t j = 0; o.q->symmetric && j < o.N; ++j) o.q->column_negatives[j] = -__builtin_inf();
    }
    for_stages([&](Stage stage) {
      Arena here;
      centre(stage);
      for (int64_t n = stage.first; n < stage.last; ++n) {
        Pair& o = pairs[n];
        o.part_x = here.take<double>(o.tiles_j * (o.i1 - o.i0) + 1);
        o.part_y = here.take<double>(o.tiles_i * (o.j1 - o.j0) + 1);
      }
      for_tiles(here, stage, [&](Pair& o, int64_t index, Tile& t) { forward_tile(o, index, t); });
      for (int64_t n = stage.first; n < stage.last; ++n) add_negatives(pairs[n]);
    });
  }

  void add_negatives(const Pair& o) {
    const int64_t M = o.i1 - o.i0, N = o.j1 - o.j0;
    for_rows(M, threads, [&](int64_t i) {
      double& total = o.q->row_negatives[o.i0 + i];
      for (int64_t t = 0; t < o.tiles_j; ++t) total = log_add(total, o.part_x[t * M + i]);
    });
    for_rows(o.q->symmetric ? N : 0, threads, [&](int64_t j) {
      double& total = o.q->column_negatives[o.j0 + j];
      for (int64_t t = 0; t < o.tiles_i; ++t) total = log_add(total, o.part_y[t * N + j]);
    });
  }

  void forward_tile(Pair& o, int64_t index, Tile& t) {
    fill_z(o, t);
    double* by_row = o.part_x + index % o.tiles_j * (o.i1 - o.i0) + t.i0 - o.i0;
    double* by_column = o.part_y + index / o.tiles_j * (o.j1 - o.j0) + t.j0 - o.j0;
    if (!is_angle) return log_sums_of(o, t, by_row, by_column);
    alignas(64) double unused[TILE_ROWS > tile_columns ? TILE_ROWS : tile_columns];
    for (int64_t m = 0; m <= last_matrix(o); ++m) {
      const Tile held = hold_angles(o, t, m);
      log_sums_of(o, held, m ? unused : by_row, m ? by_column : unused);
    }
  }

  // A tile of the angles at the rows' points, or at the columns', over ln 2.
  Tile hold_angles(const Pair& o, const Tile& t, int64_t matrix) const {
    const Mask numbers = lane_numbers<F>();
    for (int64_t i = 0; i < t.rows; ++i) {
      const int64_t positive = positive_in(o, t, i);
      V low = all_of(F(__builtin_inf()));
      for (int64_t j = 0; j < t.columns; j += lanes) {
        const V value = angle_at(o, t, i, j, matrix).angle() * F(1 / LN2);
        low = smaller(low, negatives(t.columns - j, positive - j, numbers) ? value : low);
        store(t.held + i * t.held_ld + j, value);
      }
      t.least[i] = least_lane(low);
    }
    Tile held = t;
    held.z = t.held, held.ld = t.held_ld;
    return held;
  }

  AngleGap<V> angle_at(const Pair& o, const Tile& t, int64_t i, int64_t j, int64_t matrix) const {
    const int64_t r = t.i0 + i, s = t.j0 + j;
    const V w = load(t.z + i * t.ld + j), P = all_of(o.x->P[r]), A = all_of(o.x->A[r]);
    const V Q = load(o.y->P + s), B = load(o.y->A + s);
    const V chord = (load(o.y->growth + s) - o.x->growth[r]) * (o.x->shrink[r] * load(o.y->shrink + s));
    return matrix ? AngleGap<V>(w, -chord, Q, B, P, A) : AngleGap<V>(w, chord, P, A, Q, B);
  }

  void log_sums_of(const Pair& o, const Tile& t, double* by_row, double* by_column) const {
    const F level = level_of(t);
    if (!(level < F(__builtin_inf()))) {
      for (int64_t i = 0; i < t.rows; ++i) by_row[i] = -__builtin_inf();
      for (int64_t j = 0; o.q->symmetric && j < t.columns; ++j) by_column[j] = -__builtin_inf();
      return;
    }
    (this->*gap.log_sums)(o, t, level, by_row, by_column);
    double low = __builtin_inf();
    for (int64_t i = 0; i < t.rows; ++i) low = by_row[i] < low ? by_row[i] : low;
    for (int64_t j = 0; o.q->symmetric && j < t.columns; ++j) low = by_column[j] < low ? by_column[j] : low;
    if (!(low + level * LN2 > LEAST_LOG_SUM)) (this->*gap.log_sums_apart)(o, t, level, by_row, by_column);
  }

  // log-sum-exp over the tile's negatives of each row and of each column, by one exponential for both.
  template <class S>
  void log_sums(const Pair& o, const Tile& t, F level, double* by_row, double* by_column) const {
    const Mask numbers = lane_numbers<F>();
    const V top = all_of(level);
    const bool columns = o.q->symmetric;
    alignas(64) F few[tile_columns] = {};
    alignas(64) double all[tile_columns] = {};
    for (int64_t i = 0; i < t.rows; ++i) {
      const F* z = t.z + i * t.ld;
      const int64_t positive = positive_in(o, t, i);
      const V slope = all_of(bits_per_unit(t.i0 + i));
      WideSum all_of_row;
      V total = {};
      for (int64_t j = 0; j < t.columns; j += lanes) {
        if (j % (FEW_VECTORS * lanes) == 0) all_of_row.add(total), total = V{};
        V term = power_of_2(less_product(top, slope, S::gap(load(z + j))));
        if (!whole(t.columns - j, positive - j)) term = negatives(t.columns - j, positive - j, numbers) ? term : V{};
        total += term;
        if (columns) store(few + j, load(few + j) + term);
      }
      all_of_row.add(total);
      by_row[i] = __builtin_log(all_of_row.total()) - level * LN2;
      if (columns && (i % FEW == FEW - 1 || i == t.rows - 1))
        for (int64_t j = 0; j < tile_columns; ++j) all[j] += few[j], few[j] = 0;
    }
    for (int64_t j = 0; columns && j < t.columns; ++j) by_column[j] = __builtin_log(all[j]) - level * LN2;
  }

  // The same if one exponential for all would lose terms: each row and column has its own level.
  template <class S>
  void log_sums_apart(const Pair& o, const Tile& t, F, double* by_row, double* by_column) const {
    const Mask numbers = lane_numbers<F>();
    const V none = all_of(F(__builtin_inf()));
    alignas(64) F least[tile_columns], few[tile_columns] = {};
    alignas(64) double all[tile_columns] = {};
    for (int64_t j = 0; j < tile_columns; j += lanes) store(least + j, none);
    for (int64_t i = 0; i < t.rows; ++i) {
      const F* z = t.z + i * t.ld;
      const int64_t positive = positive_in(o, t, i);
      const V slope = all_of(bits_per_unit(t.i0 + i));
      const bool any = t.least[i] < F(__builtin_inf());
      const F level = any ? level_of_row(t, i) : F(0);
      V total = {};
      for (int64_t j = 0; j < t.columns; j += lanes) {
        const Mask mask = negatives(t.columns - j, positive - j, numbers);
        const V of_pair = S::gap(load(z + j));
        total += mask ? power_of_2(less_product(all_of(level), slope, of_pair)) : V{};
        store(least + j, smaller(load(least + j), mask ? slope * of_pair : none));
      }
      by_row[i] = any ? __builtin_log(sum(total)) - level * LN2 : -__builtin_inf();
    }
    for (int64_t i = 0; o.q->symmetric && i < t.rows; ++i) {
      const F* z = t.z + i * t.ld;
      const int64_t positive = positive_in(o, t, i);
      const V slope = all_of(bits_per_unit(t.i0 + i));
      for (int64_t j = 0; j < t.columns; j += lanes) {
        const Mask mask = negatives(t.columns - j, positive - j, numbers);
        const V term = power_of_2(less_product(load(least + j), slope, S::gap(load(z + j))));
        store(few + j, load(few + j) + (mask ? term : V{}));
      }
      if (i % FEW == FEW - 1 || i == t.rows - 1)
        for (int64_t j = 0; j < tile_columns; ++j) all[j] += few[j], few[j] = 0;
    }
    for (int64_t j = 0; o.q->symmetric && j < t.columns; ++j)
      by_column[j] = least[j] < F(__builtin_inf()) ? __builtin_log(all[j]) - least[j] * LN2 : -__builtin_inf();
  }

  void finish_forward(Pair& o) {
    const Pairing& of = *o.q;
    for_rows(o.M, threads, [&](int64_t i) {
      const void *x = o.x->row(i), *y = o.y->row(o.target(i));
      of.positives[i] = gap.of_rows(pair_geometry(rows.split(x, y, D), c)) / unit;
      if (last_matrix(o)) of.positives[o.M + i] = gap.of_rows(pair_geometry(rows.split(y, x, D), c)) / unit;
    });
    double* rivals = o.q->symmetric ? arena.take<double>(o.M + 1) : nullptr;
    if (o.q->symmetric) column_sums(o, rivals, nullptr);
    for (int64_t i = 0; i < o.M; ++i) {
      double loss = softplus(of.row_negatives[i] - logit_of_positive(o, i, 0));
      if (o.q->symmetric) loss = (loss + softplus(rivals[i] - logit_of_positive(o, i, last_matrix(o)))) / 2;
      if (wide) ((double*)of.losses)[i] = loss;
      else ((float*)of.losses)[i] = (float)loss;
    }
  }

  int64_t last_matrix(const Pair& o) const { return is_angle && o.q->symmetric ? 1 : 0; }
  double logit_of_positive(const Pair& o, int64_t i, int64_t matrix) const {
    return -(double)bits_per_unit(i) * o.q->positives[matrix * o.M + i];
  }

  // log-sum-exp of each row's column without its positive, (M,), and of whole columns, (N,). If rows share a target,
  // each is a negative of the others in that column.
  void column_sums(const Pair& o, double* rivals, double* totals) {
    const double* negatives = o.q->column_negatives;
    if (!o.q->targets) {
      for (int64_t i = 0; i < o.M; ++i) rivals[i] = negatives[i];
      for (int64_t j = 0; totals && j < o.N; ++j)
        totals[j] = j < o.M ? log_add(negatives[j], logit_of_positive(o, j, last_matrix(o))) : negatives[j];
      return;
    }
    double *top = arena.take<double>(o.N + 1), *mass = arena.zeros<double>(o.N + 1);
    double* logits = arena.take<double>(o.M + 1);  // each rounded once: subtracting a row's own must leave 0
    for (int64_t j = 0; j < o.N; ++j) top[j] = -__builtin_inf();
    for (int64_t i = 0; i < o.M; ++i) {
      logits[i] = logit_of_positive(o, i, last_matrix(o));
      double& of = top[o.target(i)];
      of = logits[i] > of ? logits[i] : of;
    }
    for (int64_t i = 0; i < o.M; ++i) mass[o.target(i)] += __builtin_exp(logits[i] - top[o.target(i)]);
    for (int64_t i = 0; i < o.M; ++i) {
      const int64_t j = o.target(i);
      const double others = mass[j] - __builtin_exp(logits[i] - top[j]);
      rivals[i] = others > 0 ? log_add(negatives[j], top[j] + __builtin_log(others)) : negatives[j];
    }
    for (int64_t j = 0; totals && j < o.N; ++j)
      totals[j] = mass[j] > 0 ? log_add(negatives[j], top[j] + __builtin_log(mass[j])) : negatives[j];
  }

  // ---- backward ------------------------------------------------------------------------------------------------

  double upstream(const Pair& o, int64_t i) const {
    const int64_t at = i * o.q->grad_stride;
    const double g = wide ? ((const double*)o.q->grad)[at] : ((const float*)o.q->grad)[at];
    return g / (o.q->symmetric ? 2 : 1);
  }

  // The gradient of the loss by each negative l_ij is row_weight_i exp(l_ij - row_total_i) plus the same of its column;
  // by_positive is that by the positive's logit.
  void weigh_rows(Pair& o) {
    const Pairing& of = *o.q;
    double** of_rows[] = {&o.row_weight, &o.row_total, &o.by_positive[0], &o.gap, &o.Q, &o.own_x, &o.radial};
    for (double** d : of_rows)
      *d = arena.zeros<double>(o.M + 1);
    double** of_columns[] = {&o.column_weight, &o.column_total, &o.P, &o.own_y};
    for (double** d : of_columns) *d = arena.zeros<double>(o.N + 1);
    o.excess = 0;
    o.by_positive[1] = last_matrix(o) ? arena.zeros<double>(o.M + 1) : o.by_positive[0];
    o.first_row = o.rows_of = nullptr;
    double* rivals = o.q->symmetric ? arena.take<double>(o.M + 1) : nullptr;
    if (o.q->symmetric) column_sums(o, rivals, o.column_total);
    for (int64_t i = 0; i < o.M; ++i) {
      const double w = o.row_weight[i] = upstream(o, i), positive = logit_of_positive(o, i, 0);
      o.row_total[i] = log_add(of.row_negatives[i], positive);
      o.by_positive[0][i] = -w * sigmoid(of.row_negatives[i] - positive);
      if (o.q->symmetric) o.column_weight[o.target(i)] += w;
    }
    for (int64_t i = 0; o.q->symmetric && i < o.M; ++i) {
      const double w = o.row_weight[i], positive = logit_of_positive(o, i, last_matrix(o));
      o.by_positive[1][i] -= w * sigmoid(rivals[i] - positive);
      if (of.targets) o.by_positive[1][i] += (o.column_weight[o.target(i)] - w) * sigmoid(positive - rivals[i]);
    }
    if (!of.targets) return;
    o.first_row = arena.zeros<int64_t>(o.N + 2), o.rows_of = arena.take<int64_t>(o.M + 1);
    for (int64_t i = 0; i < o.M; ++i) ++o.first_row[o.target(i) + 2];
    for (int64_t j = 0; j < o.N; ++j) o.first_row[j + 2] += o.first_row[j + 1];
    for (int64_t i = 0; i < o.M; ++i) o.rows_of[o.first_row[o.target(i) + 1]++] = i;
  }

  // Sums of a tile: for its rows gap, Q, own, radial; for its columns P, own; and the excess of all pairs.
  int64_t tile_doubles() const { return 4 * tile_rows + 2 * tile_columns + 1; }

  void gradients() {
    int64_t weights = 0;
    for (int64_t n = 0; n < q.n_pairings; ++n) weights += pairs[n].M * pairs[n].ld;
    F* W = arena.take<F>(at_most(weights, PUSH_BYTES / (int64_t)sizeof(F)) + 1);
    Output* outputs = arena.take<Output>(q.n_sets + 1);
    int64_t blocks = 0;
    for (int64_t s = 0; s < q.n_sets; ++s) {
      const bool in_place = rows.item == sizeof(F);
      in_large_pages(q.sets[s].grad, sides[s].count * D * rows.item);
      F* G = !q.sets[s].grad ? nullptr : in_place ? (F*)q.sets[s].grad : arena.take<F>(sides[s].count * D + 1);
      outputs[s] = {G, arena.zeros<bool>(blocks_of(sides[s].count, OUT_ROWS) + 1)};
      blocks += blocks_of(sides[s].count, OUT_ROWS);
    }
    Job* jobs = arena.take<Job>(blocks + 1);
    for_stages([&](Stage stage) {
      Arena here;
      centre(stage);
      F* next = W;
      for (int64_t n = stage.first; n < stage.last; ++n) {
        Pair& o = pairs[n];
        o.W = next, next += (o.i1 - o.i0) * o.ld_W;
        o.tile_sums = here.take<double>(o.tiles_i * o.tiles_j * tile_doubles() + 1);
      }
      for_tiles(here, stage, [&](Pair& o, int64_t index, Tile& t) { weigh_tile(o, index, t); });
      const int64_t n_jobs = list_blocks(jobs, outputs, stage);
      for_tasks(n_jobs, threads, [&](int64_t task) {
        add_products(stage, jobs[task].pairing, jobs[task].index, outputs[jobs[task].pairing]);
      });
      for (int64_t n = stage.first; n < stage.last; ++n) sum_tiles(pairs[n]);
    });
    const int64_t n_jobs = list_blocks(jobs, outputs, {0, 0});
    for_tasks_with_buffer(n_jobs, threads, D * sizeof(double), [&](int64_t task, void* buffer) {
      finish_block(jobs[task].pairing, jobs[task].index, outputs[jobs[task].pairing], (double*)buffer);
    });
  }

  // A set's gradient in units of k, as far as it is added up, and which of its blocks of OUT_ROWS have been begun.
  struct Output {
    F* G;
    bool* begun;
  };

  void weigh_tile(Pair& o, int64_t index, Tile& t) {
    F* W = o.W + (t.i0 - o.i0) * o.ld_W + t.j0 - o.j0;
    if (!o.z) fill_z(o, t);
    else if (!is_angle) find_least(t);
    double* sums = o.tile_sums + index * tile_doubles();
    for (int64_t n = 0; n < tile_doubles(); ++n) sums[n] = 0;
    if (!is_angle) return backward_tile(o, t, 0, W, sums);
    for (int64_t m = 0; m <= last_matrix(o); ++m) backward_tile(o, hold_angles(o, t, m), m, W, sums, &t);
  }

  // Whether the rectangle has pairs of the rows, or of the columns, from `begin` of a set.
  static bool has_rows(const Pair& o, int64_t s, int64_t begin) {
    return o.q->x == s && begin >= o.i0 && begin < o.i1 && o.j0 < o.j1;
  }
  static bool has_columns(const Pair& o, int64_t s, int64_t begin) {
    return o.q->y == s && begin >= o.j0 && begin < o.j1 && o.i0 < o.i1;
  }

  // The blocks of the gradients that are wanted, all or, of a stage that has pairings, those that it adds to.
  int64_t list_blocks(Job* jobs, const Output* outputs, Stage stage) const {
    int64_t count = 0;
    for (int64_t s = 0; s < q.n_sets; ++s)
      for (int64_t b = 0; outputs[s].G && b < blocks_of(sides[s].count, OUT_ROWS); ++b) {
        bool takes = stage.first == stage.last;
        for (int64_t n = stage.first; n < stage.last; ++n)
          takes |= has_rows(pairs[n], s, b * OUT_ROWS) || has_columns(pairs[n], s, b * OUT_ROWS);
        if (takes) jobs[count++] = {(int32_t)s, (int32_t)b};
      }
    return count;
  }

  // Adds what the weights of a stage give to a block of a set's gradient. Rectangles end with blocks.
  void add_products(Stage stage, int64_t s, int64_t block, const Output& out) {
    const int64_t begin = block * OUT_ROWS, count = at_most(OUT_ROWS, sides[s].count - begin);
    F* G = out.G + begin * D;
    bool& begun = out.begun[block];
    for (int64_t n = stage.first; n < stage.last; ++n) {
      const Pair& o = pairs[n];
      if (!has_columns(o, s, begin)) continue;
      add_transposed_product<F>(count, D, o.i1 - o.i0, (F)k, o.W + begin - o.j0, o.ld_W, o.u_x, !begun, G);
      begun = true;
    }
    for (int64_t n = stage.first; n < stage.last; ++n) {
      const Pair& o = pairs[n];
      if (!has_rows(o, s, begin)) continue;
      add_product<F>(count, D, o.j1 - o.j0, (F)k, o.W + (begin - o.i0) * o.ld_W, o.ld_W, o.u_y, !begun, G);
      begun = true;
    }
  }

  void finish_block(int64_t s, int64_t block, const Output& out, double* row) {
    const int64_t begin = block * OUT_ROWS, end = at_most(begin + OUT_ROWS, sides[s].count);
    if (!out.begun[block]) memset((void*)(out.G + begin * D), 0, (end - begin) * D * sizeof(F));
    for (int64_t i = begin; i < end; ++i)
      finish_row(s, i, out.G + i * D, (char*)q.sets[s].grad + i * D * rows.item, row);
  }

  // Of an angle the directions in which the matrix has no softmax have no weights, and `laterals` are the tile's.
  void backward_tile(const Pair& o, const Tile& t, int64_t matrix, F* W, double* sums, const Tile* laterals = nullptr) {
    F level = level_of(t);
    const bool by_row = !matrix, by_column = o.q->symmetric && (!is_angle || matrix);
    alignas(64) F row_factor[TILE_ROWS], row_total[TILE_ROWS], column_factor[tile_columns], column_total[tile_columns];
    const bool any = level < F(__builtin_inf());
    if (!any) level = 0;
    const double high = -level * LN2;
    double spread = -__builtin_inf();
    for (int64_t i = 0; i < t.rows; ++i) {
      const double d = high - o.row_total[t.i0 + i];
      spread = d > spread ? d : spread, row_factor[i] = (F)(o.row_weight[t.i0 + i] * __builtin_exp(d));
    }
    if (!by_row) spread = -__builtin_inf();
    for (int64_t j = 0; j < up(t.columns, lanes); ++j) {
      column_factor[j] = column_total[j] = 0;
      if (!by_column || j >= t.columns) continue;
      const double d = high - o.column_total[t.j0 + j];
      spread = d > spread ? d : spread, column_factor[j] = (F)(o.column_weight[t.j0 + j] * __builtin_exp(d));
    }
    const bool apart = any && !(spread < LARGEST_SPREAD);
    if (apart) {  // totals in bits; what they lose by rounding goes into the weights
      for (int64_t i = 0; i < t.rows; ++i)
        split_total(o.row_total[t.i0 + i], o.row_weight[t.i0 + i], row_total[i], row_factor[i]);
      for (int64_t j = 0; by_column && j < t.columns; ++j)
        split_total(o.column_total[t.j0 + j], o.column_weight[t.j0 + j], column_total[j], column_factor[j]);
    }
    for (int64_t i = 0; !by_row && i < t.rows; ++i) row_factor[i] = row_total[i] = 0;
    if (is_angle)
      return weigh_angles(o, *laterals, matrix, apart, level, row_factor, row_total, column_factor, column_total, W, sums);
    F least = F(__builtin_inf());
    for (int64_t i = 0; i < t.rows; ++i) least = at_least(least, t.least[i]);
    const bool near = wide || least < F(FARTHEST_NEAR);
    (this->*gap.weigh[near][apart])(o, t, level, row_factor, row_total, column_factor, column_total, W, sums);
  }

  static void split_total(double total, double weight, F& bits, F& factor) {
    if (!(total > -__builtin_inf())) {  // nothing to share
      bits = factor = 0;
      return;
    }
    const double exact = -total / LN2;
    bits = (F)exact, factor = (F)(weight * __builtin_exp2(exact - (double)bits));
  }

  template <class S, bool NEAR, bool APART>
  void weigh(const Pair& o, const Tile& t, F level, const F* row_factor, const F* row_total, const F* column_factor,
             const F* column_total, F* W, double* sums) const {
    const Mask numbers = lane_numbers<F>();
    const V top = all_of(level), limit = all_of(F(LARGEST_EXPONENT));
    const F coarse = F(RESOLUTION_ULPS * epsilon_of((const F*)nullptr));
    alignas(64) F few_P[tile_columns] = {}, few_own[tile_columns] = {};
    double *gaps = sums, *Qs = sums + tile_rows, *owns = sums + 2 * tile_rows, *radials = sums + 3 * tile_rows;
    double *Ps = sums + 4 * tile_rows, *own_columns = Ps + tile_columns, excess = 0;
    const F *Q = o.y->P + t.j0, *B = o.y->A + t.j0, *inverse_B = o.y->inverse_A + t.j0, *apart = o.y->apart + t.j0;
    for (int64_t i = 0; i < t.rows; ++i) {
      const F* z = t.z + i * t.ld;
      F* w = W + i * o.ld_W;
      const int64_t r = t.i0 + i, positive = positive_in(o, t, i);
      const V slope = all_of(bits_per_unit(r)), factor = all_of(row_factor[i]), total = all_of(row_total[i]);
      PointTerms<V> x = {}, y = {};
      x.P = all_of(o.x->P[r]), x.A = all_of(o.x->A[r]), x.apart = all_of(o.x->apart[r]);
      V of_gap = {}, of_Q = {}, of_own = {}, of_radial = {}, of_excess = {};
      WideSum gap_sum, Q_sum, own_sum, radial_sum, excess_sum;
      const auto widen_sums = [&] {
        gap_sum.add(of_gap), Q_sum.add(of_Q), own_sum.add(of_own), radial_sum.add(of_radial), excess_sum.add(of_excess);
        of_gap = of_Q = of_own = of_radial = of_excess = V{};
      };
      for (int64_t j = 0; j < t.columns; j += lanes) {
        if (j % (FEW_VECTORS * lanes) == 0) widen_sums();
        y.P = load(Q + j), y.A = load(B + j), y.inverse_A = load(inverse_B + j), y.apart = load(apart + j);
        const V value = load(z + j);
        V of_pair, push;
        const PairTerms<V> terms = S::template terms<NEAR>(value, value, x, y, coarse * x.P * y.P, of_pair);
        if (APART) {
          push = factor * power_of_2(smaller(less_product(total, slope, of_pair), limit));
          push += load(column_factor + j) * power_of_2(smaller(less_product(load(column_total + j), slope, of_pair), limit));
        } else {
          push = (factor + load(column_factor + j)) * power_of_2(less_product(top, slope, of_pair));
        }
        if (!whole(t.columns - j, positive - j)) push = negatives(t.columns - j, positive - j, numbers) ? push : V{};
        const V weight = push * slope, along = weight * terms.slope;
        store(w + j, along);
        of_gap += push * of_pair;
        of_excess += weight * terms.excess;
        of_Q += along * y.P;
        of_own += weight * terms.own_x;
        of_radial += weight * terms.radial;
        store(few_P + j, load(few_P + j) + along * x.P);
        store(few_own + j, load(few_own + j) + weight * terms.own_y);
      }
      widen_sums();
      gaps[i] = gap_sum.total(), Qs[i] = Q_sum.total(), owns[i] = own_sum.total(), radials[i] = radial_sum.total();
      excess += excess_sum.total();
      if (i % FEW == FEW - 1 || i == t.rows - 1)
        for (int64_t j = 0; j < tile_columns; ++j)
          Ps[j] += few_P[j], own_columns[j] += few_own[j], few_P[j] = few_own[j] = 0;
    }
    sums[tile_doubles() - 1] = excess;
  }

  // The same for the angles at the rows' points or at the columns', which the tile holds. What the second adds to.
  void weigh_angles(const Pair& o, const Tile& t, int64_t matrix, bool apart, F level, const F* row_factor,
                    const F* row_total, const F* column_factor, const F* column_total, F* W, double* sums) const {
    const Mask numbers = lane_numbers<F>();
    const V limit = all_of(F(LARGEST_EXPONENT));
    double *gaps = sums, *Qs = sums + tile_rows, *owns = sums + 2 * tile_rows, *radials = sums + 3 * tile_rows;
    double *Ps = sums + 4 * tile_rows, *own_columns = Ps + tile_columns;
    for (int64_t i = 0; i < t.rows; ++i) {
      const int64_t r = t.i0 + i, positive = positive_in(o, t, i);
      const V slope = all_of(bits_per_unit(r)), P = all_of(o.x->P[r]);
      WideSum of_gap, of_Q, of_own, of_radial;
      for (int64_t j = 0; j < t.columns; j += lanes) {
        const V of_pair = load(t.held + i * t.held_ld + j), factors = row_factor[i] + load(column_factor + j);
        const V top = !apart ? all_of(level) : matrix ? load(column_total + j) : all_of(row_total[i]);
        V push = factors * power_of_2(smaller(less_product(top, slope, of_pair), limit));
        push = negatives(t.columns - j, positive - j, numbers) ? push : V{};
        const V weight = push * slope;
        V by_z, apex, other, curv;
        const AngleGap<V> at = angle_at(o, t, i, j, matrix);
        at.slopes(by_z, apex, other, curv);
        const V along = weight * by_z;
        F* w = W + i * o.ld_W + j;
        store(w, matrix ? load(w) + along : along);
        const V of_apex = weight * AngleGap<V>::quotient(apex * at.A, at.P * at.P), of_other = weight * other;
        of_gap.add(push * of_pair);
        of_Q.add(along * load(o.y->P + t.j0 + j));
        of_own.add(matrix ? of_other : of_apex);
        of_radial.add(weight * curv * load(o.y->inverse_A + t.j0 + j));
        add_wide(Ps + j, along * P);
        add_wide(own_columns + j, matrix ? of_apex : of_other);
      }
      gaps[i] += of_gap.total(), Qs[i] += of_Q.total(), owns[i] += of_own.total(), radials[i] += of_radial.total();
    }
  }

  static void add_wide(double* to, V terms) {
    for (int64_t lane = 0; lane < lanes; ++lane) to[lane] += terms[lane];
  }

  void sum_tiles(Pair& o) {
    for_tasks(o.tiles_i + o.tiles_j, threads, [&](int64_t task) {
      if (task < o.tiles_i) {
        const int64_t begin = o.i0 + task * tile_rows, end = at_most(begin + tile_rows, o.i1);
        for (int64_t j = 0; j < o.tiles_j; ++j) {
          const double* d = o.tile_sums + (task * o.tiles_j + j) * tile_doubles();
          for (int64_t i = begin; i < end; ++i, ++d)
            o.gap[i] += d[0], o.Q[i] += d[tile_rows], o.own_x[i] += d[2 * tile_rows], o.radial[i] += d[3 * tile_rows];
        }
        return;
      }
      const int64_t tile = task - o.tiles_i, begin = o.j0 + tile * tile_columns, end = at_most(begin + tile_columns, o.j1);
      for (int64_t i = 0; i < o.tiles_i; ++i) {
        const double* d = o.tile_sums + (i * o.tiles_j + tile) * tile_doubles() + 4 * tile_rows;
        for (int64_t j = begin; j < end; ++j, ++d) o.P[j] += d[0], o.own_y[j] += d[tile_columns];
      }
    });
    for (int64_t t = 0; t < o.tiles_i * o.tiles_j; ++t) o.excess += o.tile_sums[(t + 1) * tile_doubles() - 1];
  }

  // Add all other terms of a row of a set's gradient to the products, for all pairings, and round once.
  void finish_row(int64_t s, int64_t i, const F* G, void* out, double* row) {
    const Side<F>& side = sides[s];
    const void* own = side.row(i);
    double of_own = 0;
    for (int64_t n = 0; n < q.n_pairings; ++n) {
      if (pairs[n].q->x == s) of_own -= c * pairs[n].own_x[i] / side.A_wide[i];
      if (pairs[n].q->y == s) of_own -= c * pairs[n].own_y[i] / side.A_wide[i];
    }
    GradientRow<F> sum(rows, D, G, of_own, own, side.centre, row);
    for (int64_t n = 0; n < q.n_pairings; ++n) {
      const Pair& o = pairs[n];
      if (o.q->x == s) {
        sum.add_centre(k * o.Q[i], o.y->centre);
        add_positive(sum, o, i, true);
      }
      if (o.q->y == s) {
        const int64_t from = o.first_row ? o.first_row[i] : i, to = o.first_row ? o.first_row[i + 1] : at_most(i + 1, o.M);
        sum.add_centre(k * o.P[i], o.x->centre);
        for (int64_t at = from; at < to; ++at) add_positive(sum, o, o.rows_of ? o.rows_of[at] : at, false);
      }
    }
    sum.finish(out);
  }

  // What row i's positive adds to the gradient of its point of x, or of y. The second matrix has it at the other end.
  void add_positive(GradientRow<F>& sum, const Pair& o, int64_t i, bool of_x) const {
    const void *x = o.x->row(i), *y = o.y->row(o.target(i));
    for (int64_t m = 0; m <= last_matrix(o); ++m) {
      const Positive& p = o.positives[m][i];
      const Combination<double>& of = of_x == !m ? p.gradient.by_x : p.gradient.by_y;
      m ? sum.add_points(y, x, of, p.split) : sum.add_points(x, y, of, p.split);
    }
  }

  void find_positives(Pair& o) {
    for (int64_t m = 0; m <= last_matrix(o); ++m) o.positives[m] = arena.take<Positive>(o.M + 1);
    for_rows(o.M, threads, [&](int64_t i) {
      const void *x = o.x->row(i), *y = o.y->row(o.target(i));
      for (int64_t m = 0; m <= last_matrix(o); ++m) {
        Positive& p = o.positives[m][i];
        p.split = m ? rows.split(y, x, D) : rows.split(x, y, D);
        const double by_gap = -o.by_positive[m][i] * q.scale[i * q.scale_stride];
        p.gradient = gap.of_rows_gradient(by_gap, pair_geometry(p.split, c));
      }
    });
  }

  // The gradients by the scale of each row, and what the pairing adds to that by the curvature.
  double finish_scalars(Pair& o) {
    double* of_rows = arena.take<double>(o.M + 1);
    for (int64_t i = 0; i < o.M; ++i) {
      double of_gaps = o.gap[i] * LN2;
      for (int64_t m = 0; m <= last_matrix(o); ++m) of_gaps += o.by_positive[m][i] * o.q->positives[m * o.M + i];
      of_rows[i] = -unit * of_gaps;
      if (q.scale_stride) q.by_scale[i] += of_rows[i];
    }
    if (!q.scale_stride) *q.by_scale += total_of(of_rows, o.M);
    for (int64_t i = 0; i < o.M; ++i) {
      of_rows[i] = o.radial[i] / (2 * c * o.x->A_wide[i]);
      for (int64_t m = 0; m <= last_matrix(o); ++m) of_rows[i] += o.positives[m][i].gradient.by_curv;
    }
    return o.excess / c + total_of(of_rows, o.M);
  }
};

// run(a ContrastiveRun of q), and what it returns.
template <class Body>
auto with_run(const Contrastive& q, const Body& body) {
  if (q.dtype == FLOAT64) {
    ContrastiveRun<double> run(q, ReaderOf<double, double>::get());
    return body(run);
  }
  const PointReader<float>* reader = q.dtype == FLOAT32    ? ReaderOf<float, float>::get()
                                     : q.dtype == BFLOAT16 ? ReaderOf<Bfloat16, float>::get()
                                                           : ReaderOf<Float16, float>::get();
  ContrastiveRun<float> run(q, reader);
  return body(run);
}

bool contrastive_forward(const Contrastive& q) {
  return with_run(q, [](auto& run) { return run.forward(); });
}

bool contrastive_backward(const Contrastive& q) {
  return with_run(q, [](auto& run) { return run.backward(); });
}

}  // namespace
