// Functions of glibc by the version they had before 2.29: with the same results, and errno set. The library, built
// with whatever glibc, then needs 2.16 and loads wherever PyTorch's own wheels do.
#pragma once
#include <features.h>
#if defined(__GLIBC__) && defined(__x86_64__) && defined(__LP64__)
__asm__(".symver exp, exp@GLIBC_2.2.5");
__asm__(".symver exp2, exp2@GLIBC_2.2.5");
__asm__(".symver log, log@GLIBC_2.2.5");
#endif
