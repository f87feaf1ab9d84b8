#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include "pykvm_memory.h"

long pykvm_memory_find(const void *base, uint64_t length, const void *pattern, uint64_t count)
{
    const char *hit = memmem(base, length, pattern, count);
    return hit ? hit - (const char *)base : -ENOENT;
}

long pykvm_memory_fill(void *base, uint64_t length, int byte)
{
    memset(base, byte, length);
    return 0;
}
