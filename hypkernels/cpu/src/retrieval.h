// Search of a gallery, a piece of it at a time: the nearest items of each query, how many are nearer than its target,
// those within a radius.
//
// A product of matrices gives bounds of z = cosh(kd) - 1 for each pair: with h = sqrt(1 + P^2) - 1 and u a unit of
// rounding,
//
//     z = T - c x.y,   T = h_x (1 + h_y) + h_y,   |error| <= u ((D + 8) P Q + 8 T).
//
// Where the machine multiplies bytes, a product in bytes comes first, whose bounds are some hundredths of P Q apart. If
// it leaves too many pairs of a tile undecided, the product in F is computed, too.
//
// For the few pairs per query that the bounds do not decide, z is computed in double from the points themselves, as in
// the row-wise functions. So the result does not depend on the rounding of products, nor on the order in which threads
// reach the pairs: it is the least of a total order, by z and then by index.
#pragma once
#include <sched.h>
#include "byte_products.h"
#include "cone.h"
#include "distance.h"
#include "products.h"
#include "sides.h"

namespace {

constexpr int64_t SEARCHED_QUERIES = 512, SEARCHED_ITEMS = 256;  // of a tile
constexpr int64_t BYTE_QUERIES = 64;                             // with fewer, a product in bytes does not pay
constexpr int64_t OPEN_SHARE = 32;                               // it may leave one of so many pairs undecided
constexpr double INFINITE = __builtin_inf(), UNDECIDED = __builtin_nan("");

// The range of points in products and sums, besides 0. Pairs of other points are computed one by one.
struct SearchRange {
  double least_reach, largest_reach;  // of P
  double least_norm, largest_norm;    // of c|x| and |y|
};
inline SearchRange search_range(const float*) { return {1e-12, 1e9, 1e-28, 1e28}; }
inline SearchRange search_range(const double*) { return {1e-70, 1e70, 1e-140, 1e140}; }
inline double rounding_of(const float*) { return 0x1p-24; }
inline double rounding_of(const double*) { return 0x1p-53; }

// Not below.
inline double not_below(double v, const double*) { return v; }
inline float not_below(double v, const float*) {
  const float f = (float)v;
  return (double)f < v ? float_of_bits(bits_of_float(f) + 1) : f;  // v >= 0
}
inline double not_above(double v, const double*) { return v; }
inline float not_above(double v, const float*) {
  const float f = (float)v;
  return (double)f > v ? float_of_bits(bits_of_float(f) - 1) : f;
}

// A number that other threads may change while it is read, in one direction only.
inline double shared_value(const double* p) {
  const int64_t bits = __atomic_load_n((const int64_t*)p, __ATOMIC_RELAXED);
  double v;
  memcpy(&v, &bits, 8);
  return v;
}
inline void set_shared(double* p, double v) {
  int64_t bits;
  memcpy(&bits, &v, 8);
  __atomic_store_n((int64_t*)p, bits, __ATOMIC_RELAXED);
}

// What is done with rows of points as they are stored: of one, to tiles of F; of a query and an item.
template <class F>
struct RowFunctions {
  int64_t item;  // bytes
  double (*square)(const void* x, int64_t width);
  bool (*is_finite)(const void* x, int64_t width);
  void (*scaled)(F* out, double factor, const void* x, int64_t width);
};
template <class T, class F>
const RowFunctions<F>* row_functions() {
  static const RowFunctions<F> functions = {
      sizeof(T), ReaderOf<T, F>::square, ReaderOf<T, F>::is_finite,
      [](F* out, double factor, const void* x, int64_t width) {
        write(out, width, [=](auto at) { return factor * at((const T*)x); });
      }};
  return &functions;
}

struct PairFunctions {
  bool any_double;
  Split<double> (*split)(const void* x, const void* y, int64_t width);
  Split<Wide> (*wide)(const void* x, const void* y, int64_t width);
  Split<double> (*split_of_item)(const void* x, const void* y, int64_t width);  // along y
  Split<Wide> (*wide_of_item)(const void* x, const void* y, int64_t width);
};
template <class X, class Y>
const PairFunctions* pair_functions() {
  static const PairFunctions functions = {
      is_double((const X*)nullptr) || is_double((const Y*)nullptr),
      [](const void* x, const void* y, int64_t width) { return split_along<double>((const X*)x, (const Y*)y, width); },
      [](const void* x, const void* y, int64_t width) { return split_along<Wide>((const X*)x, (const Y*)y, width); },
      [](const void* x, const void* y, int64_t width) { return split_along<double>((const Y*)y, (const X*)x, width); },
      [](const void* x, const void* y, int64_t width) { return split_along<Wide>((const Y*)y, (const X*)x, width); }};
  return &functions;
}

template <class F>
class SearchRun {
  typedef typename Vector<F>::type V;
  typedef typename Vector<F>::mask Mask;
  static constexpr int64_t lanes = Vector<F>::lanes, padded = SEARCHED_ITEMS + LANES;

  struct Place {  // of an item in a tile, with its lower bound
    F least;
    int32_t column;
    bool decided;  // to be nearer than a target
  };
  struct Items {  // of a tile
    const char* rows;
    const F* matrix;
    int64_t ld, begin, count;
    F *H, *h, *Q, *turned;  // 1 + h, h, reach, and of cones of items the reach times the aperture's cosine
    F *rest, *scale;        // of bytes: k times what they leave, and what they are multiples of
    uint8_t* panels;
  };

  const Search& q;
  const RowFunctions<F>&of_queries, &of_items;
  const PairFunctions& of_pairs;
  const int64_t D;
  const double c, k, u;
  const SearchRange range;
  const bool rows_apart;  // restrictions that are a pair's own
  const bool by_bytes;
  Arena arena;
  F *scaled, *h, *P, *turned, *rest;  // of queries
  ByteRows bytes;
  double* limit;
  uint8_t* lock;
  int64_t tiles = 0, left_over = 0;  // tiles on which bytes were tried, and those that they left undecided

 public:
  SearchRun(const Search& call, const RowFunctions<F>* queries, const RowFunctions<F>* items, const PairFunctions* pairs)
      : q(call), of_queries(*queries), of_items(*items), of_pairs(*pairs), D(call.width), c(call.c), k(root(call.c)),
        u(rounding_of((const F*)nullptr)), range(search_range((const F*)nullptr)),
        rows_apart(call.groups || call.cone != NO_CONE),
        by_bytes(sizeof(F) == sizeof(float) && call.Q >= BYTE_QUERIES && D <= WIDEST_BYTES && multiplies_bytes()) {}

  void run() {
    if (q.mode == SEARCH_PAIRS) return pairs();
    prepare_queries();
    const bool direct = of_items.item == sizeof(F) && q.stride >= D && q.stride < (int64_t(1) << 31);
    const int64_t rows = at_most(q.Q, SEARCHED_QUERIES), products = SEARCHED_ITEMS * rows;
    const int64_t copies = direct ? 0 : SEARCHED_ITEMS * D, most = larger_of(SEARCHED_ITEMS, products / OPEN_SHARE);
    const int64_t packed = by_bytes ? (SEARCHED_ITEMS + 1) * byte_width(D) : 0;
    const int64_t room = (products + copies + 6 * padded + 64) * sizeof(F) + 2 * (rows + 1) * sizeof(int64_t) +
                         (most + SEARCHED_ITEMS) * sizeof(Place) + packed;
    const int threads = q.Q * q.N * D > SMALL ? (int)q.threads : 1;
    for_tasks_with_buffer(blocks_of(q.N, SEARCHED_ITEMS), threads, room, [&](int64_t task, void* buffer) {
      F* tile = (F*)buffer;
      Items s = {};
      s.begin = task * SEARCHED_ITEMS, s.count = at_most(SEARCHED_ITEMS, q.N - s.begin);
      s.rows = (const char*)q.items + s.begin * q.stride * of_items.item;
      s.ld = direct ? q.stride : D;
      F* copy = tile + up(products, 16);
      s.H = copy + up(copies, 16), s.h = s.H + padded, s.Q = s.h + padded, s.turned = s.Q + padded;
      s.rest = s.turned + padded, s.scale = s.rest + padded;
      int64_t *ends = (int64_t*)(s.scale + padded), *nearer = ends + rows + 1;
      Place* places = (Place*)(nearer + rows + 1);
      s.panels = (uint8_t*)(places + most + SEARCHED_ITEMS);
      if (!prepare_items(s)) return;
      s.matrix = direct ? (const F*)s.rows : copy;
      if (!direct)
        for (int64_t j = 0; j < s.count; ++j)
          of_items.scaled(copy + j * D, 1, s.rows + j * q.stride * of_items.item, D);
      bool packed = false;
      for (int64_t i = 0; i < q.Q; i += SEARCHED_QUERIES) {
        const int64_t m = at_most(SEARCHED_QUERIES, q.Q - i);
        if (by_bytes && bytes_pay()) {
          if (!packed) pack(s);
          packed = true;
          if (decide_by_bytes(i, m, s, tile, places, ends, nearer, at_most(most, m * s.count / OPEN_SHARE))) continue;
        }
        product_of_rows<F>(m, s.count, D, scaled + i * D, D, s.matrix, s.ld, tile, SEARCHED_ITEMS);
        const F per_Q = F((D + 8) * u * 1.01);
        for (int64_t r = 0; r < m; ++r) {
          int64_t near = 0;
          const int64_t n = collect(i + r, tile + r * SEARCHED_ITEMS, s, per_Q, false, places, near);
          settle(i + r, s, places, n, near);
        }
      }
    });
  }

 private:
  const void* query(int64_t i) const { return (const char*)q.queries + i * q.query_stride * of_queries.item; }
  const void* item(const Items& s, int64_t j) const { return s.rows + j * q.stride * of_items.item; }

  bool in_range(double reach, double norm) const {
    return norm == 0 || (reach >= range.least_reach && reach <= range.largest_reach && norm >= range.least_norm &&
                         norm <= range.largest_norm && D * u < 0.01);
  }
  static double h_of(double P) { return P * P / (1 + root(1 + P * P)); }

  // The widest angle in the cone of a point, and its cosine times the reach. If that is negative, bounds decide nothing.
  double widest(double P) const { return q.aperture_scale * aperture_of(P, q.min_radius); }
  F turned_of(double P) const {
    const double angle = widest(P);
    return angle <= 1.57079632679489662 ? F(P * cos(angle)) : F(UNDECIDED);
  }

  void prepare_queries() {
    scaled = arena.take<F>(q.Q * D + 1), h = arena.take<F>(q.Q + 1), P = arena.take<F>(q.Q + 1);
    turned = arena.take<F>(q.Q + 1), rest = arena.take<F>(q.Q + 1);
    int8_t* numbers = by_bytes ? arena.zeros<int8_t>(q.Q * byte_width(D) + 1) : nullptr;
    float* scales = arena.take<float>(q.Q + 1);
    int32_t* offsets = arena.take<int32_t>(q.Q + 1);
    bytes = {numbers, scales, offsets};
    limit = arena.take<double>(q.Q + 1), lock = arena.zeros<uint8_t>(q.Q + 1);
    for_rows(q.Q, q.Q * D > SMALL ? (int)q.threads : 1, [&](int64_t i) {
      const double norm = root(of_queries.square(query(i), D)), reach = k * norm;
      const bool fits = in_range(reach, c * norm);
      of_queries.scaled(scaled + i * D, fits ? c : 0, query(i), D);
      h[i] = fits ? F(h_of(reach)) : F(UNDECIDED), P[i] = F(reach);
      turned[i] = q.cone == CONE_OF_QUERY ? turned_of(reach) : F(0);
      if constexpr (sizeof(F) == sizeof(float))
        if (by_bytes) {
          int8_t* row = numbers + i * byte_width(D);
          const InBytes of = to_bytes(scaled + i * D, D, row);
          int32_t total = 0;
          for (int64_t j = 0; j < D; ++j) total += row[j];
          scales[i] = (float)of.scale, offsets[i] = 128 * total, rest[i] = F(of.rest / k * (1 + 1e-6));
        }
      limit[i] = q.mode != SEARCH_NEAREST ? q.limits[i] : q.found[i] == q.k ? q.z[i * q.k] : INFINITE;
    });
  }

  // Whether there is something to do with them.
  bool prepare_items(Items& s) const {
    bool any = false;
    for (int64_t j = 0; j < s.count; ++j) {
      const double square = of_items.square(item(s, j), D), norm = root(square), reach = k * norm;
      if (!(square < INFINITE) && !of_items.is_finite(item(s, j), D)) note_bad(s.begin + j);
      const bool fits = in_range(reach, norm), allowed = !q.allowed || q.allowed[s.begin + j];
      any |= allowed;
      s.h[j] = !allowed ? F(INFINITE) : fits ? F(h_of(reach)) : F(UNDECIDED);
      s.H[j] = fits ? F(1 + h_of(reach)) : F(1), s.Q[j] = fits ? F(reach) : F(0);
      s.turned[j] = q.cone == CONE_OF_ITEM ? turned_of(reach) : F(0);
    }
    for (int64_t j = s.count; j < up(s.count, lanes); ++j) s.h[j] = F(INFINITE), s.H[j] = 1, s.Q[j] = s.turned[j] = 0;
    return any && __atomic_load_n(q.bad, __ATOMIC_RELAXED) == INT64_MAX;
  }

  void note_bad(int64_t j) const {
    int64_t least = __atomic_load_n(q.bad, __ATOMIC_RELAXED);
    while (j < least && !__atomic_compare_exchange_n(q.bad, &least, j, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
  }

  // ---- bytes -----------------------------------------------------------------------------------------------------

  // Whether enough tiles were decided by them.
  bool bytes_pay() const {
    const int64_t tried = __atomic_load_n(&tiles, __ATOMIC_RELAXED), lost = __atomic_load_n(&left_over, __ATOMIC_RELAXED);
    return tried < 16 || 2 * lost < tried;
  }

  void pack(Items& s) const {
    if constexpr (sizeof(F) == sizeof(float)) {
      int8_t* row = (int8_t*)(s.panels + SEARCHED_ITEMS * byte_width(D));
      memset(row, 0, byte_width(D));
      for (int64_t j = 0; j < SEARCHED_ITEMS; ++j) {
        InBytes of = {};
        if (j < s.count && s.Q[j] > 0) of = to_bytes(s.matrix + j * s.ld, D, row);
        else memset(row, 0, byte_width(D));
        put_in_panel(s.panels, j, row, D);
        s.rest[j] = F(k * of.rest * (1 + 1e-6)), s.scale[j] = F(of.scale);
      }
    }
  }

  // Whether it did: else more is left than is worth to be looked at one by one.
  bool decide_by_bytes(int64_t i, int64_t m, const Items& s, F* tile, Place* places, int64_t* ends, int64_t* nearer,
                       int64_t most) {
    if constexpr (sizeof(F) == sizeof(float)) {
      const ByteRows X = {bytes.numbers + i * byte_width(D), bytes.scale + i, bytes.offset + i};
      product_of_bytes(m, byte_panels(s.count), D, X, s.panels, s.scale, tile, SEARCHED_ITEMS);
    }
    int64_t n = 0;
    for (int64_t r = 0; r < m && n <= most; ++r) {
      ends[r] = n, nearer[r] = 0;
      n += collect(i + r, tile + r * SEARCHED_ITEMS, s, F(16 * u), true, places + n, nearer[r]);
    }
    __atomic_fetch_add(&tiles, 1, __ATOMIC_RELAXED);
    if (n > most) return __atomic_fetch_add(&left_over, 1, __ATOMIC_RELAXED), false;
    ends[m] = n;
    for (int64_t r = 0; r < m; ++r) settle(i + r, s, places + ends[r], ends[r + 1] - ends[r], nearer[r]);
    return true;
  }

  // ---- bounds ----------------------------------------------------------------------------------------------------

  // The pairs of query i and a tile's items that bounds leave undecided, and how many items are decided to be nearer. A
  // product is off by up to per_Q P Q, and by the rest of the bytes.
  int64_t collect(int64_t i, F* products, const Items& s, F per_Q, bool of_bytes, Place* places, int64_t& decidedly) {
    for (int64_t j = s.count; j < up(s.count, lanes); ++j) products[j] = 0;
    const bool counts = q.mode == SEARCH_COUNT;
    const double within = shared_value(limit + i);
    const V high = all_of(not_below(within, (const F*)nullptr)), low = all_of(not_above(within, (const F*)nullptr));
    const V own = all_of(h[i]), reach = all_of(P[i]), off = all_of(per_Q), fine = all_of(F(8 * u)), zero = {};
    const V left = all_of(of_bytes ? rest[i] : F(0));
    int64_t n = 0;
    Mask nearer = {};
    for (int64_t j = 0; j < s.count; j += lanes) {
      const V T = own * load(s.H + j) + load(s.h + j), product = load(products + j), Q = load(s.Q + j);
      V error = reach * (off * Q) + fine * T;
      if (of_bytes) {
        const V item_left = load(s.rest + j);
        error += reach * item_left + left * (Q + item_left);
      }
      const V least = (T - product) - error;
      Mask open = ~(least > high);  // also where there are no bounds
      Mask decided = {};
      if (counts) decided = (T - product) + error < low;
      if (q.cone) open &= ~beyond_cone(i, s, j, least > zero ? least : zero);
      if (counts && !rows_apart) nearer += decided, open &= ~decided;
      if (!any_of(open)) continue;
      for (int64_t lane = 0; lane < at_most(lanes, s.count - j); ++lane) {
        if (!open[lane] || !may_meet(i, s.begin + j + lane)) continue;
        places[n++] = {least[lane] == least[lane] ? least[lane] : -F(INFINITE), int32_t(j + lane), decided[lane] != 0};
      }
    }
    for (int64_t lane = 0; lane < lanes; ++lane) decidedly -= nearer[lane];
    return n;
  }

  void settle(int64_t i, const Items& s, Place* places, int64_t n, int64_t decidedly) {
    if (q.mode == SEARCH_COUNT) return count(i, s, places, n, decidedly);
    if (n) q.mode == SEARCH_NEAREST ? keep_nearest(i, s, places, n) : append(i, s, places, n);
  }

  bool may_meet(int64_t i, int64_t j) const {
    if (q.allowed && !q.allowed[j]) return false;
    if (!q.groups) return true;
    return q.n_groups ? ((const uint8_t*)q.query_groups)[i * q.n_groups + q.groups[j]]
                      : ((const int64_t*)q.query_groups)[i] == q.groups[j];
  }

  // Whether the angle at the apex is certainly too wide. With C the aperture's cosine, a pair is in the cone of x if
  //     h_y - h_x - A z >= C P sinh(kd),
  // and the left side less the right falls as z grows.
  Mask beyond_cone(int64_t i, const Items& s, int64_t j, V least) const {
    const V of_x = all_of(h[i]), of_y = load(s.h + j), sinh = root(least * (least + 2));
    const bool at_query = q.cone == CONE_OF_QUERY;
    const V turn = (at_query ? all_of(turned[i]) : load(s.turned + j)) * sinh;
    const V fall = (at_query ? 1 + of_x : load(s.H + j)) * least, rise = at_query ? of_y - of_x : of_x - of_y;
    return rise - fall - turn < all_of(F(-32 * u)) * (of_x + of_y + fall + turn);
  }

  // ---- exactly ---------------------------------------------------------------------------------------------------

  bool is_plain_pair(const Split<double>& s) const {
    return c >= LEAST_CURV && c <= LARGEST_CURV && is_plain_square(c * s.xx) && is_plain_square(c * s.yy);
  }
  bool is_plain_square(double square) const {
    return of_pairs.any_double ? is_plain(square, (const double*)nullptr) : is_plain(square, (const float*)nullptr);
  }

  double exact_z(const Split<double>& split, const void* x, const void* y) const {
    if (is_plain_pair(split)) return pair_geometry(split, c).z;
    const Wide z = pair_geometry(of_pairs.wide(x, y, D), Wide(c)).z;
    return z < 1e308L ? (double)z : INFINITE;
  }

  bool in_cone(const void* x, const void* y, const Split<double>& along_x) const {
    const bool at_query = q.cone == CONE_OF_QUERY;
    const Split<double> split = at_query ? along_x : of_pairs.split_of_item(x, y, D);
    if (is_plain_pair(split)) return pair_angle(pair_geometry(split, c)) <= widest(k * root(split.xx));
    const Split<Wide> wide = at_query ? of_pairs.wide(x, y, D) : of_pairs.wide_of_item(x, y, D);
    const Wide aperture = aperture_of(root(Wide(c)) * root(wide.xx), Wide(q.min_radius));
    return pair_angle(pair_geometry(wide, Wide(c))) <= q.aperture_scale * aperture;
  }

  // Whether a pair may be found, and its z.
  bool found_z(int64_t i, const Items& s, int64_t j, double& z) const {
    const void *x = query(i), *y = item(s, j);
    const Split<double> split = of_pairs.split(x, y, D);
    if (q.cone && !in_cone(x, y, split)) return false;
    z = exact_z(split, x, y);
    return true;
  }

  void pairs() const {
    for_rows(q.N, q.N * D > SMALL ? (int)q.threads : 1, [&](int64_t n) {
      const void *x = query(q.pair_queries[n]), *y = (const char*)q.items + n * q.stride * of_items.item;
      q.pair_z[n] = exact_z(of_pairs.split(x, y, D), x, y);
    });
  }

  // ---- modes -----------------------------------------------------------------------------------------------------

  // In the order of their bounds, as long as these are within what was found.
  void keep_nearest(int64_t i, const Items& s, Place* places, int64_t n) {
    for (int64_t at = n / 2; at-- > 0;) sink(places, n, at);
    while (n) {
      const Place place = places[0];
      if ((double)place.least > shared_value(limit + i)) return;
      places[0] = places[--n];
      sink(places, n, 0);
      double z;
      if (found_z(i, s, place.column, z)) insert(i, z, q.first + s.begin + place.column);
    }
  }

  static void sink(Place* heap, int64_t n, int64_t at) {
    const Place place = heap[at];
    for (int64_t child; (child = 2 * at + 1) < n; at = child) {
      if (child + 1 < n && heap[child + 1].least < heap[child].least) ++child;
      if (!(heap[child].least < place.least)) break;
      heap[at] = heap[child];
    }
    if (n) heap[at] = place;
  }

  static bool is_before(double z, int64_t id, double other_z, int64_t other_id) {
    return z < other_z || (z == other_z && id < other_id);
  }

  // The results of a query are a heap, with the last of the order at its root.
  void insert(int64_t i, double z, int64_t id) {
    while (__atomic_test_and_set(lock + i, __ATOMIC_ACQUIRE)) sched_yield();
    double* zs = q.z + i * q.k;
    int64_t *ids = q.ids + i * q.k, n = q.found[i];
    if (n < q.k) {
      int64_t at = n;
      for (; at; at = (at - 1) / 2) {
        const int64_t above = (at - 1) / 2;
        if (!is_before(zs[above], ids[above], z, id)) break;
        zs[at] = zs[above], ids[at] = ids[above];
      }
      zs[at] = z, ids[at] = id, q.found[i] = ++n;
    } else if (is_before(z, id, zs[0], ids[0])) {
      int64_t at = 0;
      for (int64_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && is_before(zs[child], ids[child], zs[child + 1], ids[child + 1])) ++child;
        if (!is_before(z, id, zs[child], ids[child])) break;
        zs[at] = zs[child], ids[at] = ids[child];
      }
      zs[at] = z, ids[at] = id;
    }
    if (n == q.k) set_shared(limit + i, zs[0]);
    __atomic_clear(lock + i, __ATOMIC_RELEASE);
  }

  void count(int64_t i, const Items& s, const Place* places, int64_t n, int64_t decidedly) {
    int64_t of[3] = {decidedly};  // nearer, tied, tied and before
    for (int64_t at = 0; at < n; ++at) {
      const int64_t id = q.first + s.begin + places[at].column;
      double z;
      if (id == q.targets[i]) continue;
      if (places[at].decided && !q.cone) ++of[0];
      else if (found_z(i, s, places[at].column, z)) {
        of[0] += z < q.limits[i], of[1] += z == q.limits[i], of[2] += z == q.limits[i] && id < q.targets[i];
      }
    }
    for (int64_t number = 0; number < 3; ++number)
      if (of[number]) __atomic_fetch_add(q.counts + number * q.Q + i, of[number], __ATOMIC_RELAXED);
  }

  void append(int64_t i, const Items& s, const Place* places, int64_t n) {
    for (int64_t at = 0; at < n; ++at) {
      double z;
      if (!found_z(i, s, places[at].column, z) || z > q.limits[i]) continue;
      const int64_t place = __atomic_fetch_add(q.n_hits, 1, __ATOMIC_RELAXED);
      if (place >= q.capacity) continue;
      q.hit_queries[place] = i, q.hit_ids[place] = q.first + s.begin + places[at].column, q.hit_z[place] = z;
    }
  }
};

template <class X, class T, class F>
void search_with(const Search& q) {
  SearchRun<F>(q, row_functions<X, F>(), row_functions<T, F>(), pair_functions<X, T>()).run();
}

// Queries are float64, or float32 if the items are float32 or narrower.
void search(const Search& q) {
  const bool wide = q.query_dtype == FLOAT64;
  switch (q.dtype) {
    case FLOAT64: return search_with<double, double, double>(q);
    case FLOAT32: return wide ? search_with<double, float, float>(q) : search_with<float, float, float>(q);
    case BFLOAT16: return wide ? search_with<double, Bfloat16, float>(q) : search_with<float, Bfloat16, float>(q);
    default: return wide ? search_with<double, Float16, float>(q) : search_with<float, Float16, float>(q);
  }
}

}  // namespace
