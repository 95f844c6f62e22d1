// Row-wise ops: what an op is, and how a batch of rows goes through it.
#pragma once
#include "memory.h"
#include "pair_geometry.h"
#include "parallel.h"

namespace {

// The inputs of a formula for one row: the split of its points (for one point |x|^2 only) and the scalars.
template <class Real>
struct Input {
  Split<Real> split;
  Real scale, c;
  const double* options;

  Real k() const { return root(c); }
  Real norm() const { return root(split.xx); }
  PairGeometry<Real> pair() const { return pair_geometry(split, c); }
};

template <class Real>
struct Upstream {
  Real value;        // of a number
  Dots<Real> dots;   // of a point
};

template <class Real>
struct Point {
  Combination<Real> row;
  bool beyond;  // see Hyperbolic
};

template <class Real>
struct Gradient {
  Combination<Real> by_x, by_y;
  Real by_scale, by_curv;
  bool beyond;
};

// An op is a class with the constants `points` (1 or 2) and `is_map` (it returns a point, else a number) and, for
// double and long double, the functions
//     value(input) -> Point or Real,   gradient(upstream, input) -> Gradient.

template <class T>
struct Result {  // of ops that return a number, and of their upstream gradients
  typedef float type;
};
template <>
struct Result<double> {
  typedef double type;
};

// ---- one row ---------------------------------------------------------------------------------------------------

// The range of squares times the curvature, and of the curvature, in which no formula leaves double's range.
constexpr double LEAST_SQUARE = 1e-90, LARGEST_SQUARE = 1e90, LEAST_CURV = 1e-60, LARGEST_CURV = 1e60;
constexpr double LARGEST_TERM = 1e300;

template <class T>
bool is_plain(double c_square, const T* point) {  // of a double, 0 may be a square that underflows
  return c_square <= LARGEST_SQUARE && (c_square >= LEAST_SQUARE || (c_square == 0 && !is_double(point)));
}

template <class Op, class T, class Real>
Input<Real> input_of(const RowSet<T>& r, Real scale, Real c, const double* options) {
  Input<Real> in = {{}, scale, c, options};
  if (Op::points == 2) in.split = split_along<Real>(r.x, r.y, r.width);
  else in.split.xx = square_of<Real>(r.x, r.width);
  return in;
}

template <class Op, class T>
bool is_plain(const Input<double>& in, const T* point) {
  const double square = in.scale * in.scale;
  return in.c >= LEAST_CURV && in.c <= LARGEST_CURV && is_plain(in.c * in.split.xx, point) &&
         (Op::points == 1 || is_plain(in.c * in.split.yy, point)) && square <= 1e20 &&
         (square >= 1e-20 || square == 0);
}

// An upper bound of the components' size.
inline double bound(const Combination<double>& f, const Split<double>& s, double gg) {
  return absolute(f.of_x) * root(s.xx) + absolute(f.of_n) * root(s.nn) + absolute(f.of_g) * root(gg);
}

template <class Op, class T>
void forward_row(const RowSet<T>& r, double scale, double c, const double* options, Split<double>* kept, void* out) {
  const Input<double> in = input_of<Op>(r, scale, c, options);
  if (kept) *kept = in.split;
  const bool plain = is_plain<Op>(in, r.x);
  if constexpr (Op::is_map) {
    if (plain) {
      const Point<double> p = Op::value(in);
      if (bound(p.row, in.split, 0) < LARGEST_TERM) return combine((T*)out, p.row, r, in.split);
    }
    const Input<Wide> wide = input_of<Op>(r, Wide(scale), Wide(c), options);
    const Point<Wide> p = Op::value(wide);
    combine_wide((T*)out, p.row, r, wide.split, p.beyond, TO_INFINITY);
  } else {
    typename Result<T>::type* number = (typename Result<T>::type*)out;
    if (plain) {
      const double value = Op::value(in);
      if (absolute(value) < LARGEST_TERM) return from_double(number, value);
    }
    from_double(number, (double)Op::value(input_of<Op>(r, Wide(scale), Wide(c), options)));
  }
}

template <class Op, class T, class Real>
Upstream<Real> upstream_of(const RowSet<T>& r, const void* grad, const Split<Real>& split) {
  if constexpr (Op::is_map) return {0, dots_with(r.g, r.x, r.y, split, r.width)};
  else return {(Real)*(const typename Result<T>::type*)grad, {}};
}

// A gradient of a row out of range, stored or added to an earlier one.
template <class T>
void put_wide(T* out, bool adds, const Combination<Wide>& f, const RowSet<T>& r, const Split<Wide>& s, bool beyond) {
  if (!adds) return combine_wide(out, f, r, s, beyond, KEEP_DIRECTION);
  Arena arena;
  T* row = arena.take<T>(r.width);
  combine_wide(row, f, r, s, beyond, KEEP_DIRECTION);
  for (int64_t j = 0; j < r.width; ++j) from_double(out + j, to_double(out[j]) + to_double(row[j]));
}

struct Shares {
  double *by_scale, *by_curv;  // null: not wanted
};

template <class Op, class T>
void backward_row(const RowSet<T>& r, const void* grad, double scale, double c, const double* options,
                  const Split<double>* kept, const PairOfRows<T>& out, Shares shares) {
  const auto store_shares = [&](auto g) {
    if (shares.by_scale) *shares.by_scale = (double)g.by_scale;
    *shares.by_curv = (double)g.by_curv;
  };
  const Input<double> in = kept ? Input<double>{*kept, scale, c, options} : input_of<Op>(r, scale, c, options);
  if (is_plain<Op>(in, r.x)) {
    const Upstream<double> up = upstream_of<Op>(r, grad, in.split);
    const Gradient<double> g = Op::gradient(up, in);
    const double limit = is_double(r.x) ? LARGEST_TERM : largest_of(r.x), gg = up.dots.gg;
    const bool fits = bound(g.by_x, in.split, gg) <= limit &&
                      (Op::points == 1 || bound(g.by_y, in.split, gg) <= limit);
    if (fits && absolute(g.by_curv) < LARGEST_TERM && absolute(g.by_scale) < LARGEST_TERM) {
      store_shares(g);
      if (Op::points == 2 && !Op::is_map) return combine_both(out, g.by_x, g.by_y, r, in.split);
      combine(out.x, g.by_x, r, in.split);
      if (Op::points == 2) combine(out.y, g.by_y, r, in.split);
      return;
    }
  }
  const Input<Wide> wide = input_of<Op>(r, Wide(scale), Wide(c), options);
  const Gradient<Wide> g = Op::gradient(upstream_of<Op>(r, grad, wide.split), wide);
  store_shares(g);
  put_wide(out.x, out.adds_to_x, g.by_x, r, wide.split, g.beyond);
  if (Op::points == 2) put_wide(out.y, out.adds_to_y, g.by_y, r, wide.split, g.beyond);
}

// ---- a batch of rows -------------------------------------------------------------------------------------------

// Elements from the start of a tensor to its row `index`.
inline int64_t offset_of(const Rows& q, const Operand& o, int64_t index) {
  if (q.dims == 1) return index * o.stride[0];
  int64_t offset = 0;
  for (int dim = q.dims - 1; dim >= 0; --dim) {
    offset += index % q.size[dim] * o.stride[dim];
    index /= q.size[dim];
  }
  return offset;
}

template <class T>
const T* row_of(const Rows& q, const Operand& o, int64_t index) {
  return o.data ? (const T*)o.data + offset_of(q, o, index) : nullptr;
}

template <class Op, class T>
void run_rows(const Rows& q) {
  typedef typename Result<T>::type Number;
  void* const large[] = {Op::is_map ? q.out : nullptr, q.by_x, q.by_y};
  for (void* memory : large) in_large_pages(memory, q.count * q.width * (int64_t)sizeof(T));
  const int64_t a_task = q.width < SMALL / 2 ? SMALL / 2 / (q.width + 1) + 1 : 1, tasks = (q.count + a_task - 1) / a_task;
  for_tasks(tasks, q.threads, [&](int64_t task) {
    const int64_t end = (task + 1) * a_task < q.count ? (task + 1) * a_task : q.count;
    for (int64_t i = task * a_task; i < end; ++i) {
      RowSet<T> r = {row_of<T>(q, q.x, i), nullptr, nullptr, q.width};
      if (Op::points == 2) r.y = row_of<T>(q, q.y, i);
      const double c = *row_of<double>(q, q.curv, i), scale = q.scale.data ? *row_of<double>(q, q.scale, i) : 1;
      Split<double>* kept = q.kept ? (Split<double>*)q.kept + i : nullptr;
      if (!q.backward) {
        void* out = Op::is_map ? (void*)((T*)q.out + i * q.width) : (void*)((Number*)q.out + i);
        forward_row<Op>(r, scale, c, q.options, kept, out);
        continue;
      }
      if (Op::is_map) r.g = row_of<T>(q, q.grad, i);
      const void* grad = Op::is_map ? nullptr : row_of<Number>(q, q.grad, i);
      const Shares shares = {q.by_scale ? q.by_scale + i : nullptr, q.by_curv + i};
      const PairOfRows<T> grads = {(T*)q.by_x + i * q.width, Op::points == 2 ? (T*)q.by_y + i * q.width : nullptr,
                                   q.adds_to_x != 0, q.adds_to_y != 0};
      backward_row<Op>(r, grad, scale, c, q.options, kept, grads, shares);
    }
  });
  if (q.curv_total) *q.curv_total = total_of(q.by_curv, q.count);
  if (q.scale_total) *q.scale_total = total_of(q.by_scale, q.count);
}

}  // namespace
