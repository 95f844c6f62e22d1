// Memory for results and for the time of a call.
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

// What a large new result costs is mostly the system's handing out of its pages, 4 KiB at a time. Where Linux leaves
// their size to the program it hands out 2 MiB instead. To be called before memory is written; where it is in use
// already, nothing changes.
inline void in_large_pages(void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t page = uintptr_t(1) << 21, begin = ((uintptr_t)memory + page - 1) & ~(page - 1);
  const uintptr_t end = ((uintptr_t)memory + bytes) & ~(page - 1);
  if (memory && begin < end) madvise((void*)begin, end - begin, MADV_HUGEPAGE);
#endif
}

// Memory for the time of a call, 64 bytes aligned.
class Arena {
 public:
  template <class E>
  E* take(int64_t n) {
    const int64_t bytes = ((int64_t)sizeof(Block) + n * (int64_t)sizeof(E) + 127) & ~int64_t(63);
    Block* block = (Block*)aligned_alloc(64, bytes);
    in_large_pages(block, bytes);
    block->before = last_;
    last_ = block;
    return (E*)((char*)block + 64);
  }
  template <class E>
  E* zeros(int64_t n) {
    E* p = take<E>(n);
    memset((void*)p, 0, n * sizeof(E));
    return p;
  }
  ~Arena() {
    while (last_) {
      Block* before = last_->before;
      free(last_);
      last_ = before;
    }
  }

 private:
  struct Block {
    Block* before;
  };
  Block* last_ = nullptr;
};

}  // namespace
