// Work on PyTorch's own threads: its OpenMP runtime, whose entry points are found when the library is loaded.
#pragma once
#include <stdlib.h>
#include "api.h"

namespace {

// Up to this many elements a second thread does not pay.
constexpr int64_t SMALL = 1 << 15;

// Calls body(task, buffer) for every task of [0, tasks), each once, on up to `threads` threads, in no particular order;
// each thread has a buffer of `bytes`. A body must write where no other task does; then results do not depend on the
// number of threads.
template <class Body>
void for_tasks_with_buffer(int64_t tasks, int threads, int64_t bytes, const Body& body) {
  struct Shared {
    const Body* body;
    int64_t tasks, next, bytes;
  } shared = {&body, tasks, 0, (bytes + 127) & ~int64_t(63)};
  auto work = [](void* data) {
    Shared& s = *(Shared*)data;
    void* buffer = aligned_alloc(64, s.bytes);
    for (int64_t task; (task = __atomic_fetch_add(&s.next, 1, __ATOMIC_RELAXED)) < s.tasks;) (*s.body)(task, buffer);
    free(buffer);
  };
  // A single task, too, runs in a team if there are threads: only there PyTorch's product stays on one thread.
  if (threads <= 1 || tasks < 1 || hk_alone || !hk_runtime.parallel) return work(&shared);
  hk_runtime.parallel(work, &shared, unsigned(threads), 0);
}

// The same without buffers; one task runs on the calling thread.
template <class Body>
void for_tasks(int64_t tasks, int threads, const Body& body) {
  if (threads <= 1 || tasks <= 1 || hk_alone || !hk_runtime.parallel) {
    for (int64_t task = 0; task < tasks; ++task) body(task);
    return;
  }
  struct Shared {
    const Body* body;
    int64_t tasks, next;
  } shared = {&body, tasks, 0};
  auto work = [](void* data) {
    Shared& s = *(Shared*)data;
    for (int64_t task; (task = __atomic_fetch_add(&s.next, 1, __ATOMIC_RELAXED)) < s.tasks;) (*s.body)(task);
  };
  hk_runtime.parallel(work, &shared, unsigned(tasks < threads ? tasks : threads), 0);
}

// A sum in an order that depends on the count alone, in which errors do not pile up.
inline double pairwise_sum(const double* terms, int64_t count) {
  if (count > 256) {
    const int64_t half = count / 2;
    return pairwise_sum(terms, half) + pairwise_sum(terms + half, count - half);
  }
  double sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (int lane = 0; lane < 8; ++lane) sums[lane] += terms[i + lane];
  for (; i < count; ++i) sums[i % 8] += terms[i];
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

// Finite even if terms are infinite with different signs: each is limited to its share of the largest number, but only
// if the sum is not finite otherwise.
inline double total_of(double* terms, int64_t count) {
  const double total = pairwise_sum(terms, count), limit = 1.7976931348623157e308 / (count > 0 ? count : 1);
  if (__builtin_fabs(total) <= 1.7976931348623157e308) return total;
  for (int64_t i = 0; i < count; ++i) terms[i] = terms[i] > limit ? limit : terms[i] < -limit ? -limit : terms[i];
  return pairwise_sum(terms, count);
}

}  // namespace
