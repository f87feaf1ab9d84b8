struct pykvm_round {
    struct pykvm_vcpu *vcpu;
    struct pykvm_ram *ram;
    const pykvm_pages *image;
    uint8_t *input, *map;
    uint64_t *place;
    uint64_t input_gva, input_room, map_size, timeout_ns;
    uint64_t code, put_ns, run_ns, log_ns, copy_ns, pages;
};
long pykvm_round_run(struct pykvm_round *r, const uint8_t *data, uint64_t length);
long pykvm_round_go_on(struct pykvm_round *r);
long pykvm_round_reset(struct pykvm_round *r);
