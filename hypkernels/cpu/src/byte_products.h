// Products of rows in 8 bits, four times as many a cycle as in float, where the machine multiplies bytes (AVX-512 VNNI).
//
// A row is x = s b + r with whole numbers b from -127 to 127 and the rest r. Then x.y is s_x s_y (b_x.b_y), of which
// b_x.b_y is exact, to within |x| |r_y| + |r_x| (|y| + |r_y|): about a hundredth of |x||y|, a bound, not an estimate.
#pragma once
#include "sides.h"

namespace {

constexpr float ROUNDS = 12582912.0f;  // 1.5 2^23: adding and subtracting it rounds to a whole number
constexpr int64_t BYTE_ROWS = 12, BYTE_COLUMNS = 32;  // the size of a product that registers hold

constexpr int64_t WIDEST_BYTES = 1 << 15;           // up to this width sums fit an int32

inline bool multiplies_bytes() {
#if defined(__AVX512F__)
  static const bool has = __builtin_cpu_supports("avx512vnni");
  return has;
#else
  return false;
#endif
}

// The scale of a row, its whole numbers, and the norm of the rest.
struct InBytes {
  double scale, rest;
};
inline InBytes to_bytes(const float* row, int64_t width, int8_t* out) {
  vf most = {};
  int64_t j = 0;
  for (; j + LANES <= width; j += LANES) {
    const vf v = load(row + j);
    most = larger(most, larger(v, -v));
  }
  float top = -least_lane(-most);
  for (; j < width; ++j) top = __builtin_fabsf(row[j]) > top ? __builtin_fabsf(row[j]) : top;
  if (!(top > 0)) {
    memset(out, 0, width);
    return {0, 0};
  }
  const float scale = top / 127, inverse = 127 / top;
  vd rest = {};
  for (j = 0; j + HALF <= width; j += HALF) {
    const vh whole = (*(const vh_any*)(row + j) * inverse + ROUNDS) - ROUNDS;
    const vd left = widen(row + j) - (double)scale * wide(whole);
    rest += left * left;
    const vs integers = __builtin_convertvector(whole, vs);
    for (int lane = 0; lane < HALF; ++lane) out[j + lane] = (int8_t)integers[lane];
  }
  double total = sum(rest);
  for (; j < width; ++j) {
    const float whole = (row[j] * inverse + ROUNDS) - ROUNDS;
    const double left = row[j] - (double)scale * whole;
    total += left * left, out[j] = (int8_t)whole;
  }
  return {scale, root(total) * (1 + 1e-9)};
}

inline int64_t byte_width(int64_t width) { return up(width, 4); }
inline int64_t byte_panels(int64_t rows) { return up(rows, BYTE_COLUMNS); }

// A row among the 32 that lie together, four numbers of each after four of another, and not less than 0.
inline void put_in_panel(uint8_t* panels, int64_t j, const int8_t* row, int64_t width) {
  uint32_t* to = (uint32_t*)(panels + j / BYTE_COLUMNS * BYTE_COLUMNS * byte_width(width)) + j % BYTE_COLUMNS;
  for (int64_t l = 0; l < byte_width(width) / 4; ++l) {
    uint32_t four;
    memcpy(&four, row + 4 * l, 4);
    to[l * BYTE_COLUMNS] = four ^ 0x80808080u;
  }
}

struct ByteRows {  // (m, byte_width), with the scale and 128 times the sum of each
  const int8_t* numbers;
  const float* scale;
  const int32_t* offset;
};

#if defined(__AVX512F__)
// C (m, n) = scales times X Y^T, of panels of Y; n is a multiple of BYTE_COLUMNS.
__attribute__((target("avx512vnni"), noinline)) void product_of_bytes(int64_t m, int64_t n, int64_t width,
                                                                     const ByteRows& X, const uint8_t* panels,
                                                                     const float* of_columns, float* C, int64_t ldc) {
  const int64_t bytes = byte_width(width);
  for (int64_t j = 0; j < n; j += BYTE_COLUMNS) {
    const uint8_t* panel = panels + j * bytes;
    const __m512 left = _mm512_loadu_ps(of_columns + j), right = _mm512_loadu_ps(of_columns + j + 16);
    for (int64_t i = 0; i < m; i += BYTE_ROWS) {
      const int64_t rows = at_most(BYTE_ROWS, m - i);
      const int8_t* x[BYTE_ROWS];
      __m512i sums[BYTE_ROWS][2];
#pragma GCC unroll 12
      for (int64_t r = 0; r < BYTE_ROWS; ++r) {
        x[r] = X.numbers + (i + (r < rows ? r : 0)) * bytes;
        sums[r][0] = sums[r][1] = _mm512_setzero_si512();
      }
      for (int64_t l = 0; l < bytes; l += 4) {
        const __m512i a = _mm512_loadu_si512(panel + l * BYTE_COLUMNS);
        const __m512i b = _mm512_loadu_si512(panel + l * BYTE_COLUMNS + 64);
#pragma GCC unroll 12
        for (int64_t r = 0; r < BYTE_ROWS; ++r) {
          int32_t four;
          memcpy(&four, x[r] + l, 4);
          const __m512i of_row = _mm512_set1_epi32(four);
          sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], a, of_row);
          sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], b, of_row);
        }
      }
#pragma GCC unroll 12
      for (int64_t r = 0; r < BYTE_ROWS; ++r) {
        if (r >= rows) break;
        const __m512i offset = _mm512_set1_epi32(X.offset[i + r]);
        const __m512 scale = _mm512_set1_ps(X.scale[i + r]);
        float* c = C + (i + r) * ldc + j;
        _mm512_storeu_ps(c, _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(sums[r][0], offset)), scale * left));
        _mm512_storeu_ps(c + 16, _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(sums[r][1], offset)), scale * right));
      }
    }
  }
}
#else
inline void product_of_bytes(int64_t, int64_t, int64_t, const ByteRows&, const uint8_t*, const float*, float*, int64_t) {}
#endif

}  // namespace
