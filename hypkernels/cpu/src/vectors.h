// Vectors of float and double, and conversions between them and what points are stored in.
//
// GCC's vector extensions: one source for AVX-512 (16 floats), AVX2 (8) and anything else (4). Everything is in an
// anonymous namespace, and nothing of namespace std is used: each instruction set compiles its own copy, and the
// linker must never merge two of them.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
constexpr int HALF = LANES / 2;  // doubles

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vw __attribute__((vector_size(4 * LANES)));  // what may wrap around
typedef double vd __attribute__((vector_size(8 * HALF)));
typedef int64_t vl __attribute__((vector_size(8 * HALF)));
// As they lie in memory, at any address.
typedef float vf_any __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef double vd_any __attribute__((vector_size(8 * HALF), aligned(8), may_alias));
// As many floats, bits or halves as a vector holds doubles.
typedef float vh __attribute__((vector_size(4 * HALF)));
typedef float vh_any __attribute__((vector_size(4 * HALF), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(4 * HALF)));
typedef int32_t vs __attribute__((vector_size(4 * HALF)));
typedef uint16_t vq __attribute__((vector_size(2 * HALF)));
typedef uint16_t vq_any __attribute__((vector_size(2 * HALF), aligned(2), may_alias));

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

inline vf splat(float a) { return a - (vf){}; }
inline vd splat_wide(double a) { return a - (vd){}; }
inline vf load(const float* p) { return *(const vf_any*)p; }
inline void store(float* p, vf v) { *(vf_any*)p = v; }
inline vd load(const double* p) { return *(const vd_any*)p; }
inline void store(double* p, vd v) { *(vd_any*)p = v; }

// ---- one number ------------------------------------------------------------------------------------------------

inline float float_of_bits(uint32_t bits) {
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

inline uint32_t bits_of_float(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  return bits;
}

inline double to_double(double v) { return v; }
inline double to_double(float v) { return v; }
inline double to_double(Bfloat16 v) { return float_of_bits(uint32_t(v.bits) << 16); }
inline double to_double(Float16 v) {
  float magnitude = float_of_bits(uint32_t(v.bits & 0x7fff) << 13) * 0x1p112f;
  uint32_t bits = bits_of_float(magnitude) | uint32_t(v.bits & 0x8000) << 16;
  if ((v.bits & 0x7c00) == 0x7c00) bits |= 0x7f800000;  // infinity, or not a number
  return float_of_bits(bits);
}

// Narrow formats round by way of float, as PyTorch's conversions do.
inline void from_double(double* p, double v) { *p = v; }
inline void from_double(float* p, double v) { *p = (float)v; }
inline void from_double(Bfloat16* p, double v) {
  const uint32_t bits = bits_of_float((float)v);
  p->bits = v != v ? 0x7fc0 : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline void from_double(Float16* p, double v) {
  const uint32_t bits = bits_of_float((float)v), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  uint32_t half;
  if (magnitude > 0x7f800000) {
    half = 0x7e00;
  } else if (magnitude >= 0x477ff000) {  // rounds to 65536 or more
    half = 0x7c00;
  } else if (magnitude < 0x38800000) {  // below the least normal: the sum's last bit is the least denormal
    half = bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3f000000;
  } else {
    half = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  }
  p->bits = uint16_t(sign | half);
}

// ---- as many as a vector holds doubles -------------------------------------------------------------------------

inline vd wide(vh v) {
#if defined(__AVX512F__)
  return (vd)_mm512_cvtps_pd((__m256)v);  // of which GCC makes four instructions
#else
  return __builtin_convertvector(v, vd);
#endif
}

inline vd widen(const double* p) { return load(p); }
inline vd widen(const float* p) { return wide(*(const vh_any*)p); }
inline vd widen(const Bfloat16* p) { return wide((vh)(__builtin_convertvector(*(const vq_any*)p, vu) << 16)); }
inline vd widen(const Float16* p) {
#if defined(__AVX512F__)
  return wide((vh)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)));
#elif defined(__AVX2__)
  return wide((vh)_mm_cvtph_ps(_mm_loadl_epi64((const __m128i*)p)));
#else
  vd v;
  for (int i = 0; i < HALF; ++i) v[i] = to_double(p[i]);
  return v;
#endif
}

inline void narrow(double* p, vd v) { store(p, v); }
inline void narrow(float* p, vd v) { *(vh_any*)p = __builtin_convertvector(v, vh); }
inline void narrow(Bfloat16* p, vd v) {
  const vu bits = (vu)__builtin_convertvector(v, vh);
  const vu rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const vu is_nan = (vu)((vs)(bits & 0x7fffffff) > 0x7f800000);
  *(vq_any*)p = __builtin_convertvector((rounded & ~is_nan) | (0x7fc0 & is_nan), vq);
}
inline void narrow(Float16* p, vd v) {
#if defined(__AVX512F__)
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)__builtin_convertvector(v, vh), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  _mm_storel_epi64((__m128i*)p, _mm_cvtps_ph((__m128)__builtin_convertvector(v, vh), _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < HALF; ++i) from_double(p + i, v[i]);
#endif
}

// Whether a comparison holds in any lane.
template <class M>
inline bool any_of(M mask) {
  static_assert(sizeof(M) == 4 * LANES, "a whole vector");
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask);
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
  uint64_t words[2];
  memcpy(words, &mask, sizeof words);
  return words[0] | words[1];
#endif
}

// The sum of the lanes, halves first.
inline double sum(vd v) {
  double s[HALF];
  memcpy(s, &v, sizeof v);
  for (int step = HALF / 2; step; step /= 2)
    for (int i = 0; i < step; ++i) s[i] += s[i + step];
  return s[0];
}

}  // namespace
