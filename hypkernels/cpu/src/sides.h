// Point sets as tiles of pairs take them: centred, with the scalars of each point.
//
// With centres o and p of two sets (any vectors give right results; the nearer they are to the points, the less a
// product rounds), k = sqrt(c), P = k|x| and Q = k|y|:
//
//     u = k x - P o,   v = k y - Q p,   lateral = P Q - c x.y = t_x Q + P t_y - u.v,
//     t_x = P (1 + o.p)/2 - k p.x
//
// Every term is as small as the points are near their centre, so nothing large cancels.
#pragma once
#include "memory.h"
#include "parallel.h"
#include "products.h"
#include "rows.h"

namespace {

constexpr int64_t CENTRE_SAMPLE = 128;  // rows from which a centre is estimated
constexpr int64_t PREPARED_ROWS = 64;   // that are one task

inline int64_t up(int64_t n, int64_t m) { return (n + m - 1) / m * m; }
inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger_of(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t blocks_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

// body(i) for each of `count` rows, many of them one task.
template <class Body>
void for_rows(int64_t count, int threads, const Body& body) {
  for_tasks(blocks_of(count, PREPARED_ROWS), threads, [&](int64_t task) {
    for (int64_t i = task * PREPARED_ROWS; i < at_most((task + 1) * PREPARED_ROWS, count); ++i) body(i);
  });
}

inline double cosh_minus_1(double a) {
  const double half = __builtin_sinh(a / 2);
  return 2 * half * half;
}

// The functions of rows of points, for the dtype in which they are stored; tiles have the type F.
template <class F>
struct PointReader {
  int64_t item;  // bytes
  double (*square)(const void* x, int64_t width);
  double (*dot)(const void* x, const double* centre, int64_t width);
  // |x|^2 and the products with n centres, which lie one after the other.
  void (*summary)(const void* x, const double* centres, int64_t n, int64_t width, double* out);
  void (*add)(double* total, double factor, const void* x, int64_t width);           // total += factor x
  void (*centred)(F* u, double k, const void* x, double P, const double* centre, int64_t width);  // u = k x - P centre
  Split<double> (*split)(const void* x, const void* y, int64_t width);
  // out = base + of_own own + around centre + of_x x + of_n n, out and base each in one of two forms.
  void (*add_term)(void* out, double* wide_out, const F* base, const double* wide_base, double of_own, const void* own,
                   double around, const double* centre, const void* x, const void* y, const Combination<double>& of,
                   const Split<double>& split, int64_t width);
  bool (*is_finite)(const void* row, int64_t width);
  void (*saturate)(void* out, const double* row, int64_t width);  // rounded, and shortened until it is in range
};

template <class T, class F>
struct ReaderOf {
  static double square(const void* x, int64_t width) { return square_of<double>((const T*)x, width); }

  static double dot(const void* x, const double* centre, int64_t width) {
    double of[1];
    add_up(width, of, [=](auto at, auto* total) { total[0] += at((const T*)x) * at(centre); });
    return of[0];
  }

  template <int N>
  static void square_and_dots(const T* x, const double* centres, int64_t width, double* out) {
    double of[1 + N];
    add_up(width, of, [=](auto at, auto* total) {
      const auto a = at(x);
      total[0] += a * a;
      for (int n = 0; n < N; ++n) total[1 + n] += a * at(centres + n * width);
    });
    out[0] = of[0];
    for (int n = 0; n < N; ++n) out[1 + n] = of[1 + n];
  }

  static void summary(const void* x, const double* centres, int64_t n, int64_t width, double* out) {
    double some[5];
    for (int64_t o = 0; o < n; o += 4) {
      const int64_t count = at_most(n - o, 4);
      const auto sums = count == 1   ? square_and_dots<1>
                        : count == 2 ? square_and_dots<2>
                        : count == 3 ? square_and_dots<3>
                                     : square_and_dots<4>;
      sums((const T*)x, centres + o * width, width, some);
      out[0] = some[0];
      memcpy(out + 1 + o, some + 1, count * sizeof(double));
    }
  }

  static void add(double* total, double factor, const void* x, int64_t width) {
    write(total, width, [=](auto at) { return at((const double*)total) + factor * at((const T*)x); });
  }

  static void centred(F* u, double k, const void* x, double P, const double* centre, int64_t width) {
    write(u, width, [=](auto at) { return k * at((const T*)x) - P * at(centre); });
  }

  static Split<double> split(const void* x, const void* y, int64_t width) {
    return split_along<double>((const T*)x, (const T*)y, width);
  }

  static void add_term(void* out, double* wide_out, const F* base, const double* wide_base, double of_own,
                       const void* own_row, double around, const double* centre, const void* x_row, const void* y_row,
                       const Combination<double>& of, const Split<double>& split, int64_t width) {
    const T *own = (const T*)own_row, *x = (const T*)x_row, *y = (const T*)y_row;
    const double of_x = of.of_x, of_n = of.of_n, coarse = split.coarse, fine = split.fine;
    const auto rest = [=](auto at) {
      const auto a = at(x);
      return (of_own * at(own) + around * at(centre)) + (of_x * a + of_n * ((at(y) - coarse * a) - fine * a));
    };
    if (base && out) return write((T*)out, width, [=](auto at) { return at(base) + rest(at); });
    if (base) return write(wide_out, width, [=](auto at) { return at(base) + rest(at); });
    if (out) return write((T*)out, width, [=](auto at) { return at(wide_base) + rest(at); });
    write(wide_out, width, [=](auto at) { return at(wide_base) + rest(at); });
  }

  static bool is_finite(const void* row, int64_t width) {
    double nothing[1];  // times an infinite number it is none
    add_up(width, nothing, [=](auto at, auto* total) { total[0] += 0 * at((const T*)row); });
    return nothing[0] == 0;
  }

  static void saturate(void* out, const double* row, int64_t width) {
    double top = 0;
    for (int64_t j = 0; j < width; ++j) top = absolute(row[j]) > top ? absolute(row[j]) : top;
    const double largest = largest_of((const T*)nullptr), shrink = top > largest ? largest / top : 1;
    write((T*)out, width, [=](auto at) { return shrink * at(row); });
  }

  static const PointReader<F>* get() {
    static const PointReader<F> reader = {sizeof(T), square, dot, summary, add, centred, split, add_term, is_finite, saturate};
    return &reader;
  }
};

template <class F>
struct Side {
  const PointReader<F>* reader;
  const char* points;
  int64_t stride, count;  // stride: in bytes
  double* table;          // a row: |x|^2, products with all centres
  double* centre;
  F* u;                                             // (count, width); or null
  F *P, *A, *inverse_A, *apart, *growth, *shrink;   // padded to whole vectors
  double *P_wide, *A_wide;

  const void* row(int64_t i) const { return points + i * stride; }
};

// Mean direction of a few rows.
template <class F>
void find_centre(Side<F>& s, int64_t width) {
  memset(s.centre, 0, width * sizeof(double));
  const int64_t step = s.count > CENTRE_SAMPLE ? s.count / CENTRE_SAMPLE : 1;
  int64_t found = 0;
  for (int64_t i = 0; i < s.count; i += step) {
    const double norm = root(s.reader->square(s.row(i), width));
    if (!(norm > 0) || !(norm < 1e150)) continue;
    ++found;
    s.reader->add(s.centre, 1 / norm, s.row(i), width);
  }
  for (int64_t j = 0; j < width && found; ++j) s.centre[j] = (F)(s.centre[j] / found);
}

// Fills the scalars of some rows, from the tables, and u, if there is one.
template <class F>
void prepare_rows(Side<F>& s, int64_t begin, int64_t end, int64_t width, int64_t table_width, double c,
                  double typical) {
  const double k = root(c), typical_A_minus_1 = cosh_minus_1(typical);
  for (int64_t i = begin; i < end; ++i) {
    const double P = k * root(s.table[i * table_width]), A = root(1 + P * P), a = __builtin_asinh(P) - typical;
    s.P_wide[i] = P, s.A_wide[i] = A;
    s.P[i] = (F)P, s.A[i] = (F)A, s.inverse_A[i] = (F)(1 / A), s.apart[i] = (F)(P * P / (1 + A) - typical_A_minus_1);
    s.growth[i] = (F)__builtin_expm1(a), s.shrink[i] = (F)__builtin_exp(-a / 2);
    if (s.u) s.reader->centred(s.u + i * width, k, s.row(i), P, s.centre, width);
  }
  if (end < s.count) return;
  F* scalars[] = {s.P, s.A, s.inverse_A, s.apart, s.growth, s.shrink};
  for (F* f : scalars)  // what vectors read past the end
    for (int64_t i = end; i < up(end, LANES) + LANES; ++i) f[i] = end ? f[end - 1] : F(0);
}

// A row of a gradient: G, a multiple of the point itself, and then multiples of centres and combinations of two points
// as they come, rounded once. The first of those goes with G, and the last with the rounding.
template <class F>
class GradientRow {
 public:
  // `row` is memory for one row.
  GradientRow(const PointReader<F>& reader, int64_t width, const F* G, double of_own, const void* own,
              const double* centre, double* row)
      : reader_(reader), width_(width), G_(G), of_own_(of_own), own_(own), row_(row), centre_(centre), x_(own), y_(own) {}

  void add_centre(double around, const double* centre) {
    if (has_centre_) settle();
    around_ = around, centre_ = centre, has_centre_ = true;
  }

  void add_points(const void* x, const void* y, const Combination<double>& of, const Split<double>& split) {
    if (has_points_) settle();
    x_ = x, y_ = y, of_ = of, split_ = split, has_points_ = true;
  }

  // A row that leaves the range of its type keeps its direction, except one that is written over G.
  void finish(void* out) {
    add_terms(out);
    if (out == (const void*)G_ || reader_.is_finite(out, width_)) return;
    add_terms(nullptr);
    reader_.saturate(out, row_, width_);
  }

 private:
  void add_terms(void* out) {
    reader_.add_term(out, row_, begun_ ? nullptr : G_, row_, begun_ ? 0 : of_own_, own_, around_, centre_, x_, y_, of_,
                     split_, width_);
  }

  void settle() {
    add_terms(nullptr);
    begun_ = true, has_centre_ = has_points_ = false, around_ = 0, of_ = {};
  }

  const PointReader<F>& reader_;
  const int64_t width_;
  const F* G_;
  const double of_own_;
  const void* own_;
  double* row_;
  bool begun_ = false, has_centre_ = false, has_points_ = false;
  double around_ = 0;
  const double* centre_;
  const void *x_, *y_;
  Combination<double> of_ = {};
  Split<double> split_ = {};
};

}  // namespace
