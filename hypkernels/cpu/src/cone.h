// Entailment cones and the hinge on them, as hypkernels/cone/closed_form.py and entailment/closed_form.py have them.
#pragma once
#include "rowwise.h"

namespace {

// sqrt(s^2 - 4K^2), 0 for s <= 2K: the leg beside the aperture, whose opposite is 2K.
template <class Real>
Real beside_aperture(Real s, Real K) {
  return root(s > 2 * K ? s - 2 * K : Real(s * 0)) * root(s + 2 * K);
}

template <class Real>
Real aperture_of(Real s, Real K) {  // atan(inf) = pi/2 inside s = 2K
  return atan_of(2 * K / beside_aperture(s, K));
}

// The coefficient of x, and the share of c.
template <class Real>
Gradient<Real> aperture_gradient(Real grad, Real s, Real c, Real K) {
  const Real slope = -grad * ratio(2 * K, beside_aperture(s, K));
  return {{0, c * ratio(slope, s * s), 0}, {}, 0, slope / (2 * c), false};
}

struct HalfAperture {
  static constexpr int points = 1;
  static constexpr bool is_map = false;

  template <class Real>
  static Real value(const Input<Real>& in) {
    return aperture_of(in.k() * in.norm(), (Real)in.options[0]);
  }

  template <class Real>
  static Gradient<Real> gradient(const Upstream<Real>& up, const Input<Real>& in) {
    return aperture_gradient(up.value, in.k() * in.norm(), in.c, (Real)in.options[0]);
  }
};

// The angle between the logarithm of y at x and the ray from the origin through x.
template <class Real>
Real pair_angle(const PairGeometry<Real>& p) {
  return p.z == 0 ? 0 : angle_of(root(p.N2), root(p.P2) * p.W);
}

// The gradient of the angle; 0 where it has a kink, n = 0 or x = 0.
template <class Real>
Gradient<Real> pair_angle_gradient(Real grad, const PairGeometry<Real>& p) {
  const Real turn_x = p.alpha * p.P2 * p.W + p.A * p.N2, turn_y = p.alpha * p.z + p.alpha_minus_1;
  const Real lateral = p.N2 * (1 + p.z);
  const Real scale = grad * ratio(p.c, p.z * (p.z + 2) * (root(p.P2) * root(p.N2)));
  return {{0, scale * lateral / p.A, -scale * turn_x},
          {0, -scale / p.B * lateral, scale / p.B * p.P2 * turn_y},
          0,
          scale * (p.N2 * p.P2) * turn_x / (2 * p.c * p.c * p.A * p.B),
          false};
}

struct OxyAngle {
  static constexpr int points = 2;
  static constexpr bool is_map = false;

  template <class Real>
  static Real value(const Input<Real>& in) {
    return pair_angle(in.pair());
  }

  template <class Real>
  static Gradient<Real> gradient(const Upstream<Real>& up, const Input<Real>& in) {
    return pair_angle_gradient(up.value, in.pair());
  }
};

// max(0, angle - aperture_scale * half_aperture + margin) + leak * angle.
struct Entailment {
  static constexpr int points = 2;
  static constexpr bool is_map = false;

  template <class Real>
  static Real residual(const Input<Real>& in, Real angle) {
    return angle - in.options[0] * aperture_of(in.k() * in.norm(), (Real)in.options[1]) + in.options[2];
  }

  template <class Real>
  static Real value(const Input<Real>& in) {
    const Real angle = pair_angle(in.pair()), outside = residual(in, angle);
    return (outside < 0 ? 0 : outside) + in.options[3] * angle;
  }

  template <class Real>
  static Gradient<Real> gradient(const Upstream<Real>& up, const Input<Real>& in) {
    const auto pair = in.pair();
    const Real outside = residual(in, pair_angle(pair)) > 0;
    Gradient<Real> g = pair_angle_gradient(up.value * (outside + in.options[3]), pair);
    const auto aperture = aperture_gradient(-in.options[0] * up.value * outside, in.k() * in.norm(), in.c,
                                            (Real)in.options[1]);
    g.by_x.of_x += aperture.by_x.of_x, g.by_curv += aperture.by_curv;
    return g;
  }
};

}  // namespace
