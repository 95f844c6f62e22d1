// Inner product and distances, as hypkernels/distance/closed_form.py has them.
#pragma once
#include "rowwise.h"

namespace {

// x.y - x_time y_time = -cosh(kd)/c.
struct Inner {
  static constexpr int points = 2;
  static constexpr bool is_map = false;

  template <class Real>
  static Real value(const Input<Real>& in) {
    return -(1 + in.pair().z) / in.c;
  }

  template <class Real>
  static Gradient<Real> gradient(const Upstream<Real>& up, const Input<Real>& in) {
    const auto p = in.pair();
    return {p.z_direction(up.value / p.A), p.z_direction(-up.value / p.B), 0,
            up.value * (p.A / p.B + p.B / p.A) / (2 * in.c * in.c), false};
  }
};

template <class Real>
Real pair_dist(const PairGeometry<Real>& p) {
  return 2 / root(p.c) * asinh_of(root(p.z / 2));
}

// By the points dz/(k sinh(kd)), 0 for coincident ones; by c a sum of terms of one sign.
template <class Real>
Gradient<Real> pair_dist_gradient(Real grad, const PairGeometry<Real>& p) {
  const Real k = root(p.c), sinh = p.sinh(), by_z = grad * ratio(k, sinh), apart = p.B_minus_A();
  const Real radial = ratio(apart * apart, 2 * p.A * p.B * sinh);
  return {p.z_direction(-by_z / p.A), p.z_direction(by_z / p.B), 0,
          -grad * (tanh_deficit_of_sinh(root(p.z / 2)) + radial) / (p.c * k), false};
}

struct Dist {
  static constexpr int points = 2;
  static constexpr bool is_map = false;

  template <class Real>
  static Real value(const Input<Real>& in) {
    return pair_dist(in.pair());
  }

  template <class Real>
  static Gradient<Real> gradient(const Upstream<Real>& up, const Input<Real>& in) {
    return pair_dist_gradient(up.value, in.pair());
  }
};

// From the origin.
struct Dist0 {
  static constexpr int points = 1;
  static constexpr bool is_map = false;

  template <class Real>
  static Real value(const Input<Real>& in) {
    return asinhc(in.k() * in.norm()) * in.norm();
  }

  template <class Real>
  static Gradient<Real> gradient(const Upstream<Real>& up, const Input<Real>& in) {
    const Real norm = in.norm(), s = in.k() * norm;
    return {{0, up.value * ratio(Real(1), norm * root(1 + s * s)), 0}, {}, 0,
            up.value * norm * in.split.xx * asinhc_slope(s) / 2, false};
  }
};

}  // namespace
