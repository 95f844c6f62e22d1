// Gaps on tiles of pairs, which the logits are made of, and their derivatives: functions of
//
//     lateral = P Q - c x.y,   chord = 2 sinh((b - a)/2),   z = cosh(kd) - 1 = lateral + chord^2/2
//
// as hypkernels/pairwise/closed_form.py derives them. For pairs closer than the resolution of the tile's product the
// slope of a gap is taken at the resolution.
#pragma once
#include "cone.h"
#include "distance.h"
#include "tile_math.h"

namespace {

constexpr double LN2 = 0.693147180559945309417;
constexpr double RESOLUTION_ULPS = 16;

inline double epsilon_of(const float*) { return 0x1p-23; }
inline double epsilon_of(const double*) { return 0x1p-52; }
// The least square of sinh(kd) whose root has a finite inverse.
inline vf at_least_tiny(vf q) { return larger(q, splat(1e-37f)); }
inline vd at_least_tiny(vd q) { return larger(q, splat_wide(1e-300)); }

// The scalars of points that a gap may use: of a side, and of rows or columns of a tile.
template <class V>
struct PointTerms {
  V P, A, inverse_A, apart, growth, shrink;  // apart: A less the typical one
};

// The gradient of a pair whose logit has the weight 1: the slope W by z in dx_i = k (W v)_i + ..., the terms of
// -c x_i and -c y_j, and those of the gradient by the curvature, which count once and half.
template <class V>
struct PairTerms {
  V slope, own_x, own_y, excess, radial;
};

// Gaps that depend on z alone. `gap` returns, of z, the gap over ln 2; `by_z` the gap's derivative, and `excess`, what
// is left of (power * gap - by_z * z), both for vectors at a time. NEAR: some pairs are so near that it cancels.
struct DistanceGap {
  static constexpr double power = 0.5;

  template <class V>
  static V sinh_of(V z) {
    return root(at_least_tiny(z * z + 2 * z));
  }

  template <class V>
  static V gap(V z) {
    return log2_1p(z + sinh_of(z));
  }

  template <bool NEAR, class V>
  static V gap_and_slope(V z, V resolution, V& by_z, V& excess) {
    const V sinh = sinh_of(z), value = log2_1p(z + sinh);
    V inverse_sinh = 1 / sinh;
    const V tanh = z * inverse_sinh;  // of kd/2
    excess = value * (decltype(value[0] + 0))(LN2 / 2) - tanh;
    if (NEAR) {
      const V square = tanh * tanh;
      if (any_of(square < 0.2f)) excess = square < 0.2f ? tanh * square * atanh_excess_near(square) : excess;
      if (any_of(resolution > z)) inverse_sinh = resolution > z ? 1 / sinh_of(resolution) : inverse_sinh;
    }
    by_z = inverse_sinh;
    return value;
  }

  static double of_rows(const PairGeometry<double>& p) { return pair_dist(p); }
  static Gradient<double> of_rows_gradient(double grad, const PairGeometry<double>& p) {
    return pair_dist_gradient(grad, p);
  }
};

// A number in two parts, whose product with a vector rounds once.
template <class V, class F = decltype(V()[0] + 0)>
V times(V a, double factor) {
  const F high = (F)factor, low = (F)(factor - (double)high);
  return a * high + a * low;
}

struct SquaredDistanceGap {
  static constexpr double power = 1;

  template <class V>
  static V gap(V z) {
    const V bits = DistanceGap::gap(z);
    return times(bits * bits, LN2);
  }

  template <bool NEAR, class V>
  static V gap_and_slope(V z, V resolution, V& by_z, V& excess) {
    const V bits = DistanceGap::gap_and_slope<NEAR>(z, resolution, by_z, excess);
    const V twice = times(bits, 2 * LN2);
    by_z = twice * by_z, excess = twice * excess;
    return times(bits * bits, LN2);
  }

  static double of_rows(const PairGeometry<double>& p) {
    const double d = pair_dist(p);
    return d * d;
  }
  static Gradient<double> of_rows_gradient(double grad, const PairGeometry<double>& p) {
    return pair_dist_gradient(2 * pair_dist(p) * grad, p);
  }
};

struct NegativeInnerGap {
  static constexpr double power = 1;

  template <class V>
  static V gap(V z) {
    return times(1 + z, 1 / LN2);
  }

  template <bool NEAR, class V>
  static V gap_and_slope(V z, V, V& by_z, V& excess) {
    by_z = excess = V{} + 1;
    return gap(z);
  }

  static double of_rows(const PairGeometry<double>& p) { return (1 + p.z) / p.c; }
  static Gradient<double> of_rows_gradient(double grad, const PairGeometry<double>& p) {
    return {p.z_direction(-grad / p.A), p.z_direction(grad / p.B), 0,
            -grad * (p.A / p.B + p.B / p.A) / (2 * p.c * p.c), false};
  }
};

// A function of z with the interface of all gaps: `prepare` makes of a lateral part what a tile holds of a pair.
template <class Of>
struct GapOfZ {
  static constexpr double power = Of::power;

  template <bool NEAR, class V>
  static PairTerms<V> terms(V z, V, const PointTerms<V>& x, const PointTerms<V>& y, V resolution, V& gap) {
    PairTerms<V> t;
    gap = Of::template gap_and_slope<NEAR>(z, resolution, t.slope, t.excess);
    const V between = x.apart - y.apart;
    t.own_x = t.slope * y.A, t.own_y = t.slope * x.A;
    t.radial = t.slope * (between * between * y.inverse_A);  // over A of x, which is for later
    return t;
  }

  template <class V>
  static V gap(V z) {
    return Of::gap(z);
  }
  static double of_rows(const PairGeometry<double>& p) { return Of::of_rows(p); }
  static Gradient<double> of_rows_gradient(double grad, const PairGeometry<double>& p) {
    return Of::of_rows_gradient(grad, p);
  }
};

// A gap that a tile holds in a buffer, in place of z.
struct HeldGap {
  template <class V>
  static V gap(V held) {
    return held;
  }
};

// The exterior angle at one point of a pair, the apex, towards the other.
template <class V>
struct AngleGap {
  typedef decltype(V()[0] + 0) F;
  V w, P, A, Q, B;  // lateral; of the apex and of the other
  V sinh_between, opposite, resolution, z;

  // chord: from the apex to the other.
  AngleGap(V lateral, V chord, V apex_P, V apex_A, V other_P, V other_A)
      : w(lateral), P(apex_P), A(apex_A), Q(other_P), B(other_A) {
    sinh_between = chord * root(1 + chord * chord / 4);
    opposite = 2 * P * Q - w;  // P Q + c x.y
    resolution = F(RESOLUTION_ULPS * epsilon_of((const F*)nullptr)) * P * Q;
    z = w + chord * chord / 2;
  }

  V across() const { return root(w) * root(larger(opposite, V{})); }

  V angle() const {
    const V value = angle_between(across(), P * sinh_between - A * w);
    const V at_origin = P == 0 ? all_of(F(1.57079632679489661923)) : value;
    return z <= resolution ? V{} : at_origin;
  }

  // With a weight of 1. Quotients before products: far out sinh^2 times the width overflows a float.
  // slope: minus the gradient by c x.y. apex: what -c/P^2 times the apex is to be multiplied with; other: the same for
  // -c/B times the other point. curv: of the gradient by c, times 2c A B.
  void slopes(V& slope, V& apex, V& other, V& curv) const {
    const V fine = larger(z, resolution), z2 = fine + 2, gram = P * Q - w;
    const V width = root(larger(w, resolution)) * root(larger(opposite, resolution)), lateral = across();
    const V turn = quotient((Q * sinh_between + B * w) / z2, fine);
    const V turn_other = quotient(z * (gram / z2) + (P * (Q - P) - w) / z2, fine);
    slope = quotient(turn, width);
    apex = quotient((1 + z) / z2 * lateral / A, fine) + slope * gram;
    other = quotient(turn_other, width);
    curv = -turn * lateral;
  }

  static V quotient(V a, V b) { return b == 0 ? V{} : a / b; }
};

}  // namespace
