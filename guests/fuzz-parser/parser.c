/* A parser with five planted bugs, each deeper than the one before. For fuzzers to find.
 *
 * message:  'P' 'K' version flags, then records
 * record:   kind length data[length] check      check: xor of data
 *
 * 1. a magic word in the flags' place      (four bytes to guess)
 * 2. a length that only a right check reaches
 * 3. open, seek, seek, commit: a state that only that order reaches
 * 4. off by one: a name of exactly 16 bytes
 * 5. an object that is used after it was freed */
#include "pykvm_fuzz.h"

enum { NAME = 1, COPY, OPEN, SEEK, COMMIT, CLOSE, CREATE, DELETE, CALL };

struct object {
    void (*run)(struct object *);
    uint64_t calls;
};

struct session {
    enum { SHUT, OPENED, SOUGHT, TWICE } state;
    char *name;
    struct object *object;
};

static void count(struct object *o) { o->calls++; }

__attribute__((noinline)) static void bug_magic(void)
{
    *(volatile int *)0xdead0000ull = 1;
}

__attribute__((noinline)) static void bug_copy(const uint8_t *data, size_t n)
{
    uint8_t room[32];
    if (n < 2)
        return;
    for (size_t i = 0; i < data[0]; i++)        /* what the sender says, not what there is */
        ((volatile uint8_t *)room)[i * 4096] = data[1];
}

__attribute__((noinline)) static void bug_state(struct session *s)
{
    *(volatile uint64_t *)(uint64_t)s->state = 0;
}

__attribute__((noinline)) static void bug_name(struct session *s, const uint8_t *data, size_t n)
{
    if (n > 16 || s->name)
        return;
    s->name = malloc(16);
    memcpy(s->name, data, n);
    s->name[n] = 0;                             /* n == 16: the heap's next header */
}

__attribute__((noinline)) static void bug_call(struct session *s)
{
    if (s->object)
        s->object->run(s->object);
}

static void record(struct session *s, uint8_t kind, const uint8_t *data, size_t n)
{
    switch (kind) {
    case NAME:
        bug_name(s, data, n);
        break;
    case COPY:
        bug_copy(data, n);
        break;
    case OPEN:
        s->state = OPENED;
        break;
    case SEEK:
        if (s->state == OPENED)
            s->state = SOUGHT;
        else if (s->state == SOUGHT)
            s->state = TWICE;
        break;
    case COMMIT:
        if (s->state == TWICE)
            bug_state(s);
        s->state = SHUT;
        break;
    case CLOSE:
        s->state = SHUT;
        free(s->name);
        s->name = NULL;
        break;
    case CREATE:
        if (!s->object) {
            s->object = malloc(sizeof *s->object);
            *s->object = (struct object){count, 0};
        }
        break;
    case DELETE:
        if (s->object && s->object->calls)
            free(s->object);                    /* and forgets to forget it */
        break;
    case CALL:
        bug_call(s);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct session session = {0};
    if (size < 4 || data[0] != 'P' || data[1] != 'K')
        return 0;
    if (data[2] == 2) {
        if (size >= 8 && *(const uint32_t *)(data + 4) == 0x4B564D21)
            bug_magic();
        return 0;
    }
    if (data[2] != 1)
        return 0;
    for (size_t at = 4; at + 2 <= size;) {
        uint8_t kind = data[at], n = data[at + 1], check = 0;
        at += 2;
        if (n + 1u > size - at)
            break;
        for (size_t i = 0; i < n; i++)
            check ^= data[at + i];
        if (check != data[at + n])
            break;
        record(&session, kind, data + at, n);
        at += n + 1u;
    }
    free(session.name);
    return 0;
}
