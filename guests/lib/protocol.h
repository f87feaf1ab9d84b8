/* protocol.h: how a guest tells the host's test how it is going.

   32 I/O ports from 0x5e0, eight registers of 32 bits. The host's side is the device
   pykvm.devices.guestproto.GuestProtocol. Addresses are guest-physical and below 4 GiB; a text
   ends with a NUL.

     offset  name   write                                    read
     0x00    ID     -                                        0x766b7970 ("pykv")
     0x04    SYNC   the guest has reached this stage         the host's answer to it
     0x08    FILE   address of the source file's name        -
     0x0c    LINE   line number                              -
     0x10    TEXT   address of the failed expression's       -
                    text: reports the assertion
     0x14    ARG    appends a word to the next SYNC or TEXT  -
     0x18    CASE   address of a test case's name: it        -
                    begins; 0: it has ended
     0x1c    DONE   the guest is done; 0 = all well          -

   Without the device (ID reads as all ones) nothing is sent; what failed is printed on the serial
   port in either case. */
#pragma once
#include "runtime.h"

enum {
    PROTOCOL_PORT = 0x5e0,
    PROTOCOL_ID = 0x00,
    PROTOCOL_SYNC = 0x04,
    PROTOCOL_FILE = 0x08,
    PROTOCOL_LINE = 0x0c,
    PROTOCOL_TEXT = 0x10,
    PROTOCOL_ARG = 0x14,
    PROTOCOL_CASE = 0x18,
    PROTOCOL_DONE = 0x1c,
    PROTOCOL_MAGIC = 0x766b7970,
    PROTOCOL_FAILED = 1, /* the status of a guest whose assertion failed */
};

/* Is the host listening? */
int guest_host_present(void);

/* Tell the host that `stage` is reached; returns its answer (0 without a host). */
uint32_t guest_sync(uint32_t stage);
#define GUEST_SYNC(stage) guest_sync(stage)

/* Append a 64-bit value to the next sync or assertion (as two words, low first). */
void guest_arg(uint64_t value);

void guest_failed(const char *file, int line, const char *expression);
void guest_give_up(void) __attribute__((noreturn));

/* EXPECT records a failure and goes on; ASSERT ends the test case, or the guest outside of one. */
#define GUEST_EXPECT(expression)                                \
    ((expression) ? (void)0 : guest_failed(__FILE__, __LINE__, #expression))

#define GUEST_ASSERT(expression)                                \
    do {                                                        \
        if (!(expression)) {                                    \
            guest_failed(__FILE__, __LINE__, #expression);      \
            guest_give_up();                                    \
        }                                                       \
    } while (0)

/* The same for a == b; the two values travel along. */
#define GUEST_ASSERT_EQ(a, b)                                   \
    do {                                                        \
        uint64_t left_ = (a), right_ = (b);                     \
        if (left_ != right_) {                                  \
            guest_arg(left_);                                   \
            guest_arg(right_);                                  \
            guest_failed(__FILE__, __LINE__, #a " == " #b);     \
            guest_give_up();                                    \
        }                                                       \
    } while (0)

/* Report the end and end: status 0 if no assertion failed, else PROTOCOL_FAILED. */
void guest_done(void) __attribute__((noreturn));
#define GUEST_DONE() guest_done()

/* GUEST_CASE(name) { ... } defines a test case; guest_run_cases() runs them all in the order of
   the source. Their names are in manifest.json, so host tests can be made from them. */
struct guest_case {
    const char *name;
    void (*run)(void);
};

#define GUEST_CASE(name)                                                        \
    static void name(void);                                                     \
    const struct guest_case guest_case_##name                                   \
        __attribute__((section("guest_cases"), used, no_reorder, aligned(8))) = \
        {#name, name};                                                          \
    static void name(void)

void guest_run_cases(void);
