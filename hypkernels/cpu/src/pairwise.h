// Functions of all pairs of two sets, value and gradients, in tiles.
//
// Distances of points of less than double precision are computed from products in float. Near pairs, in which the
// product cancels, are computed again, one by one and exactly. Double are tiles with more than a few near pairs, and
// everything else.
#pragma once
#include "sides.h"
#include "similarity.h"

namespace {

constexpr int64_t PAIR_ROWS = 128, PAIR_BYTES = 2048;   // of a tile: rows, and bytes of a row
constexpr int64_t HELD_BYTES = int64_t(16) << 20;       // of slopes that are in memory at a time
constexpr int64_t PRODUCT_ROWS = 256;                   // rows of a product with the slopes that is one task
// A pair is near if z is less than this share of the terms whose difference it is: then a float's rounding is at most
// 4e-7 of a distance.
constexpr float NEAR_SHARE = 0.1f;
constexpr float NEAR_CHORD = 0.3f;  // below this share a chord's rounding is too much of z
constexpr int64_t NEAR_PAIRS = 16;  // at most one of so many pairs of a tile may be near
inline double largest_reach(const float*) { return 1.1e9; }
inline double largest_reach(const double*) { return 1e70; }
inline double least_reach(const float*) { return 1e-12; }
inline double least_reach(const double*) { return 1e-70; }

enum Outcome { DONE, TOO_MANY_NEAR, OUT_OF_RANGE };

// Some numbers of a row that ends anywhere, as vectors of F.
template <class V>
V load_part(const float* p, int64_t left) {
  V v = {};
  constexpr int64_t lanes = sizeof(V) / sizeof(v[0]);
  if (left >= lanes) {
    if constexpr (sizeof(v[0]) == sizeof(float)) return load(p);
    else return widen(p);
  }
  for (int64_t i = 0; i < left; ++i) v[i] = p[i];
  return v;
}
template <class V>
V load_part(const double* p, int64_t left) {
  if (left >= HALF) return load(p);
  V v = {};
  for (int64_t i = 0; i < left; ++i) v[i] = p[i];
  return v;
}
template <class V, class R>
void store_part(R* p, V v, int64_t left) {
  constexpr int64_t lanes = sizeof(V) / sizeof(v[0]);
  if (left >= lanes) {
    if constexpr (sizeof(v[0]) == sizeof(R)) return store(p, v);
    else return narrow(p, v);
  }
  for (int64_t i = 0; i < left; ++i) p[i] = (R)v[i];
}

// R: the type of the result, F: the type of tiles.
template <class R, class F>
class PairwiseRun {
  typedef typename Vector<F>::type V;
  typedef typename Vector<F>::mask Mask;
  static constexpr int64_t lanes = Vector<F>::lanes, tile_columns = PAIR_BYTES / sizeof(F);
  static constexpr bool exact = sizeof(F) == sizeof(double);

  struct Place {
    int32_t i, j;
  };
  struct Tile {
    int64_t i0, j0, rows, columns, ld;
    F* products;
    Place* near;  // pairs for exact formulas
    int64_t n_near;
  };

  const Pairs& q;
  const PointReader<F>& reader;
  const int64_t M, N, D;
  const double c, k, unit;  // unit: of the function, with its sign
  const int threads;
  Arena arena;
  Side<F> x = {}, y = {};
  F *t_x, *t_y, *u_norm, *v_norm;
  int64_t tiles_i, tiles_j;

 public:
  PairwiseRun(const Pairs& call, const PointReader<F>* points)
      : q(call), reader(*points), M(call.M), N(call.N), D(call.width), c(call.c), k(root(call.c)),
        unit(call.function == PAIR_DIST ? 1 / k : call.function == PAIR_INNER ? -1 / c : 1), threads(M * N * D > SMALL ? (int)call.threads : 1),
        tiles_i(blocks_of(M, PAIR_ROWS)), tiles_j(blocks_of(N, tile_columns)) {}

  Outcome run() {
    in_large_pages(q.out, M * N * (int64_t)sizeof(R));
    in_large_pages(q.by_x, M * D * reader.item), in_large_pages(q.by_y, N * D * reader.item);
    prepare(x, q.x, q.x_stride, M);
    prepare(y, q.y, q.y_stride, N);
    for_tasks(2, threads, [&](int64_t set) { find_centre(set ? y : x, D); });
    if (!in_range(x) || !in_range(y)) return OUT_OF_RANGE;
    t_x = offsets(x, y), t_y = offsets(y, x);
    u_norm = norms(x), v_norm = norms(y);
    return q.out ? forward() : backward();
  }

 private:
  void prepare(Side<F>& s, const void* points, int64_t stride, int64_t count) {
    s.reader = &reader, s.points = (const char*)points, s.stride = stride * reader.item, s.count = count;
    s.table = arena.take<double>(2 * count + 1), s.centre = arena.take<double>(D + 1);
    s.u = arena.take<F>(count * D + 1);
    F** scalars[] = {&s.P, &s.A, &s.inverse_A, &s.apart, &s.growth, &s.shrink};
    for (F** f : scalars) *f = arena.take<F>(up(count, LANES) + LANES);
    s.P_wide = arena.take<double>(count + 1), s.A_wide = arena.take<double>(count + 1);
  }

  // Squares, and whether all of them are such that tiles stay in range.
  bool in_range(Side<F>& s) {
    if (!(c >= LEAST_CURV && c <= LARGEST_CURV)) return false;
    for_rows(s.count, threads, [&](int64_t i) { s.table[2 * i] = reader.square(s.row(i), D); });
    bool all = true;
    for (int64_t i = 0; i < s.count; ++i) {
      const double P = k * root(s.table[2 * i]);
      // Only squares of doubles underflow: a square of 0 may be one of them.
      all &= P <= largest_reach((const F*)nullptr) && (P >= least_reach((const F*)nullptr) || (P == 0 && reader.item < 8));
    }
    return all;
  }

  double typical() const {
    double total = 0, count = 0;
    const Side<F>* sides[] = {&x, &y};
    for (const Side<F>* s : sides)
      for (int64_t i = 0; i < s->count; i += s->count > 16 ? s->count / 16 : 1, ++count)
        total += __builtin_asinh(k * root(s->table[2 * i]));
    return count ? total / count : 0;
  }

  F* offsets(Side<F>& s, const Side<F>& other) {
    const double half = (1 + ReaderOf<double, double>::dot(s.centre, other.centre, D)) / 2, middle = typical();
    F* t = arena.zeros<F>(up(s.count, LANES) + LANES);
    for_tasks(blocks_of(s.count, PREPARED_ROWS), threads, [&](int64_t task) {
      const int64_t begin = task * PREPARED_ROWS, end = at_most(begin + PREPARED_ROWS, s.count);
      prepare_rows(s, begin, end, D, 2, c, middle);
      for (int64_t i = begin; i < end; ++i)
        t[i] = (F)(s.P_wide[i] * half - k * reader.dot(s.row(i), other.centre, D));
    });
    return t;
  }

  F* norms(const Side<F>& s) {
    if (exact) return nullptr;
    F* of = arena.zeros<F>(up(s.count, LANES) + LANES);
    for_rows(s.count, threads, [&](int64_t i) { of[i] = (F)root(square_of<double>(s.u + i * D, D)); });
    return of;
  }

  // ---- tiles ---------------------------------------------------------------------------------------------------

  static int64_t most_near() { return PAIR_ROWS * tile_columns / NEAR_PAIRS; }

  // body(index, tile) for tiles [from, to), with the products of their pairs. What is kept is from a multiple of 64 bytes.
  template <class Body>
  void for_tiles(int64_t from, int64_t to, const Body& body) {
    F* const kept = (F*)up((int64_t)q.kept, 64);
    const int64_t ld = up(N, lanes), bytes = kept ? 0 : PAIR_ROWS * tile_columns * sizeof(F);
    for_tasks_with_buffer(to - from, threads, bytes, [&](int64_t task, void* buffer) {
      const int64_t index = from + task;
      Tile t = {index / tiles_j * PAIR_ROWS, index % tiles_j * tile_columns};
      t.rows = at_most(PAIR_ROWS, M - t.i0), t.columns = at_most(tile_columns, N - t.j0);
      t.ld = kept ? ld : tile_columns, t.products = kept ? kept + t.i0 * ld + t.j0 : (F*)buffer;
      if (!kept || q.out) multiply(t);
      body(index, t);
    });
  }

  void multiply(const Tile& t) const {
    product_of_rows<F>(t.rows, t.columns, D, x.u + t.i0 * D, y.u + t.j0 * D, t.products, t.ld);
    for (int64_t i = 0; i < t.rows; ++i)  // what vectors read past the end
      for (int64_t j = t.columns; j < up(t.columns, lanes); ++j) t.products[i * t.ld + j] = 0;
  }

  struct RowScalars {
    V P, A, t, growth, half, u;
  };
  RowScalars row_scalars(int64_t r) const {
    return {all_of(x.P[r]), all_of(x.A[r]), all_of(t_x[r]), all_of(x.growth[r]),
            all_of(F(x.shrink[r] * F(0.70710678118654752440))), all_of(exact ? F(0) : u_norm[r])};
  }

  // What a vector of pairs has: z = lateral + chord^2, and which of them are near.
  struct PairScalars {
    V lateral, chord, z;
    Mask near;
  };
  // With rapidities a and b the chord is sqrt(2) sinh((b - a)/2): of what they are beyond a typical one, or of P and Q
  // themselves, whichever rounds less.
  PairScalars pair_scalars(const RowScalars& r, V product, int64_t j) const {
    const V Q = load(y.P + j), growth = load(y.growth + j), shrink = r.half * load(y.shrink + j);
    const V of_x = r.t * Q, of_y = r.P * load(t_y + j), between = 1 / root(1 + r.A * load(y.A + j) + r.P * Q);
    const V rounding = (size(growth) + size(r.growth)) * shrink, other = (Q + r.P) * between;
    PairScalars p = {};
    p.chord = rounding < other ? (growth - r.growth) * shrink : (Q - r.P) * between;
    p.lateral = larger(of_x + (of_y - product), V{});
    p.z = p.chord * p.chord + p.lateral;
    if constexpr (!exact)
      p.near = p.z <= NEAR_SHARE * (size(of_x) + size(of_y) + r.u * load(v_norm + j)) +
                          NEAR_CHORD * size(p.chord) * smaller(rounding, other);
    return p;
  }
  AngleGap<V> angle_at(const RowScalars& r, const PairScalars& p, int64_t j) const {
    return AngleGap<V>(p.lateral, p.chord * F(1.41421356237309504880), r.P, r.A, load(y.P + j), load(y.A + j));
  }
  static V size(V v) { return larger(v, -v); }

  static bool any(Mask mask, int64_t left) {
    return any_of(left < lanes ? mask & (lane_numbers<F>() < (typename Vector<F>::index)left) : mask);
  }

  PairGeometry<double> exact_pair(int64_t i, int64_t j, Split<double>& split) const {
    split = reader.split(x.row(i), y.row(j), D);
    return pair_geometry(split, c);
  }

  // ---- passes --------------------------------------------------------------------------------------------------

  Outcome forward() {
    int64_t* near_of = arena.zeros<int64_t>(tiles_i * tiles_j + 1);
    for_tiles(0, tiles_i * tiles_j, [&](int64_t index, Tile& t) { near_of[index] = fill_values(t); });
    return few_near(near_of) ? DONE : TOO_MANY_NEAR;
  }

  bool few_near(const int64_t* near_of) const {
    int64_t total = 0;
    for (int64_t index = 0; index < tiles_i * tiles_j; ++index) total += near_of[index];
    return total <= M * N / NEAR_PAIRS + M + N;
  }

  int64_t fill_values(const Tile& t) const {
    int64_t found = 0;
    for (int64_t i = 0; i < t.rows; ++i) {
      const RowScalars r = row_scalars(t.i0 + i);
      R* out = (R*)q.out + (t.i0 + i) * N + t.j0;
      for (int64_t j = 0; j < t.columns; j += lanes) {
        const PairScalars p = pair_scalars(r, load(t.products + i * t.ld + j), t.j0 + j);
        store_part(out + j, value_of(r, p, t.j0 + j), t.columns - j);
        if (exact || !any(p.near, t.columns - j)) continue;
        for (int64_t lane = 0; lane < at_most(lanes, t.columns - j); ++lane) {
          if (!p.near[lane]) continue;
          Split<double> split;
          ++found;
          out[j + lane] = (R)pair_dist(exact_pair(t.i0 + i, t.j0 + j + lane, split));
        }
      }
    }
    return found;
  }

  V value_of(const RowScalars& r, const PairScalars& p, int64_t j) const {
    if (q.function == PAIR_ANGLE) return angle_at(r, p, j).angle();
    if (q.function == PAIR_INNER) return F(unit) * (1 + p.z);
    return p.z == V{} ? V{} : F(LN2 * unit) * DistanceGap::gap(p.z);
  }

  Outcome backward() {
    const int64_t ld = up(N, lanes), tile_doubles = 3 * PAIR_ROWS + 2 * tile_columns + 1;
    const int64_t fitting = HELD_BYTES / (int64_t)sizeof(F) / (ld ? ld : 1) / PAIR_ROWS * PAIR_ROWS;
    const int64_t block = fitting > PAIR_ROWS ? fitting : PAIR_ROWS, tiles = tiles_i * tiles_j;
    F* W = arena.take<F>(at_most(up(M, PAIR_ROWS), block) * ld + 1);
    double* tile_sums = arena.zeros<double>(tiles * tile_doubles + 1);
    int64_t* near_of = arena.zeros<int64_t>(tiles + 1);
    Place** places = arena.zeros<Place*>(tiles + 1);
    const bool in_place = reader.item == sizeof(F);
    F* G_x = in_place ? (F*)q.by_x : arena.take<F>(M * D + 1);
    F* G_y = in_place ? (F*)q.by_y : arena.take<F>(N * D + 1);
    for (int64_t first = 0; first < M; first += block) {
      const int64_t last = at_most(first + block, M);
      for_tiles(first / PAIR_ROWS * tiles_j, blocks_of(last, PAIR_ROWS) * tiles_j, [&](int64_t index, Tile& t) {
        if (!exact) t.near = places[index] = (Place*)malloc(sizeof(Place) * (most_near() + 1));
        F* w = W + (t.i0 - first) * ld + t.j0;
        double* sums = tile_sums + index * tile_doubles;
        q.function == PAIR_ANGLE ? fill_angle_slopes(t, w, ld, sums) : fill_slopes(t, w, ld, sums);
        near_of[index] = t.n_near;
        if (!exact) places[index] = (Place*)realloc(t.near, sizeof(Place) * (at_most(t.n_near, most_near()) + 1));
      });
      const int64_t of_x = blocks_of(last - first, PRODUCT_ROWS), of_y = blocks_of(N, PRODUCT_ROWS);
      for_tasks_with_buffer(of_x + of_y, threads, 0, [&](int64_t task, void*) {
        if (task < of_x) {
          const int64_t begin = first + task * PRODUCT_ROWS, rows = at_most(PRODUCT_ROWS, last - begin);
          add_product<F>(rows, D, N, (F)k, W + (begin - first) * ld, ld, y.u, true, G_x + begin * D);
        } else {
          const int64_t begin = (task - of_x) * PRODUCT_ROWS, rows = at_most(PRODUCT_ROWS, N - begin);
          add_transposed_product<F>(rows, D, last - first, (F)k, W + begin, ld, x.u + first * D, first == 0,
                                    G_y + begin * D);
        }
      });
    }
    bool fits = few_near(near_of);
    for (int64_t index = 0; index < tiles; ++index) fits &= near_of[index] <= most_near();
    if (fits) finish(tile_sums, tile_doubles, near_of, places, G_x, G_y);
    for (int64_t index = 0; index < tiles; ++index) free(places[index]);
    return fits ? DONE : TOO_MANY_NEAR;
  }

  V upstream(const R* grad, int64_t left) const {
    if (q.grad_column == 1) return load_part<V>(grad, left);
    V v = {};
    for (int64_t lane = 0; lane < at_most(lanes, left); ++lane) v[lane] = grad[lane * q.grad_column];
    return v;
  }

  // W, minus the slopes by z, and the tile's sums: of rows those of W sinh(b - a), W B and the radial terms; of columns
  // the first and W A; and the excess. The sums of W Q and W P follow from A Q = P B + sinh(b - a): where all points are
  // in one place they and the multiples of the points themselves all but cancel.
  void fill_slopes(Tile& t, F* W, int64_t ld, double* sums) const {
    const V factor = all_of(F(-unit));
    const F coarse = F(RESOLUTION_ULPS * epsilon_of((const F*)nullptr));
    double *turns = sums, *owns = sums + PAIR_ROWS, *radials = sums + 2 * PAIR_ROWS;
    double *column_turns = sums + 3 * PAIR_ROWS, *own_columns = column_turns + tile_columns, excess = 0;
    alignas(64) F few[tile_columns] = {}, few_own[tile_columns] = {};
    for (int64_t i = 0; i < t.rows; ++i) {
      const int64_t row = t.i0 + i;
      const RowScalars r = row_scalars(row);
      const R* grad = (const R*)q.grad + row * q.grad_row + t.j0 * q.grad_column;
      const V A = all_of(x.A[row]), apart = all_of(x.apart[row]);
      WideSum of_turned, of_own, of_radial, of_excess;
      for (int64_t j = 0; j < t.columns; j += lanes) {
        const PairScalars p = pair_scalars(r, load(t.products + i * t.ld + j), t.j0 + j);
        const V Q = load(y.P + t.j0 + j);
        V by_z = V{} + 1, rest = by_z;
        if (q.function == PAIR_DIST)
          DistanceGap::gap_and_slope<true>(p.z, exact ? coarse * r.P * Q : V{}, by_z, rest);
        V weight = factor * upstream(grad + j * q.grad_column, t.columns - j);
        if (!exact && any(p.near, t.columns - j)) {
          for (int64_t lane = 0; lane < at_most(lanes, t.columns - j); ++lane)
            if (p.near[lane]) {
              if (t.n_near < most_near()) t.near[t.n_near] = {(int32_t)row, (int32_t)(t.j0 + j + lane)};
              ++t.n_near;
            }
          weight = p.near ? V{} : weight;
        }
        const V slope = weight * by_z, between = apart - load(y.apart + t.j0 + j);
        store(W + i * ld + j, slope);
        const V turned = slope * (p.chord * root(2 + p.chord * p.chord));
        of_turned.add(turned);
        of_own.add(slope * load(y.A + t.j0 + j));
        of_radial.add(slope * (between * between * load(y.inverse_A + t.j0 + j)));
        of_excess.add(weight * rest);
        store(few + j, load(few + j) + turned);
        store(few_own + j, load(few_own + j) + slope * A);
      }
      turns[i] = of_turned.total(), owns[i] = of_own.total(), radials[i] = of_radial.total(), excess += of_excess.total();
      if (i % 32 == 31 || i == t.rows - 1)
        for (int64_t j = 0; j < tile_columns; ++j)
          column_turns[j] += few[j], own_columns[j] += few_own[j], few[j] = few_own[j] = 0;
    }
    own_columns[tile_columns] = excess;
  }

  // The same of angles, whose sums of W Q and W P are taken as they are.
  void fill_angle_slopes(Tile& t, F* W, int64_t ld, double* sums) const {
    double *Qs = sums, *owns = sums + PAIR_ROWS, *radials = sums + 2 * PAIR_ROWS;
    double *Ps = sums + 3 * PAIR_ROWS, *own_columns = Ps + tile_columns;
    alignas(64) F few_P[tile_columns] = {}, few_own[tile_columns] = {};
    for (int64_t i = 0; i < t.rows; ++i) {
      const int64_t row = t.i0 + i;
      const RowScalars r = row_scalars(row);
      const R* grad = (const R*)q.grad + row * q.grad_row + t.j0 * q.grad_column;
      WideSum of_Q, of_own, of_radial;
      for (int64_t j = 0; j < t.columns; j += lanes) {
        const PairScalars p = pair_scalars(r, load(t.products + i * t.ld + j), t.j0 + j);
        const V weight = -upstream(grad + j * q.grad_column, t.columns - j);
        V by_z, apex, other, curv;
        angle_at(r, p, t.j0 + j).slopes(by_z, apex, other, curv);
        const V along = weight * by_z;
        store(W + i * ld + j, along);
        of_Q.add(along * load(y.P + t.j0 + j));
        of_own.add(weight * AngleGap<V>::quotient(apex * r.A, r.P * r.P));
        of_radial.add(weight * curv * load(y.inverse_A + t.j0 + j));
        store(few_P + j, load(few_P + j) + along * r.P);
        store(few_own + j, load(few_own + j) + weight * other);
      }
      Qs[i] = of_Q.total(), owns[i] = of_own.total(), radials[i] = of_radial.total();
    }
    for (int64_t j = 0; j < tile_columns; ++j) Ps[j] = few_P[j], own_columns[j] = few_own[j];
  }

  // Near pairs in the order of their rows, or of their columns: those of row i are [starts[i], starts[i + 1]).
  struct NearPairs {
    int64_t* starts;
    int32_t* others;
  };
  NearPairs near_by(bool columns, const int64_t* near_of, Place* const* places) {
    const int64_t count = columns ? N : M;
    int64_t total = 0;
    for (int64_t index = 0; index < tiles_i * tiles_j; ++index) total += near_of[index];
    NearPairs of = {arena.zeros<int64_t>(count + 2), arena.take<int32_t>(total + 1)};
    for (int64_t pass = 0; pass < 2; ++pass) {
      for (int64_t index = 0; index < tiles_i * tiles_j; ++index)
        for (int64_t n = 0; n < near_of[index]; ++n) {
          const Place p = places[index][n];
          const int64_t at = columns ? p.j : p.i;
          if (pass) of.others[of.starts[at + 1]++] = columns ? p.i : p.j;
          else ++of.starts[at + 2];
        }
      for (int64_t i = 0; !pass && i < count; ++i) of.starts[i + 2] += of.starts[i + 1];
    }
    return of;
  }

  void finish(const double* tile_sums, int64_t tile_doubles, const int64_t* near_of, Place* const* places, const F* G_x,
              const F* G_y) {
    const NearPairs near_x = near_by(false, near_of, places), near_y = near_by(true, near_of, places);
    double* by_curv = arena.take<double>(M + tiles_i * tiles_j + 1);
    for_tasks_with_buffer(M, threads, D * sizeof(double), [&](int64_t i, void* buffer) {
      double turned = 0, own = 0, radial = 0;
      for (int64_t j = 0; j < tiles_j; ++j) {
        const double* d = tile_sums + (i / PAIR_ROWS * tiles_j + j) * tile_doubles + i % PAIR_ROWS;
        turned += d[0], own += d[PAIR_ROWS], radial += d[2 * PAIR_ROWS];
      }
      by_curv[i] = radial / (2 * c * x.A_wide[i]);
      GradientRow<F> sum(reader, D, G_x + i * D, -c * own / x.A_wide[i], x.row(i), x.centre, (double*)buffer);
      const double of_Q = q.function == PAIR_ANGLE ? turned : (x.P_wide[i] * own + turned) / x.A_wide[i];
      sum.add_centre(k * of_Q, y.centre);
      for (int64_t at = near_x.starts[i]; at < near_x.starts[i + 1]; ++at) {
        Split<double> split;
        const auto g = gradient_of_near(i, near_x.others[at], split);
        by_curv[i] += g.by_curv;
        sum.add_points(x.row(i), y.row(near_x.others[at]), g.by_x, split);
      }
      sum.finish((char*)q.by_x + i * D * reader.item);
    });
    for_tasks_with_buffer(N, threads, D * sizeof(double), [&](int64_t j, void* buffer) {
      double turned = 0, own = 0;
      for (int64_t i = 0; i < tiles_i; ++i) {
        const double* d = tile_sums + (i * tiles_j + j / tile_columns) * tile_doubles + 3 * PAIR_ROWS + j % tile_columns;
        turned += d[0], own += d[tile_columns];
      }
      GradientRow<F> sum(reader, D, G_y + j * D, -c * own / y.A_wide[j], y.row(j), y.centre, (double*)buffer);
      const double of_P = q.function == PAIR_ANGLE ? turned : (y.P_wide[j] * own - turned) / y.A_wide[j];
      sum.add_centre(k * of_P, x.centre);
      for (int64_t at = near_y.starts[j]; at < near_y.starts[j + 1]; ++at) {
        Split<double> split;
        const auto g = gradient_of_near(near_y.others[at], j, split);
        sum.add_points(x.row(near_y.others[at]), y.row(j), g.by_y, split);
      }
      sum.finish((char*)q.by_y + j * D * reader.item);
    });
    for (int64_t t = 0; t < tiles_i * tiles_j; ++t) by_curv[M + t] = tile_sums[(t + 1) * tile_doubles - 1] / c;
    *q.by_curv = total_of(by_curv, M + tiles_i * tiles_j);
  }

  Gradient<double> gradient_of_near(int64_t i, int64_t j, Split<double>& split) const {
    const double grad = ((const R*)q.grad)[i * q.grad_row + j * q.grad_column];
    return pair_dist_gradient(grad, exact_pair(i, j, split));
  }
};

template <class T>
PairsDone pairwise_of(const Pairs& q) {
  typedef typename Result<T>::type R;
  Pairs rest = q;
  if constexpr (!is_double((const T*)nullptr)) {
    if (q.function == PAIR_DIST) {
      PairwiseRun<R, float> run(q, ReaderOf<T, float>::get());
      if (run.run() == DONE) return q.kept ? PAIRS_DONE_AND_KEPT : PAIRS_DONE;
      rest.kept = nullptr;
    }
  }
  PairwiseRun<R, double> run(rest, ReaderOf<T, double>::get());
  return run.run() != DONE ? PAIRS_OUT_OF_RANGE : rest.kept ? PAIRS_DONE_AND_KEPT : PAIRS_DONE;
}

PairsDone pairwise(const Pairs& q) {
  switch (q.dtype) {
    case FLOAT64: return pairwise_of<double>(q);
    case FLOAT32: return pairwise_of<float>(q);
    case BFLOAT16: return pairwise_of<Bfloat16>(q);
    default: return pairwise_of<Float16>(q);
  }
}

}  // namespace
