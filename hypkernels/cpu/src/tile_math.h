// Functions of vectors for tiles of pairs, in float and in double under the same names.
#pragma once
#include "functions.h"
#include "vectors.h"

namespace {

// The vector of a number type, the integers it compares to, and how many numbers it has.
template <class F>
struct Vector;
template <>
struct Vector<float> {
  typedef vf type;
  typedef vi mask;
  typedef int32_t index;
  static constexpr int lanes = LANES;
};
template <>
struct Vector<double> {
  typedef vd type;
  typedef vl mask;
  typedef int64_t index;
  static constexpr int lanes = HALF;
};

template <class V>
V larger(V a, V b) {
  return a > b ? a : b;
}
template <class V>
V smaller(V a, V b) {
  return a < b ? a : b;
}
inline vf all_of(float a) { return splat(a); }
inline vd all_of(double a) { return splat_wide(a); }

template <class F>
typename Vector<F>::mask lane_numbers() {
  typename Vector<F>::mask v;
  for (int i = 0; i < Vector<F>::lanes; ++i) v[i] = i;
  return v;
}

inline double sum(vf v) {  // in double
  double s[LANES];
  for (int i = 0; i < LANES; ++i) s[i] = v[i];
  for (int step = LANES / 2; step; step /= 2)
    for (int i = 0; i < step; ++i) s[i] += s[i + step];
  return s[0];
}

// Sums of vectors that are themselves sums of a few terms: in double, by lane.
struct WideSum {
  vd low = {}, high = {};
  void add(vf v) {
    vh halves[2];
    memcpy(halves, &v, sizeof v);
    low += wide(halves[0]), high += wide(halves[1]);
  }
  void add(vd v) { low += v; }
  double total() const { return sum(low + high); }
};

template <class V>
auto least_lane(V v) -> decltype(v[0] + 0) {
  auto m = v[0];
  for (unsigned i = 1; i < sizeof(v) / sizeof(m); ++i) m = v[i] < m ? v[i] : m;
  return m;
}

inline vf root(vf q) {
#if defined(__AVX512F__)
  return (vf)_mm512_sqrt_ps((__m512)q);
#elif defined(__AVX2__)
  return (vf)_mm256_sqrt_ps((__m256)q);
#else
  for (int i = 0; i < LANES; ++i) q[i] = __builtin_sqrtf(q[i]);
  return q;
#endif
}

inline vd root(vd q) {
#if defined(__AVX512F__)
  return (vd)_mm512_sqrt_pd((__m512d)q);
#elif defined(__AVX2__)
  return (vd)_mm256_sqrt_pd((__m256d)q);
#else
  for (int i = 0; i < HALF; ++i) q[i] = __builtin_sqrt(q[i]);
  return q;
#endif
}

// a - b c, rounded once where the machine can: whatever the compiler makes of the code around, everywhere the same.
// Both passes have to round the exponents of a pair alike.
inline vf less_product(vf a, vf b, vf c) {
#if defined(__AVX512F__)
  return (vf)_mm512_fnmadd_ps((__m512)b, (__m512)c, (__m512)a);
#elif defined(__FMA__)
  return (vf)_mm256_fnmadd_ps((__m256)b, (__m256)c, (__m256)a);
#elif defined(__FP_FAST_FMAF)
  for (int i = 0; i < LANES; ++i) a[i] = __builtin_fmaf(-b[i], c[i], a[i]);
  return a;
#else
  return a - b * c;
#endif
}
inline vd less_product(vd a, vd b, vd c) { return a - b * c; }

// log2(1 + w), w >= 0 and 1 + w finite: to about half a unit of rounding, however small w is. What 1 + w rounds away
// is added again, and the largest term of the series rounds together with the rest: errors have to average out.
inline vf log2_1p(vf w) {
  const vf u = 1.0f + w, lost = w - (u - 1.0f);
  const vi bits = (vi)u;
  const vi e = (bits - 0x3f2aaaab) >> 23;  // the mantissa lies in [2/3, 4/3)
  const vw shift = (vw)e << 23;
  const vf f = ((vf)((vw)bits - shift) - 1.0f) + lost * (vf)(0x3f800000u - shift);
  vf p = splat(0.18057376146316528f);
  p = p * f - 0.1882162243127823f;
  p = p * f + 0.15307782590389252f;
  p = p * f - 0.17516650259494781f;
  p = p * f + 0.20657560229301453f;
  p = p * f - 0.24070781469345093f;
  p = p * f + 0.2885247766971588f;
  p = p * f - 0.3606685400009155f;
  p = p * f + 0.48089849948883057f;
  p = p * f - 0.7213475704193115f;
  const vf rest = f * (p * f + 1.9259629911e-8f) + f * 1.4426950216293335f;
  return __builtin_convertvector(e, vf) + rest;
}
__attribute__((noinline)) vd log2_1p(vd w) {
  for (int i = 0; i < HALF; ++i) w[i] = __builtin_log1p(w[i]) * 1.44269504088896340736;
  return w;
}

// 2^x, x <= 127 (beyond it any number, as of lanes that hold no pair); 0 below -126.
inline vf power_of_2(vf x) {
  const float magic = 12582912.0f;  // 1.5 * 2^23
  const vf low = larger(x, splat(-127.0f)), t = low + magic, f = low - (t - magic);
  vf p = splat(0.0001534581242594868f);
  p = p * f + 0.0013399930903688073f;
  p = p * f + 0.009618489071726799f;
  p = p * f + 0.05550328642129898f;
  p = p * f + 0.24022646248340607f;
  p = p * f + 0.6931471824645996f;
  p = p * f + 1.0f;
  const vw n = ((vw)t - 0x4b400000u) << 23;
  const vf r = (vf)((vw)p + n);
  return x < -126.0f ? splat(0.0f) : x == x ? r : x;
}
__attribute__((noinline)) vd power_of_2(vd x) {
  for (int i = 0; i < HALF; ++i) x[i] = __builtin_exp2(x[i]);
  return x;
}

// (atanh(t) - t)/t^3 as a function of w = t^2 <= 0.2.
inline vf atanh_excess_near(vf w) {
  vf p = splat(0.13545897603034973f);
  p = p * w + 0.05405930057168007f;
  p = p * w + 0.09443194419145584f;
  p = p * w + 0.11083950847387314f;
  p = p * w + 0.14286699891090393f;
  p = p * w + 0.1999998688697815f;
  return p * w + 0.3333333432674408f;
}
inline vd atanh_excess_near(vd w) {
  vd p = splat_wide(0);
  for (int j = 22; j >= 0; --j) p = p * w + 1.0 / (2 * j + 3);
  return p;
}

// atan2(y, x) for y >= 0, in [0, pi]; 0 where both are 0. To a few units of rounding.
inline vf angle_between(vf y, vf x) {
  const vf size = larger(x, -x), low = smaller(y, size), high = larger(y, size);
  const vf t = low / larger(high, splat(1e-37f));
  const vi steep = t > 0.41421356f;  // tan(pi/8)
  const vf f = steep ? (t - 1.0f) / (t + 1.0f) : t, w = f * f;
  vf p = splat(8.05374449538e-2f);
  p = p * w - 1.38776856032e-1f;
  p = p * w + 1.99777106478e-1f;
  p = p * w - 3.33329491539e-1f;
  vf angle = (steep ? splat(0.785398163397448f) : vf{}) + (p * w * f + f);
  angle = y > size ? 1.57079632679489662f - angle : angle;
  return x < 0.0f ? 3.14159265358979324f - angle : angle;
}
inline vd angle_between(vd y, vd x) {
  for (int i = 0; i < HALF; ++i) y[i] = __builtin_atan2(y[i], x[i]);
  return y;
}

}  // namespace
