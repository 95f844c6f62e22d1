// Memory for results and for the time of a call.
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

// The cost of a large new result is mostly the system's handing out of pages of 4 KiB. Where Linux lets the program
// choose, this asks for pages of 2 MiB. Call it before memory is written; memory that is in use does not change.
inline void in_large_pages(void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t page = uintptr_t(1) << 21, begin = ((uintptr_t)memory + page - 1) & ~(page - 1);
  const uintptr_t end = ((uintptr_t)memory + bytes) & ~(page - 1);
  if (memory && begin < end) madvise((void*)begin, end - begin, MADV_HUGEPAGE);
#endif
}

// Memory for the time of a call, 64 bytes aligned: in blocks of which small pieces are cut.
class Arena {
 public:
  template <class E>
  E* take(int64_t n) {
    const int64_t bytes = aligned(n * (int64_t)sizeof(E));
    if (bytes > left_) begin_block(bytes);
    E* piece = (E*)next_;
    next_ += bytes, left_ -= bytes;
    return piece;
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
  static constexpr int64_t BLOCK = int64_t(1) << 16;

  static int64_t aligned(int64_t bytes) { return (bytes + 63) & ~int64_t(63); }

  void begin_block(int64_t bytes) {
    const int64_t header = aligned(sizeof(Block)), room = bytes > BLOCK ? bytes : BLOCK;
    Block* block = (Block*)aligned_alloc(64, header + room);
    in_large_pages(block, header + room);
    block->before = last_;
    last_ = block, next_ = (char*)block + header, left_ = room;
  }

  Block* last_ = nullptr;
  char* next_ = nullptr;
  int64_t left_ = 0;
};

}  // namespace
