/* For ring-3 targets that pykvm fuzzes. pykvm/fuzz/layout.py says the same to Python. */
#ifndef PYKVM_FUZZ_H
#define PYKVM_FUZZ_H
#include <stddef.h>
#include <stdint.h>

/* Ends the run as a crash with a message. */
_Noreturn void pykvm_failed(const char *message);

#define PYKVM_STR_(x) #x
#define PYKVM_STR(x) PYKVM_STR_(x)
#define pykvm_assert(condition) \
    ((condition) ? (void)0 : pykvm_failed(__FILE__ ":" PYKVM_STR(__LINE__) ": " #condition))

void *memcpy(void *to, const void *from, size_t n);
void *memmove(void *to, const void *from, size_t n);
void *memset(void *to, int byte, size_t n);
int memcmp(const void *a, const void *b, size_t n);
size_t strlen(const char *s);
int strcmp(const char *a, const char *b);
int strncmp(const char *a, const char *b, size_t n);
void *malloc(size_t n);
void *calloc(size_t n, size_t size);
void *realloc(void *p, size_t n);
void free(void *p);
_Noreturn void abort(void);
#endif
