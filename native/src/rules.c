/* Native rules: exits that are finished without Python. Rules are set by Python and only ever
 * added or switched off while vCPUs run; their memory lives as long as the VM. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "pykvm_native.h"

static int ring_append(struct pykvm_ring *ring, const uint8_t *data, uint32_t size)
{
    pthread_mutex_lock(&ring->lock);
    int fits = ring->capacity - (ring->head - ring->tail) >= size;
    if (fits)
        for (uint32_t i = 0; i < size; i++)
            ring->data[ring->head++ & (ring->capacity - 1)] = data[i];
    pthread_mutex_unlock(&ring->lock);
    return fits;                        /* a full ring: Python takes this exit, and drains */
}

static int apply(struct pykvm_rule *rule, int is_write, uint8_t *data, uint32_t size, uint32_t count)
{
    if (is_write) {
        if (rule->on_write == PYKVM_W_PYTHON)
            return 0;
        if (rule->on_write == PYKVM_W_RING && !ring_append(rule->ring, data, size * count))
            return 0;
        __atomic_fetch_add(&rule->writes, count, __ATOMIC_RELAXED);
        return 1;
    }
    if (rule->on_read != PYKVM_R_CONSTANT)
        return 0;
    for (uint32_t i = 0; i < count; i++)
        memcpy(data + i * size, &rule->value, size);
    __atomic_fetch_add(&rule->reads, count, __ATOMIC_RELAXED);
    return 1;
}

static struct pykvm_rule *find_mmio(struct pykvm_rules *rules, uint64_t gpa, uint32_t size)
{
    for (uint32_t i = 0; i < rules->mmio_rules; i++)
        if (gpa >= rules->mmio[i].first && gpa <= rules->mmio[i].last)
            return gpa + (size - 1) <= rules->mmio[i].last ? &rules->rule[rules->mmio[i].rule] : NULL;
    return NULL;
}

int pykvm_rule_apply(struct pykvm_vcpu *v)
{
    struct kvm_run *run = v->run;
    struct pykvm_rules *rules = v->rules;
    int done = 0;
    if (run->exit_reason == KVM_EXIT_IO) {
        uint32_t index = rules->port[run->io.port];
        /* An access that reaches past the range goes to Python, which splits it. */
        for (uint32_t i = 1; index && i < run->io.size; i++)
            if (run->io.port + i > 0xffff || rules->port[run->io.port + i] != index)
                index = 0;
        if (!index)
            return 0;
        done = apply(&rules->rule[index], run->io.direction == KVM_EXIT_IO_OUT,
                     (uint8_t *)run + run->io.data_offset, run->io.size, run->io.count);
    } else if (run->exit_reason == KVM_EXIT_MMIO && rules->mmio_rules) {
        uint32_t length = run->mmio.len;
        if (length == 0 || length > 8)
            return 0;
        struct pykvm_rule *rule = find_mmio(rules, run->mmio.phys_addr, length);
        if (!rule)
            return 0;
        done = apply(rule, run->mmio.is_write, run->mmio.data, length, 1);
    }
    if (done) {
        v->stats.native++;
        if (v->last_record)
            v->last_record->flags |= PYKVM_T_NATIVE;
    }
    return done;
}

struct pykvm_rules *pykvm_rules_new(void)
{
    struct pykvm_rules *r = calloc(1, sizeof *r);
    if (r)
        r->rules = 1;                   /* index 0 means "no rule" */
    return r;
}

void pykvm_rules_free(struct pykvm_rules *r)
{
    if (!r)
        return;
    for (uint32_t i = 0; i < r->rules; i++)
        if (r->rule[i].ring) {
            pthread_mutex_destroy(&r->rule[i].ring->lock);
            free(r->rule[i].ring->data);
            free(r->rule[i].ring);
        }
    free(r);
}

long pykvm_rule_new(struct pykvm_rules *r, int on_write, int on_read, uint64_t value, uint32_t ring)
{
    if (r->rules >= PYKVM_RULES)
        return -ENOSPC;
    if (on_write == PYKVM_W_RING && (ring < 4096 || ring > (1u << 30) || (ring & (ring - 1))))
        return -EINVAL;
    struct pykvm_rule *rule = &r->rule[r->rules];
    memset(rule, 0, sizeof *rule);
    rule->value = value;
    rule->on_write = (uint8_t)on_write;
    rule->on_read = (uint8_t)on_read;
    if (on_write == PYKVM_W_RING) {
        rule->ring = calloc(1, sizeof *rule->ring);
        if (!rule->ring)
            return -ENOMEM;
        rule->ring->data = malloc(ring);
        if (!rule->ring->data) {
            free(rule->ring);
            rule->ring = NULL;
            return -ENOMEM;
        }
        rule->ring->capacity = ring;
        pthread_mutex_init(&rule->ring->lock, NULL);
    }
    return r->rules++;
}

long pykvm_rule_pio(struct pykvm_rules *r, uint32_t rule, uint32_t port, uint32_t length)
{
    if (rule == 0 || rule >= r->rules || length == 0 || port > 0xffff || length > 0x10000 - port)
        return -EINVAL;
    for (uint32_t i = 0; i < length; i++)
        if (r->port[port + i])
            return -EEXIST;
    for (uint32_t i = 0; i < length; i++)
        __atomic_store_n(&r->port[port + i], (uint8_t)rule, __ATOMIC_RELEASE);
    return 0;
}

long pykvm_rule_mmio(struct pykvm_rules *r, uint32_t rule, uint64_t gpa, uint64_t length)
{
    if (rule == 0 || rule >= r->rules || length == 0 || gpa + (length - 1) < gpa)
        return -EINVAL;
    uint32_t slot = r->mmio_rules;
    for (uint32_t i = 0; i < r->mmio_rules; i++) {
        if (r->mmio[i].first > r->mmio[i].last)
            slot = i;                   /* switched off: use it again */
        else if (gpa <= r->mmio[i].last && gpa + (length - 1) >= r->mmio[i].first)
            return -EEXIST;
    }
    if (slot >= PYKVM_MMIO_RULES)
        return -ENOSPC;
    struct pykvm_mmio_rule *m = &r->mmio[slot];
    m->rule = rule;
    m->last = gpa + (length - 1);
    __atomic_store_n(&m->first, gpa, __ATOMIC_RELEASE);
    if (slot == r->mmio_rules)
        __atomic_store_n(&r->mmio_rules, slot + 1, __ATOMIC_RELEASE);
    return 0;
}

void pykvm_rule_clear(struct pykvm_rules *r, uint32_t rule)
{
    if (rule == 0 || rule >= r->rules)
        return;
    for (uint32_t i = 0; i < 65536; i++)
        if (r->port[i] == rule)
            __atomic_store_n(&r->port[i], 0, __ATOMIC_RELEASE);
    for (uint32_t i = 0; i < r->mmio_rules; i++)
        if (r->mmio[i].rule == rule) {
            __atomic_store_n(&r->mmio[i].first, UINT64_MAX, __ATOMIC_RELEASE);
            r->mmio[i].last = 0;
        }
    r->rule[rule].on_write = PYKVM_W_PYTHON;
    r->rule[rule].on_read = PYKVM_R_PYTHON;
}

long pykvm_ring_drain(struct pykvm_ring *ring, void *out, uint32_t size)
{
    uint8_t *to = out;
    pthread_mutex_lock(&ring->lock);
    uint32_t n = ring->head - ring->tail;
    if (n > size)
        n = size;
    for (uint32_t i = 0; i < n; i++)
        to[i] = ring->data[ring->tail++ & (ring->capacity - 1)];
    pthread_mutex_unlock(&ring->lock);
    return n;
}
