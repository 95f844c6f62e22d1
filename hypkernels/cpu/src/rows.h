// Rows in memory: sums over them, and combinations of them.
//
// A formula of columns is written once, as a generic lambda of `at`: `at(p)` is the vector of `HALF` columns of row
// `p` at the place in question, or a single one as a double, or as a long double, for rows whose squares or whose
// gradients leave double's range.
#pragma once
#include "api.h"
#include "functions.h"
#include "vectors.h"

namespace {

typedef long double Wide;
static_assert(sizeof(Wide) > sizeof(double), "rows out of range need a long double of more range than double's");

struct VectorAt {
  int64_t j;
  template <class T>
  vd operator()(const T* p) const {
    return widen(p + j);
  }
};

struct SingleAt {
  int64_t j;
  template <class T>
  double operator()(const T* p) const {
    return to_double(p[j]);
  }
};

struct WideAt {
  int64_t j;
  template <class T>
  Wide operator()(const T* p) const {
    return to_double(p[j]);
  }
};

// terms(at, s) adds to the N sums s. Two sets of sums hide the latency of additions.
template <int N, class Terms>
inline void add_up(int64_t width, double (&out)[N], const Terms& terms) {
  vd even[N] = {}, odd[N] = {};
  int64_t j = 0;
  for (; j + LANES <= width; j += LANES) {
    terms(VectorAt{j}, even);
    terms(VectorAt{j + HALF}, odd);
  }
  for (int n = 0; n < N; ++n) out[n] = sum(even[n] + odd[n]);
  for (; j < width; ++j) terms(SingleAt{j}, out);
}

template <int N, class Terms>
inline void add_up(int64_t width, Wide (&out)[N], const Terms& terms) {
  for (int n = 0; n < N; ++n) out[n] = 0;
  for (int64_t j = 0; j < width; ++j) terms(WideAt{j}, out);
}

// out[j] = value(at j), rounded.
template <class T, class Value>
inline void write(T* out, int64_t width, const Value& value) {
  int64_t j = 0;
  for (; j + HALF <= width; j += HALF) narrow(out + j, value(VectorAt{j}));
  for (; j < width; ++j) from_double(out + j, value(SingleAt{j}));
}

// ---- two rows --------------------------------------------------------------------------------------------------

// y = (coarse + fine) x + n, n across x; |x|^2, |n|^2, and |y|^2. For x = 0 the factors are 0 and n = y.
template <class Real>
struct Split {
  Real xx, coarse, fine, nn, yy;
  Real alpha() const { return coarse + fine; }
  Real alpha_minus_1() const { return (coarse - 1) + fine; }
};

static_assert(sizeof(Split<double>) == KEPT_OF_ROW * sizeof(double), "what is kept of a row is its split");

// Rounded to 8 bits: the product with a float is exact, and a number next to 1 becomes 1.
inline double leading_bits(double v) {
  uint64_t bits;
  memcpy(&bits, &v, 8);
  bits = (bits + (uint64_t(1) << 44)) & ~((uint64_t(1) << 45) - 1);
  memcpy(&v, &bits, 8);
  return v;
}

inline Wide leading_bits(Wide v) {
  int exponent;
  const Wide mantissa = __builtin_frexpl(v, &exponent);
  return __builtin_ldexpl(__builtin_roundl(mantissa * 256) / 256, exponent);
}

// If the square of a lateral part is below this share of what it was computed from, it is rounding.
constexpr double ROUNDING_NOISE = 0x1p-98;

// The second Gram-Schmidt step: what the first left is small, so this one rounds relative to it and not to y.
template <class Real, class T, class U>
__attribute__((noinline)) void refine(const T* x, const U* y, int64_t width, Split<Real>& s) {
  const Real coarse = s.coarse;
  Real rest[1], across[1];
  add_up(width, rest, [=](auto at, auto* total) {
    const auto a = at(x);
    total[0] += a * (at(y) - coarse * a);
  });
  const Real fine = s.fine = ratio(rest[0], s.xx);
  add_up(width, across, [=](auto at, auto* total) {
    const auto a = at(x), n = (at(y) - coarse * a) - fine * a;
    total[0] += n * n;
  });
  s.nn = across[0] <= ROUNDING_NOISE * (across[0] + fine * fine * s.xx) ? 0 : across[0];
}

constexpr bool is_double(const double*) { return true; }
template <class T>
constexpr bool is_double(const T*) { return false; }

// Two Gram-Schmidt steps; only the first one for points of less than double precision, if nothing cancels in it.
template <class Real, class T, class U>
__attribute__((noinline)) Split<Real> split_along(const T* x, const U* y, int64_t width) {
  Real of[3];
  add_up(width, of, [=](auto at, auto* total) {
    const auto a = at(x), b = at(y);
    total[0] += a * a, total[1] += a * b, total[2] += b * b;
  });
  const Real alpha = ratio(of[1], of[0]);
  Split<Real> s = {of[0], leading_bits(alpha), 0, of[2] - alpha * of[1], of[2]};
  s.fine = alpha - s.coarse;
  if (is_double(x) || is_double(y) || !(s.nn > 0.1 * of[2])) refine(x, y, width, s);
  return s;
}

template <class Real, class T>
__attribute__((noinline)) Real square_of(const T* x, int64_t width) {
  Real of[1];
  add_up(width, of, [=](auto at, auto* total) {
    const auto a = at(x);
    total[0] += a * a;
  });
  return of[0];
}

// x.g, y.g, n.g and |g|^2; y may be null.
template <class Real>
struct Dots {
  Real xg, yg, ng, gg;
};

template <class Real, class T>
__attribute__((noinline)) Dots<Real> dots_with(const T* g, const T* x, const T* y, const Split<Real>& s,
                                               int64_t width) {
  if (!y) {
    Real of[2];
    add_up(width, of, [=](auto at, auto* total) {
      const auto u = at(g);
      total[0] += at(x) * u, total[1] += u * u;
    });
    return {of[0], 0, 0, of[1]};
  }
  const Real coarse = s.coarse, fine = s.fine;
  Real of[4];
  add_up(width, of, [=](auto at, auto* total) {
    const auto u = at(g), a = at(x), b = at(y);
    total[0] += a * u, total[1] += b * u, total[2] += ((b - coarse * a) - fine * a) * u, total[3] += u * u;
  });
  return {of[0], of[1], of[2], of[3]};
}

// ---- combinations ----------------------------------------------------------------------------------------------

// of_g G + of_x X + of_n N of an upstream row, the first point and the second's part across it.
template <class Real>
struct Combination {
  Real of_g, of_x, of_n;
};

// Rows of which `y` or `g` may be null; a row that is null has a coefficient of 0.
template <class T>
struct RowSet {
  const T *x, *y, *g;
  int64_t width;
};

template <class T>
__attribute__((noinline)) void combine(T* out, const Combination<double>& f, const RowSet<T>& r,
                                       const Split<double>& s) {
  const T *x = r.x, *y = r.y, *g = r.g;
  const double of_g = f.of_g, of_x = f.of_x, of_n = f.of_n, coarse = s.coarse, fine = s.fine;
  if (y && g) {
    write(out, r.width, [=](auto at) {
      const auto a = at(x);
      return (of_g * at(g) + of_x * a) + of_n * ((at(y) - coarse * a) - fine * a);
    });
  } else if (y) {
    write(out, r.width, [=](auto at) {
      const auto a = at(x);
      return of_x * a + of_n * ((at(y) - coarse * a) - fine * a);
    });
  } else if (g) {
    write(out, r.width, [=](auto at) { return of_g * at(g) + of_x * at(x); });
  } else {
    write(out, r.width, [=](auto at) { return of_x * at(x); });
  }
}

// Where both gradients of a pair go. They may be one row, to which the second then adds.
template <class T>
struct PairOfRows {
  T *x, *y;
  bool adds_to_x, adds_to_y;
};

// Both gradients of a pair at a time, for rows none of which is null.
template <class T>
__attribute__((noinline)) void combine_both(const PairOfRows<T>& out, const Combination<double>& of_x,
                                            const Combination<double>& of_y, const RowSet<T>& r,
                                            const Split<double>& s) {
  T *by_x = out.x, *by_y = out.y;
  const bool adds_to_x = out.adds_to_x, adds_to_y = out.adds_to_y;
  const double xx = of_x.of_x, xn = of_x.of_n, yx = of_y.of_x, yn = of_y.of_n, coarse = s.coarse, fine = s.fine;
  const T *x = r.x, *y = r.y;
  const int64_t width = r.width;
  int64_t j = 0;
  for (; j + HALF <= width; j += HALF) {
    const vd a = widen(x + j), n = (widen(y + j) - coarse * a) - fine * a, gx = xx * a + xn * n, gy = yx * a + yn * n;
    narrow(by_x + j, adds_to_x ? widen(by_x + j) + gx : gx);
    narrow(by_y + j, adds_to_y ? widen(by_y + j) + gy : gy);
  }
  for (; j < width; ++j) {
    const double a = to_double(x[j]), n = (to_double(y[j]) - coarse * a) - fine * a;
    const double gx = xx * a + xn * n, gy = yx * a + yn * n;
    from_double(by_x + j, adds_to_x ? to_double(by_x[j]) + gx : gx);
    from_double(by_y + j, adds_to_y ? to_double(by_y[j]) + gy : gy);
  }
}

// ---- rows out of range -----------------------------------------------------------------------------------------

inline double largest_of(const double*) { return 0x1.fffffffffffffp1023; }
inline double largest_of(const float*) { return 0x1.fffffep127; }
inline double largest_of(const Bfloat16*) { return 0x1.fep127; }
inline double largest_of(const Float16*) { return 65504; }

enum Overflow { TO_INFINITY, KEEP_DIRECTION };

// In long double. A coefficient that overflows gives 0 where a component is 0. `beyond`: the coefficients are shares
// of a number beyond even this range. What does not fit T is infinite; or, of a gradient, the whole row is scaled
// until its largest component is the largest number of T.
template <class T>
__attribute__((noinline)) void combine_wide(T* out, const Combination<Wide>& f, const RowSet<T>& r,
                                            const Split<Wide>& s, bool beyond, Overflow overflow) {
  const auto times = [](Wide factor, Wide v) { return v == 0 || factor == 0 ? 0 : factor * v; };
  const auto value = [&](int64_t j) {
    const Wide a = to_double(r.x[j]);
    Wide total = times(f.of_x, a);
    if (r.y) total += times(f.of_n, (to_double(r.y[j]) - times(s.coarse, a)) - times(s.fine, a));
    if (r.g) total += times(f.of_g, to_double(r.g[j]));
    return total;
  };
  if (overflow == TO_INFINITY) {
    for (int64_t j = 0; j < r.width; ++j) {
      const Wide v = value(j);
      from_double(out + j, (double)(beyond ? times(__builtin_infl(), v) : v));
    }
    return;
  }
  Wide top = 0;
  for (int64_t j = 0; j < r.width; ++j) {
    const Wide size = absolute(value(j));
    if (size > top) top = size;
  }
  const Wide largest = largest_of(out);
  const Wide shrink = top > largest || (beyond && top > 0) ? largest / top : 1;
  for (int64_t j = 0; j < r.width; ++j) from_double(out + j, (double)(value(j) * shrink));
}

}  // namespace
