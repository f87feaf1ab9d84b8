/* Rounds: an input goes in, the guest runs to its next exit, the pages that it wrote go back.
 * One call from Python each; registers are the guest's affair (it comes back to where it began). */
#include <errno.h>
#include <string.h>
#include "pykvm_native.h"

enum { TICK = PYKVM_TICK };

/* The deadline moves with every round; the timer is set only when it has gone off. */
static long arm(struct pykvm_round *r)
{
    struct pykvm_vcpu *v = r->vcpu;
    if (!r->timeout_ns)
        return 0;
    if (v->timer_tid != pykvm_thread_id() || !v->deadline_ns)
        return pykvm_watch(v, r->timeout_ns, 0);
    v->deadline_ns = pykvm_now_ns() + r->timeout_ns;
    return 0;
}

static void run(struct pykvm_round *r)
{
    do
        r->code = pykvm_resume(r->vcpu);
    while ((r->code & 0xff) == TICK);
}

/* The input lies against the end of its room: one byte past it is not the guest's. place[0] is its
 * guest-virtual address, place[1] its length. -E2BIG: there is no room for it. */
long pykvm_round_run(struct pykvm_round *r, const uint8_t *data, uint64_t length)
{
    uint64_t started = pykvm_now_ns();
    if (length > r->input_room)
        return -E2BIG;
    uint64_t at = r->input_room - length;
    memcpy(r->input + at, data, length);
    r->place[0] = r->input_gva + at;
    r->place[1] = length;
    memset(r->map, 0, r->map_size);
    long e = arm(r);
    if (e < 0)
        return e;
    uint64_t ready = pykvm_now_ns();
    r->put_ns = ready - started;
    run(r);
    r->run_ns = pykvm_now_ns() - ready;
    return 0;
}

/* After a signal that was Python's. */
long pykvm_round_go_on(struct pykvm_round *r)
{
    uint64_t started = pykvm_now_ns();
    run(r);
    r->run_ns += pykvm_now_ns() - started;
    return 0;
}

long pykvm_round_reset(struct pykvm_round *r)
{
    long done = pykvm_ram_put(r->ram, r->image, r->image);
    if (done < 0)
        return done;
    r->log_ns = r->ram->log_ns;
    r->copy_ns = r->ram->copy_ns;
    r->pages = (uint64_t)done;
    return done;
}
