/* Rounds of a fuzzer: input in, run, pages back (native/src/round.c). */
#ifndef PYKVM_ROUND_H
#define PYKVM_ROUND_H
#include <stdint.h>
#include "pykvm_reset.h"

struct pykvm_round {
    struct pykvm_vcpu *vcpu;
    struct pykvm_ram *ram;             /* what is put back; the input and the map are not in it */
    const pykvm_pages *image;
    uint8_t *input, *map;              /* host addresses */
    uint64_t *place;                   /* where the guest looks for its input: address, length */
    uint64_t input_gva, input_room, map_size, timeout_ns;
    uint64_t code, put_ns, run_ns, log_ns, copy_ns, pages; /* of the last round; code: pykvm_run's */
};
long pykvm_round_run(struct pykvm_round *r, const uint8_t *data, uint64_t length);
long pykvm_round_go_on(struct pykvm_round *r);
long pykvm_round_reset(struct pykvm_round *r);
#endif
