// The plane of the origin and two points: the scalars of distance, angle and logarithm, as derived in
// hypkernels/pair_geometry.py.
//
//     P = k|x|   A = sqrt(1 + P^2)   B = sqrt(1 + k^2|y|^2)   N = k|n|   W = alpha A - B   z = cosh(kd) - 1
//
// No number is formed by subtracting nearly equal ones.
#pragma once
#include "rows.h"

namespace {

template <class Real>
struct PairGeometry {
  Real c, alpha, alpha_minus_1, P2, N2, A, B, W, z;

  Real sinh() const { return root(z * (z + 2)); }  // of kd
  Real lateral() const { return N2 > 0; }
  Real B_minus_A() const { return (alpha_minus_1 * (alpha + 1) * P2 + N2) / (A + B); }
  Real z_by_c() const { return (W * W * P2 + A * A * N2) / (2 * c * A * B); }
  // factor * u, u = y A - x B: dz/dx = -(c/A) u and dz/dy = (c/B) u.
  Combination<Real> z_direction(Real factor) const { return {0, factor * W, factor * A * lateral()}; }
};

template <class Real>
PairGeometry<Real> pair_geometry(const Split<Real>& s, Real c) {
  PairGeometry<Real> g;
  g.c = c, g.alpha = s.alpha(), g.alpha_minus_1 = s.alpha_minus_1(), g.P2 = c * s.xx, g.N2 = c * s.nn;
  const Real Q2 = g.alpha * g.alpha * g.P2 + g.N2;
  g.A = root(1 + g.P2), g.B = root(1 + Q2);
  const Real AB = g.A * g.B, G = g.alpha * g.P2;
  if (g.alpha > 0) {
    g.W = (g.alpha_minus_1 * (g.alpha + 1) - g.N2) / (g.alpha * g.A + g.B);
    g.z = (g.alpha_minus_1 * g.alpha_minus_1 * g.P2 + g.A * g.A * g.N2) / (1 + AB + G);
  } else {
    g.W = g.alpha * g.A - g.B;
    g.z = (g.P2 + g.A * g.A * Q2) / (1 + AB) - G;
  }
  return g;
}

}  // namespace
