/* Guest memory: the loops over many bytes, with the GIL released (cffi does that). */
#ifndef PYKVM_MEMORY_H
#define PYKVM_MEMORY_H
#include <stdint.h>

/* The offset of the first `pattern` in `length` bytes at `base`, or -ENOENT. */
long pykvm_memory_find(const void *base, uint64_t length, const void *pattern, uint64_t count);

/* memset(3): 0. */
long pykvm_memory_fill(void *base, uint64_t length, int byte);
#endif
