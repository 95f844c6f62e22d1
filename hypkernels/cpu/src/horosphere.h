// The Busemann function, as hypkernels/horosphere/closed_form.py has it.
#pragma once
#include "rowwise.h"

namespace {

// With the direction's unit vector w = of_x x + of_n n. A direction of 0 counts as one across x, with a gradient of 0.
template <class Real>
struct Horosphere {
  Real of_x, of_n, sine_sq, A, L2, h, s;

  explicit Horosphere(const Input<Real>& in) {
    const Real alpha = in.split.alpha(), xx = in.split.xx, P2 = in.c * xx;
    of_n = ratio(Real(1), root(in.split.yy)), of_x = alpha * of_n;
    sine_sq = in.split.yy == 0 ? 1 : in.split.nn * of_n * of_n;
    A = root(1 + P2), L2 = P2 * sine_sq;
    const Real t = in.k() * of_x * xx, A_minus_1 = P2 / (1 + A);
    const bool toward = alpha > 0;
    h = toward ? (1 + L2) / (A + t) : A - t;
    s = (toward ? (L2 - (A_minus_1 + t)) / (A + t) : A_minus_1 - t) * (1 + h) / (2 * h);
  }
};

struct Busemann {
  static constexpr int points = 2;
  static constexpr bool is_map = false;

  template <class Real>
  static Real value(const Input<Real>& in) {
    return asinh_of(Horosphere<Real>(in).s) / in.k();
  }

  template <class Real>
  static Gradient<Real> gradient(const Upstream<Real>& up, const Input<Real>& in) {
    const Horosphere<Real> at(in);
    const Real of_x = at.of_x, A = at.A, h = at.h, c = in.c, k = in.k();
    const Real lateral = in.split.nn > 0, scale = up.value / h, turn = scale * at.of_n;
    const Real radial = of_x > 0 ? (c * at.sine_sq - of_x * of_x) / (A * (k + of_x * A)) : k / A - of_x;
    const Real excess = at.s * at.s * at.s * asinhc_slope(at.s);
    return {{0, scale * radial, -turn * lateral},
            {0, -turn * at.sine_sq, turn * (of_x * in.split.xx) * at.of_n * lateral},
            0,
            up.value * (at.L2 / ((1 + h * h) * A * h) + excess) / (2 * c * k),
            false};
  }
};

}  // namespace
