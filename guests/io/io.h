/* io.h: the operations that the io guest performs. The host may write its own list to the symbol
   `program` before the start (tests/kvm/guestlib.py has the same layout in Python). */
#pragma once
#include <stdint.h>

enum {
    OP_END = 0,    /* the list ends */
    OP_IN = 1,     /* value = IN address */
    OP_OUT = 2,    /* OUT address, value */
    OP_INS = 3,    /* REP INS: count elements to buffer */
    OP_OUTS = 4,   /* REP OUTS: count elements from buffer */
    OP_LOAD = 5,   /* value = [address] */
    OP_STORE = 6,  /* [address] = value */
    OP_LOADS = 7,  /* REP MOVS: count elements from address to buffer */
    OP_STORES = 8, /* REP MOVS: count elements from buffer to address */
    OP_FILL = 9,   /* REP STOS: count times value to address */
    OP_ADD = 10,   /* [address] += value, in one instruction */
    OP_COUNT,

    FLAG_BACKWARDS = 1, /* string operations count down (DF = 1): address and buffer are those of
                           the first element, the highest */
    FLAG_RING3 = 2,     /* in ring 3: memory operations only */
};

struct operation {
    uint8_t code;
    uint8_t size; /* bytes an element: 1, 2, 4, and 8 where address is memory */
    uint16_t flags;
    uint32_t count;
    uint64_t address; /* port, or guest-physical address below 1 GiB or in 3-4 GiB */
    uint64_t value;
    uint64_t buffer; /* guest-physical, below 1 GiB */
};
