/* protocol.c: see protocol.h. */
#include "protocol.h"

static int failures;
static int in_case;
static void *case_end[5]; /* where a failed assertion goes on */

static void send(unsigned reg, uint32_t value)
{
    outl(PROTOCOL_PORT + reg, value);
}

static void send_text(unsigned reg, const char *text)
{
    send(reg, (uint32_t)(uintptr_t)text);
}

int guest_host_present(void)
{
    return inl(PROTOCOL_PORT + PROTOCOL_ID) == PROTOCOL_MAGIC;
}

uint32_t guest_sync(uint32_t stage)
{
    if (!guest_host_present())
        return 0;
    send(PROTOCOL_SYNC, stage);
    return inl(PROTOCOL_PORT + PROTOCOL_SYNC);
}

void guest_arg(uint64_t value)
{
    if (guest_host_present()) {
        send(PROTOCOL_ARG, (uint32_t)value);
        send(PROTOCOL_ARG, value >> 32);
    }
}

void guest_failed(const char *file, int line, const char *expression)
{
    failures++;
    print("%s:%d: assertion failed: %s\n", file, line, expression);
    if (guest_host_present()) {
        send_text(PROTOCOL_FILE, file);
        send(PROTOCOL_LINE, line);
        send_text(PROTOCOL_TEXT, expression);
    }
}

void guest_give_up(void)
{
    if (in_case)
        __builtin_longjmp(case_end, 1);
    guest_done();
}

void guest_done(void)
{
    int status = failures ? PROTOCOL_FAILED : 0;
    if (guest_host_present())
        send(PROTOCOL_DONE, status);
    guest_exit(status);
}

void guest_run_cases(void)
{
    extern const struct guest_case __start_guest_cases[], __stop_guest_cases[];
    int host = guest_host_present();
    for (const struct guest_case *c = __start_guest_cases; c < __stop_guest_cases; c++) {
        int before = failures;
        if (host)
            send_text(PROTOCOL_CASE, c->name);
        in_case = 1;
        if (!__builtin_setjmp(case_end))
            c->run();
        in_case = 0;
        if (host)
            send(PROTOCOL_CASE, 0);
        print("%s: %s\n", c->name, failures == before ? "ok" : "FAILED");
    }
}
