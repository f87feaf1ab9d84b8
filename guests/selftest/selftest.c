/* selftest: the runtime tests itself, and shows the guest protocol.

   Each GUEST_CASE becomes a test of its own on the host (tests/kvm/test_guests_selftest.py); an
   assertion that fails here fails that test, with this file's name and the line. */
#include "protocol.h"

/* 1: one case fails on purpose, so that the host's tests can see how that looks. */
uint32_t fail_on_demand;

static volatile uint32_t initialised = 0x12345678;
static volatile uint8_t zeroed[64];

GUEST_CASE(data_is_loaded)
{
    GUEST_ASSERT_EQ(initialised, 0x12345678);
    initialised++;
    GUEST_ASSERT_EQ(initialised, 0x12345679);
}

GUEST_CASE(bss_is_zero)
{
    for (unsigned i = 0; i < sizeof zeroed; i++)
        GUEST_ASSERT(zeroed[i] == 0);
}

GUEST_CASE(long_mode)
{
    GUEST_ASSERT(rdmsr(0xc0000080) & 1 << 10); /* EFER.LMA */
    GUEST_ASSERT_EQ(sizeof(void *), 8);
    uint64_t rflags;
    asm volatile("pushf; pop %0" : "=r"(rflags));
    GUEST_ASSERT((rflags & 0x200) == 0); /* interrupts are off until the guest wants them */
}

GUEST_CASE(string_functions)
{
    char buffer[16];
    memset(buffer, 'x', sizeof buffer);
    memcpy(buffer + 4, "guest", 6);
    GUEST_ASSERT_EQ(strlen(buffer), 9);
    GUEST_ASSERT(memcmp(buffer, "xxxxguest", 10) == 0);
    GUEST_ASSERT(memcmp(buffer, "xxxxguesu", 9) < 0);
}

GUEST_CASE(arithmetic)
{
    volatile uint64_t a = 0x123456789abcdef0, b = 0x1000;
    GUEST_ASSERT_EQ(a / b, 0x123456789abcd);
    GUEST_ASSERT_EQ(a % b, 0xef0);
    GUEST_ASSERT_EQ((unsigned __int128)a * a >> 64, 0x14b66dc33f6acdc);
    volatile int64_t c = -7;
    GUEST_ASSERT(c / 2 == -3 && c % 2 == -1 && c >> 1 == -4);
}

GUEST_CASE(atomics)
{
    uint64_t word = 40;
    GUEST_ASSERT_EQ(__atomic_fetch_add(&word, 2, __ATOMIC_SEQ_CST), 40);
    uint64_t expected = 42;
    GUEST_ASSERT(__atomic_compare_exchange_n(&word, &expected, 7, 0, __ATOMIC_SEQ_CST,
                                             __ATOMIC_SEQ_CST));
    GUEST_ASSERT_EQ(__atomic_exchange_n(&word, 9, __ATOMIC_SEQ_CST), 7);
    GUEST_ASSERT_EQ(word, 9);
}

static unsigned caught;

static void skip_ud2(struct frame *frame)
{
    caught++;
    frame->rip += 2;
}

GUEST_CASE(exception_handler)
{
    set_handler(VECTOR_UD, skip_ud2);
    asm volatile("ud2");
    set_handler(VECTOR_UD, 0);
    GUEST_ASSERT_EQ(caught, 1);
}

static uint64_t in_ring3(uint64_t a, uint64_t b)
{
    uint16_t cs;
    asm volatile("mov %0, cs" : "=r"(cs));
    return (cs & 3) << 16 | (a + b);
}

GUEST_CASE(ring3)
{
    GUEST_ASSERT_EQ(ring3_call(in_ring3, 40, 2, 0), 3 << 16 | 42);
}

GUEST_CASE(sync_is_answered)
{
    if (!guest_host_present())
        return;
    /* The host answers stage + 1 in the tests. */
    GUEST_ASSERT_EQ(GUEST_SYNC(100), 101);
    guest_arg(0x1122334455667788);
    GUEST_ASSERT_EQ(GUEST_SYNC(200), 201);
}

GUEST_CASE(on_demand)
{
    GUEST_EXPECT(fail_on_demand != 1);
    if (fail_on_demand == 1)
        GUEST_ASSERT_EQ(initialised, fail_on_demand);
}

int main(void)
{
    guest_run_cases();
    GUEST_DONE();
}
