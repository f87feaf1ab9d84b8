long pykvm_memory_find(const void *base, uint64_t length, const void *pattern, uint64_t count);
long pykvm_memory_fill(void *base, uint64_t length, int byte);
