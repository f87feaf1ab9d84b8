/* The runtime of ring-3 targets: memory, strings, coverage, comparisons. Not instrumented itself. */
#include "pykvm_fuzz.h"

#define SHARED 0x7E0000000000ull
#define CONTROL ((volatile uint64_t *)SHARED)
#define HEAP_AT CONTROL[2]
#define HEAP_SIZE CONTROL[3]
#define COVERAGE ((uint8_t *)(SHARED + 0x1000))
#define COMPARISONS ((uint64_t *)(SHARED + 0x11000))
#define MOST_COMPARISONS (0x10000 / 16 - 1)

/* `where`: the return address of the call that is to blame. */
static _Noreturn void failed_at(const char *message, void *where)
{
    for (;;)
        __asm__ volatile("outb %%al, $0xe2" : : "D"(message), "S"(where), "a"(0) : "memory");
}

#define CALLER __builtin_return_address(0)

_Noreturn void pykvm_failed(const char *message) { failed_at(message, CALLER); }

_Noreturn void abort(void) { failed_at("abort()", CALLER); }

/* -- coverage: edges by the blocks at both ends, as AFL counts them ----------------------------- */

static uint64_t before;

void __sanitizer_cov_trace_pc(void)
{
    uint64_t here = (uint64_t)__builtin_return_address(0);
    here = (here >> 4 ^ here << 8) & 0xffff;
    COVERAGE[here ^ before]++;
    before = here >> 1;
}

void __sanitizer_cov_trace_pc_guard_init(uint32_t *start, uint32_t *stop)
{
    static uint32_t count;
    if (start != stop && !*start)
        for (uint32_t *guard = start; guard < stop; guard++)
            *guard = ++count & 0xffff;
}

void __sanitizer_cov_trace_pc_guard(uint32_t *guard)
{
    COVERAGE[*guard & 0xffff]++;
}

/* -- comparisons with constants, for a dictionary ------------------------------------------------ */

static inline void compared(uint64_t value, uint64_t size)
{
    uint64_t count = COMPARISONS[0];
    if (count >= MOST_COMPARISONS)
        return;
    COMPARISONS[0] = count + 1;
    COMPARISONS[2 * count + 2] = value;
    COMPARISONS[2 * count + 3] = size;
}

void __sanitizer_cov_trace_const_cmp1(uint8_t a, uint8_t b) { (void)a, (void)b; }
void __sanitizer_cov_trace_const_cmp2(uint16_t a, uint16_t b) { (void)b; compared(a, 2); }
void __sanitizer_cov_trace_const_cmp4(uint32_t a, uint32_t b) { (void)b; compared(a, 4); }
void __sanitizer_cov_trace_const_cmp8(uint64_t a, uint64_t b) { (void)b; compared(a, 8); }
void __sanitizer_cov_trace_cmp1(uint8_t a, uint8_t b) { (void)a, (void)b; }
void __sanitizer_cov_trace_cmp2(uint16_t a, uint16_t b) { compared(a, 2); compared(b, 2); }
void __sanitizer_cov_trace_cmp4(uint32_t a, uint32_t b) { compared(a, 4); compared(b, 4); }
void __sanitizer_cov_trace_cmp8(uint64_t a, uint64_t b) { compared(a, 8); compared(b, 8); }
void __sanitizer_cov_trace_cmpf(float a, float b) { (void)a, (void)b; }
void __sanitizer_cov_trace_cmpd(double a, double b) { (void)a, (void)b; }

/* cases[0] of them, of cases[1] bits each. */
void __sanitizer_cov_trace_switch(uint64_t value, uint64_t *cases)
{
    (void)value;
    for (uint64_t i = 0; i < cases[0]; i++)
        compared(cases[i + 2], cases[1] / 8);
}

/* -- memory --------------------------------------------------------------------------------------- */

void *memcpy(void *to, const void *from, size_t n)
{
    void *d = to;
    __asm__ volatile("rep movsb" : "+D"(d), "+S"(from), "+c"(n) : : "memory");
    return to;
}

void *memset(void *to, int byte, size_t n)
{
    void *d = to;
    __asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(byte) : "memory");
    return to;
}

void *memmove(void *to, const void *from, size_t n)
{
    uint8_t *d = to;
    const uint8_t *s = from;
    if (d <= s || d >= s + n)
        return memcpy(to, from, n);
    while (n--)
        d[n] = s[n];
    return to;
}

int memcmp(const void *a, const void *b, size_t n)
{
    const uint8_t *x = a, *y = b;
    for (; n; n--, x++, y++)
        if (*x != *y)
            return *x - *y;
    return 0;
}

size_t strlen(const char *s)
{
    size_t n = 0;
    while (s[n])
        n++;
    return n;
}

int strcmp(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return (uint8_t)*a - (uint8_t)*b;
}

int strncmp(const char *a, const char *b, size_t n)
{
    for (; n && *a && *a == *b; n--)
        a++, b++;
    return n ? (uint8_t)*a - (uint8_t)*b : 0;
}

/* -- a heap: first fit over headers; what is freed is overwritten, freed twice is a failure ---------- */

struct chunk {
    uint64_t state;                    /* first: what runs over the chunk before hits it */
    uint64_t size;                     /* of what follows, in 16 bytes */
};
#define USED 0x5553454455534544ull
#define FREED 0x4652454546524545ull

static struct chunk *next(struct chunk *c) { return c + 1 + c->size; }
static struct chunk *heap_end(void) { return (struct chunk *)(HEAP_AT + HEAP_SIZE); }

static void check(const struct chunk *c, void *caller)
{
    if (c < heap_end() && c->state != USED && c->state != FREED)
        failed_at("heap: something ran over its end", caller);
}

static void *allocate(size_t n, void *caller)
{
    struct chunk *first = (struct chunk *)HEAP_AT;
    struct chunk *end = heap_end();
    if (n > HEAP_SIZE)
        return NULL;
    if (!first->state)
        *first = (struct chunk){FREED, (uint64_t)(end - first) - 1};
    uint64_t want = (n + 15) / 16 + !n;
    for (struct chunk *c = first; c < end; c = next(c)) {
        check(c, caller);
        if (c->state == USED)
            continue;
        while (next(c) < end && next(c)->state == FREED)
            c->size += next(c)->size + 1;
        if (c->size < want)
            continue;
        if (c->size > want + 1) {
            struct chunk *rest = c + 1 + want;
            *rest = (struct chunk){FREED, c->size - want - 1};
            c->size = want;
        }
        c->state = USED;
        return c + 1;
    }
    return NULL;
}

static void release(void *p, void *caller)
{
    if (!p)
        return;
    struct chunk *c = (struct chunk *)p - 1;
    if (c->state == FREED)
        failed_at("heap: freed twice", caller);
    if (c->state != USED)
        failed_at("heap: freed what malloc() did not give, or its header was overwritten", caller);
    check(next(c), caller);
    c->state = FREED;
    memset(p, 0xdd, c->size * 16);
}

void *malloc(size_t n) { return allocate(n, CALLER); }

void free(void *p) { release(p, CALLER); }

void *calloc(size_t n, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(n, size, &bytes))
        return NULL;
    void *p = allocate(bytes, CALLER);
    return p ? memset(p, 0, bytes) : NULL;
}

void *realloc(void *p, size_t n)
{
    if (!p)
        return allocate(n, CALLER);
    struct chunk *c = (struct chunk *)p - 1;
    void *q = allocate(n, CALLER);
    if (q) {
        memcpy(q, p, c->size * 16 < n ? c->size * 16 : n);
        release(p, CALLER);
    }
    return q;
}
