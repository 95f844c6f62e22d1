// The exported functions. Which copy of the kernels runs is decided when the library is loaded.
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <dirent.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include "api.h"

extern const Api hk_baseline;
#if defined(HK_WITH_AVX2)
extern const Api hk_avx2;
#endif
#if defined(HK_WITH_AVX512)
extern const Api hk_avx512;
#endif

Runtime hk_runtime = {};
volatile int hk_alone = 0;

namespace {

struct Copy {
  const char* name;
  const Api* api;
  bool runs;
};

#if defined(HK_WITH_AVX2) || defined(HK_WITH_AVX512)
bool converts_halves() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

// The best first.
const Copy* copies() {
#if defined(HK_WITH_AVX2) || defined(HK_WITH_AVX512)
  __builtin_cpu_init();
#endif
  static const Copy list[] = {
#if defined(HK_WITH_AVX512)
      {"avx512", &hk_avx512,
       __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma") &&
           converts_halves()},
#endif
#if defined(HK_WITH_AVX2)
      {"avx2", &hk_avx2,
       __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && converts_halves()},
#endif
      {"baseline", &hk_baseline, true},
      {nullptr, nullptr, false},
  };
  return list;
}

const Copy* chosen = nullptr;

// A forked process lacks the parent's threads, and OpenMP would wait for them for ever. If the parent had a single
// thread, the child may start its own.
bool has_threads = false;

void before_fork() {
  int tasks = 0;
  if (DIR* directory = opendir("/proc/self/task")) {
    while (const dirent* entry = readdir(directory)) tasks += entry->d_name[0] != '.';
    closedir(directory);
  }
  has_threads = tasks != 1;
}

void in_child() {
  if (has_threads) hk_alone = 1;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int hk_abi() { return 4; }

// The names of the copies that this machine runs, separated by spaces.
EXPORT const char* hk_available() {
  static char names[64];
  if (!names[0])
    for (const Copy* copy = copies(); copy->name; ++copy)
      if (copy->runs) strcat(strcat(names, names[0] ? " " : ""), copy->name);
  return names;
}

// Runs the copy of that name from now on, or the best one; returns its name, or null if this machine cannot run it.
EXPORT const char* hk_choose(const char* name) {
  for (const Copy* copy = copies(); copy->name; ++copy)
    if (copy->runs && (!name || !strcmp(name, copy->name))) return (chosen = copy)->name;
  return nullptr;
}

EXPORT void hk_set_runtime(const Runtime* runtime) {
  static bool first = true;
  if (first) pthread_atfork(before_fork, nullptr, in_child);
  first = false;
  hk_runtime = *runtime;
}

EXPORT int hk_is_alone() { return hk_alone; }
// In order, one after the other: a call may add to results of an earlier one.
EXPORT void hk_rows(const Rows* calls, int64_t count) {
  for (int64_t n = 0; n < count; ++n) chosen->api->rows(calls[n]);
}
static Contrastive with(const Contrastive* call, const PointSet* sets, const Pairing* pairings) {
  Contrastive whole = *call;
  whole.sets = sets, whole.pairings = pairings;
  return whole;
}
EXPORT int hk_contrastive_forward(const Contrastive* call, const PointSet* sets, const Pairing* pairings) {
  return chosen->api->contrastive_forward(with(call, sets, pairings));
}
EXPORT int hk_contrastive_backward(const Contrastive* call, const PointSet* sets, const Pairing* pairings) {
  return chosen->api->contrastive_backward(with(call, sets, pairings));
}
EXPORT int hk_pairs(const Pairs* call) { return chosen->api->pairs(*call); }
EXPORT void hk_search(const Search* call) { chosen->api->search(*call); }
