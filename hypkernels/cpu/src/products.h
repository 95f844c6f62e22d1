// Products of row-major matrices, on the calling thread: PyTorch's if it exports one, else our own.
#pragma once
#include <stdlib.h>
#include "api.h"
#include "tile_math.h"

namespace {

// C (m, n) = beta C + alpha A B; the element (i, j) of A is at i * a_row + j * a_column, and so on. Where PyTorch has
// no product that can be called, or its threads stayed behind in a fork.
template <class F>
__attribute__((noinline)) void own_product(int64_t m, int64_t n, int64_t k, F alpha, const F* A, int64_t a_row,
                                           int64_t a_column, const F* B, int64_t b_row, int64_t b_column, F beta, F* C,
                                           int64_t ldc) {
  typedef typename Vector<F>::type V;
  constexpr int64_t lanes = Vector<F>::lanes, WIDTH = 2 * lanes, ROWS = 4;
  F* panel = (F*)malloc(sizeof(F) * (k + 1) * WIDTH);  // of B, its columns side by side
  for (int64_t j = 0; j < n; j += WIDTH) {
    const int64_t width = n - j < WIDTH ? n - j : WIDTH;
    for (int64_t l = 0; l < k; ++l)
      for (int64_t h = 0; h < WIDTH; ++h) panel[l * WIDTH + h] = h < width ? B[l * b_row + (j + h) * b_column] : F(0);
    for (int64_t i = 0; i < m; i += ROWS) {
      const int64_t rows = m - i < ROWS ? m - i : ROWS;
      V sums[ROWS][2] = {};
      for (int64_t l = 0; l < k; ++l) {
        const V left = load(panel + l * WIDTH), right = load(panel + l * WIDTH + lanes);
        for (int64_t r = 0; r < ROWS; ++r) {
          const F a = A[(r < rows ? i + r : i) * a_row + l * a_column];
          sums[r][0] += a * left, sums[r][1] += a * right;
        }
      }
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t h = 0; h < width; ++h) {
          F* c = C + (i + r) * ldc + j + h;
          const F value = alpha * sums[r][h / lanes][h % lanes];
          *c = beta == 0 ? value : beta * *c + value;
        }
    }
  }
  free(panel);
}

inline auto blas(const float*) { return hk_alone ? nullptr : hk_runtime.sgemm; }
inline auto blas(const double*) { return hk_alone ? nullptr : hk_runtime.dgemm; }

// Within a team MKL runs on one thread, but divides sums among as many as are set: so one is set.
class OnOneThread {
  const int before = hk_runtime.product_threads ? hk_runtime.product_threads(1) : 0;

 public:
  ~OnOneThread() {
    if (hk_runtime.product_threads) hk_runtime.product_threads(before);
  }
};

// C (m, n) = X (m, k) Y (n, k)^T.
template <class F>
void product_of_rows(int64_t m, int64_t n, int64_t k, const F* X, int64_t ldx, const F* Y, int64_t ldy, F* C,
                     int64_t ldc) {
  if (!blas(X)) return own_product<F>(m, n, k, 1, X, ldx, 1, Y, 1, ldy, 0, C, ldc);
  const int M = m, N = n, K = k, of_x = ldx, of_y = ldy, of_c = ldc;
  const F one = 1, zero = 0;
  const OnOneThread one_thread;
  blas(X)("T", "N", &N, &M, &K, &one, Y, &of_y, X, &of_x, &zero, C, &of_c);
}
template <class F>
void product_of_rows(int64_t m, int64_t n, int64_t k, const F* X, const F* Y, F* C, int64_t ldc) {
  product_of_rows<F>(m, n, k, X, k, Y, k, C, ldc);
}

// C (m, n) = alpha W (m, k) Y (k, n) + C, or without C if that holds nothing yet.
template <class F>
void add_product(int64_t m, int64_t n, int64_t k, F alpha, const F* W, int64_t ldw, const F* Y, bool empty, F* C) {
  const F beta = empty ? 0 : 1;
  if (!blas(W)) return own_product<F>(m, n, k, alpha, W, ldw, 1, Y, n, 1, beta, C, n);
  const int M = m, N = n, K = k, ld = ldw;
  const OnOneThread one_thread;
  blas(W)("N", "N", &N, &M, &K, &alpha, Y, &N, W, &ld, &beta, C, &N);
}

// C (m, n) = alpha W (k, m)^T X (k, n) + C, or without C.
template <class F>
void add_transposed_product(int64_t m, int64_t n, int64_t k, F alpha, const F* W, int64_t ldw, const F* X, bool empty,
                            F* C) {
  const F beta = empty ? 0 : 1;
  if (!blas(W)) return own_product<F>(m, n, k, alpha, W, 1, ldw, X, n, 1, beta, C, n);
  const int M = m, N = n, K = k, ld = ldw;
  const OnOneThread one_thread;
  blas(W)("N", "T", &N, &M, &K, &alpha, X, &N, W, &ld, &beta, C, &N);
}

}  // namespace
