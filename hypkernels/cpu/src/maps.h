// Exponential and logarithmic maps, as hypkernels/maps/closed_form.py has them.
#pragma once
#include "rowwise.h"

namespace {

// sinhc(t) v for v = scale x, t = sqrt(c)|v|.
struct ExpMap0 {
  static constexpr int points = 1;
  static constexpr bool is_map = true;

  template <class Real>
  static Point<Real> value(const Input<Real>& in) {
    const auto h = hyperbolic(in.k() * absolute(in.scale) * in.norm());
    return {{0, in.scale * h.sinhc, 0}, h.beyond};
  }

  template <class Real>
  static Gradient<Real> gradient(const Upstream<Real>& up, const Input<Real>& in) {
    const Real s = in.scale, xg = up.dots.xg;
    const auto h = hyperbolic(in.k() * absolute(s) * in.norm());
    const Real alignment = h.slope * s * xg;
    // Where the functions are divided by exp(t), the numbers of a row overflow unless they are 0.
    const Real whole = h.beyond ? (Real)__builtin_infl() : 1;
    Gradient<Real> g = {{s * h.sinhc, in.c * alignment * s * s, 0}, {}, h.cosh * xg,
                        alignment * s * s * in.split.xx / 2, h.beyond};
    g.by_scale = g.by_scale == 0 ? 0 : whole * g.by_scale;
    g.by_curv = g.by_curv == 0 ? 0 : whole * g.by_curv;
    return g;
  }
};

// asinhc(s) x, s = sqrt(c)|x|.
struct LogMap0 {
  static constexpr int points = 1;
  static constexpr bool is_map = true;

  template <class Real>
  static Point<Real> value(const Input<Real>& in) {
    return {{0, asinhc(in.k() * in.norm()), 0}, false};
  }

  template <class Real>
  static Gradient<Real> gradient(const Upstream<Real>& up, const Input<Real>& in) {
    const Real s = in.k() * in.norm(), alignment = asinhc_slope(s) * up.dots.xg;
    return {{asinhc(s), in.c * alignment, 0}, {}, 0, alignment * in.split.xx / 2, false};
  }
};

// A tangent vector v = alpha x + n at x: c times the squared Lorentz norms of its two parts.
template <class Real>
struct Tangent {
  Real alpha, P2, A2, along_sq, across_sq;
  explicit Tangent(const Input<Real>& in)
      : alpha(in.split.alpha()), P2(in.c * in.split.xx), A2(1 + P2), along_sq(alpha * alpha * P2 / A2),
        across_sq(in.c * in.split.nn) {}
  Real tau() const { return root(along_sq + across_sq); }
};

// cosh(tau) x + sinhc(tau) v, collected along and across x.
struct ExpMap {
  static constexpr int points = 2;
  static constexpr bool is_map = true;

  template <class Real>
  static Point<Real> value(const Input<Real>& in) {
    const Tangent<Real> t(in);
    const auto h = hyperbolic(t.tau());
    const Real along = t.alpha < 0 ? inward(t, h) : h.cosh + t.alpha * h.sinhc;
    return {{0, along, h.sinhc * (t.across_sq > 0)}, h.beyond};
  }

  // cosh(tau) + alpha sinhc(tau) for alpha < 0, without the cancellation on the way to the origin: straight inward
  // it is sinh(rho - tau)/P with P = sinh(rho), and the part across x adds the rest.
  template <class Real>
  static Real inward(const Tangent<Real>& t, const Hyperbolic<Real>& h) {
    const Real P = root(t.P2), tau = t.tau();
    const Real detour = root(t.A2) * h.sinhc * t.across_sq / (tau + root(t.along_sq));
    const Real straight = h.beyond ? Real(-0.5) / (P + root(t.A2)) : sinh_of(asinh_of(P) - tau);
    return (straight + detour) / P;
  }

  // From d tau^2 = 2c p (dv - beta dx) with p = v - beta x and beta = c (x.v)/A^2.
  template <class Real>
  static Gradient<Real> gradient(const Upstream<Real>& up, const Input<Real>& in) {
    const Tangent<Real> t(in);
    const auto h = hyperbolic(t.tau());
    const Real slope = (h.sinhc * up.dots.xg + h.slope * up.dots.yg) / 2, beta = t.alpha * t.P2 / t.A2;
    const Real by_v = 2 * in.c * slope, by_x = -by_v * beta, p_of_x = t.alpha / t.A2;
    const Real lateral = t.across_sq > 0;  // what is left of n where it is none is rounding
    Real by_curv = slope * (t.across_sq + t.along_sq / t.A2) / in.c;
    if (h.beyond && by_curv != 0) by_curv *= __builtin_infl();
    return {{h.cosh, by_x * p_of_x, by_x * lateral}, {h.sinhc, by_v * p_of_x, by_v * lateral}, 0, by_curv, h.beyond};
  }
};

// f (y - cosh(kd) x) with f = kd/sinh(kd), collected along and across x.
struct LogMap {
  static constexpr int points = 2;
  static constexpr bool is_map = true;

  template <class Real>
  static Point<Real> value(const Input<Real>& in) {
    const auto pair = in.pair();
    const Real f = asinhc(pair.sinh());
    return {{0, f * pair.A * pair.W, f * pair.lateral()}, false};
  }

  template <class Real>
  static Gradient<Real> gradient(const Upstream<Real>& up, const Input<Real>& in) {
    const auto pair = in.pair();
    const Real f = asinhc(pair.sinh()), slope = (1 + pair.z) * asinhc_slope(pair.sinh());
    const Real by_z = slope * (pair.A * pair.W * up.dots.xg + up.dots.ng) - f * up.dots.xg;
    Combination<Real> by_x = pair.z_direction(-by_z * in.c / pair.A);
    Combination<Real> by_y = pair.z_direction(by_z * in.c / pair.B);
    by_x.of_g = -f * (1 + pair.z), by_y.of_g = f;
    return {by_x, by_y, 0, by_z * pair.z_by_c(), false};
  }
};

}  // namespace
