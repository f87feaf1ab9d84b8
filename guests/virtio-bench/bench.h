/* What the parts of virtio-bench share. */
#pragma once
#include "options.h"
#include "virtio.h"

/* Data buffers; so the machine needs 32 MiB of memory. */
enum { BUFFERS = 16 << 20, BUFFER_BYTES = 16 << 20, DEPTH_MOST = 256 };

struct outcome {
    const char *error;    /* 0: it worked */
    uint64_t requests, errors, bytes;
    uint64_t begin, end;  /* TSC */
};

extern struct outcome outcome;
extern uint64_t second; /* TSC ticks */

/* Set up in ring 0, measure in ring 3, say the rest of the line. */
const char *blk_prepare(void);
uint64_t blk_measure(uint64_t, uint64_t);
void blk_describe(void);
const char *net_prepare(void);
uint64_t net_measure(uint64_t, uint64_t);
void net_describe(void);
