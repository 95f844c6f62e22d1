// Functions of one number, in double and in long double: no cancellation at zero.
#pragma once
#include <math.h>

namespace {

// Overloads of the two precisions without namespace std, see vectors.h.
inline double root(double a) { return __builtin_sqrt(a); }
inline long double root(long double a) { return __builtin_sqrtl(a); }
inline double absolute(double a) { return __builtin_fabs(a); }
inline long double absolute(long double a) { return __builtin_fabsl(a); }
inline double sinh_of(double a) { return __builtin_sinh(a); }
inline long double sinh_of(long double a) { return __builtin_sinhl(a); }
inline double cosh_of(double a) { return __builtin_cosh(a); }
inline long double cosh_of(long double a) { return __builtin_coshl(a); }
inline double asinh_of(double a) { return __builtin_asinh(a); }
inline long double asinh_of(long double a) { return __builtin_asinhl(a); }
inline double atan_of(double a) { return __builtin_atan(a); }
inline long double atan_of(long double a) { return __builtin_atanl(a); }
inline double angle_of(double y, double x) { return __builtin_atan2(y, x); }
inline long double angle_of(long double y, long double x) { return __builtin_atan2l(y, x); }

template <class Real>
Real ratio(Real numerator, Real denominator) {  // 0 where the denominator is 0
  return denominator == 0 ? 0 : numerator / denominator;
}

// cosh(t), sinh(t)/t and (cosh(t) - sinh(t)/t)/t^2. Where they leave the range of a long double they are all divided
// by exp(t), and `beyond` is set.
template <class Real>
struct Hyperbolic {
  Real cosh, sinhc, slope;
  bool beyond;
};

constexpr double FARTHEST = 11000;  // exp of it is a long double

template <class Real>
Real sinhc_slope_series(Real t2) {
  Real total = 0, term = Real(1) / 3;  // (2j + 2)/(2j + 3)!
  for (int j = 0; j < 14; ++j) {
    total += term;
    term *= t2 / ((2 * j + 2) * Real(2 * j + 5));
  }
  return total;
}

template <class Real>
Hyperbolic<Real> hyperbolic(Real t) {
  Hyperbolic<Real> h = {};
  h.beyond = sizeof(Real) > sizeof(double) && t > FARTHEST;
  const Real t2 = t * t;
  h.cosh = h.beyond ? Real(0.5) : cosh_of(t);
  h.sinhc = h.beyond ? Real(0.5) / t : t == 0 ? Real(1) : sinh_of(t) / t;
  h.slope = t < 2 ? sinhc_slope_series(t2) : (h.cosh - h.sinhc) / t2;
  return h;
}

template <class Real>
Real sinhc(Real t) {
  return t == 0 ? 1 : sinh_of(t) / t;
}

template <class Real>
Real asinhc(Real s) {
  return s == 0 ? 1 : asinh_of(s) / s;
}

// (atanh(t) - t)/t^3 as a function of w = t^2 <= 0.15.
template <class Real>
Real atanh_excess(Real w) {
  Real total = 0;
  for (int j = 19; j >= 0; --j) total = total * w + Real(1) / (2 * j + 3);
  return total;
}

// asinh(s) - tanh(asinh(s)) = asinh(s) - s/sqrt(1 + s^2).
template <class Real>
Real tanh_deficit_of_sinh(Real s) {
  const Real w = s * s / (1 + s * s), t = s / root(1 + s * s);
  return w < 0.15 ? t * w * atanh_excess(w) : asinh_of(s) - t;
}

// asinhc'(s)/s = (1/sqrt(1 + s^2) - asinhc(s))/s^2, -1/3 at zero.
template <class Real>
Real asinhc_slope(Real s) {
  const Real w = s * s / (1 + s * s);
  if (w < 0.15) return -atanh_excess(w) * (1 - w) * root(1 - w);
  return (1 / root(1 + s * s) - asinhc(s)) / (s * s);
}

}  // namespace
