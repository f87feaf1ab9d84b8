/* Guest memory of snapshots: which pages changed, taking them, putting them back.
 * KVM API: 4.8 KVM_GET_DIRTY_LOG, 4.117 KVM_CLEAR_DIRTY_LOG. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include "pykvm_native.h"

static const uint8_t zeros[PYKVM_PAGE] __attribute__((aligned(4096)));

int pykvm_page_is_zero(const uint8_t *page)
{
    return !memcmp(page, zeros, PYKVM_PAGE);
}

static inline uint64_t words(const struct pykvm_ram_part *p)
{
    return (p->pages + 63) / 64;
}

/* What this process wrote, 64 pages a word; the marks are taken. */
static void take_marks(struct pykvm_ram_part *p)
{
    uint64_t pages = p->pages;
    for (uint64_t at = 0; at < pages; at += 8) {
        uint64_t eight = 0;
        uint64_t here = pages - at < 8 ? pages - at : 8;
        memcpy(&eight, p->marks + at, here);
        if (__builtin_expect(!eight, 1))
            continue;
        memset(p->marks + at, 0, here);
        for (uint64_t i = 0; i < here; i++)
            if (eight >> 8 * i & 0xff)
                p->bitmap[(at + i) / 64] |= 1ull << (at + i) % 64;
    }
}

static long collect_part(struct pykvm_ram *r, struct pykvm_ram_part *p, uint64_t *found)
{
    uint64_t n = words(p);
    if (p->logged) {
        struct kvm_dirty_log log = {.slot = p->slot, .dirty_bitmap = p->bitmap};
        if (ioctl(r->vm_fd, KVM_GET_DIRTY_LOG, &log) < 0)
            return -errno;
        uint64_t first = 0, last = n;
        while (first < n && !p->bitmap[first])
            first++;
        while (last > first && !p->bitmap[last - 1])
            last--;
        uint64_t set = 0;
        for (uint64_t w = first; w < last && set <= r->keep; w++)
            set += (uint64_t)__builtin_popcountll(p->bitmap[w]);
        if (set > r->keep && r->manual) {
            uint64_t end = last * 64 < p->pages ? last * 64 : p->pages;
            struct kvm_clear_dirty_log clear = {
                .slot = p->slot, .first_page = first * 64,
                .num_pages = (uint32_t)(end - first * 64), .dirty_bitmap = p->bitmap + first,
            };
            if (ioctl(r->vm_fd, KVM_CLEAR_DIRTY_LOG, &clear) < 0)
                return -errno;
        }
    } else {
        memset(p->bitmap, 0, n * 8);
    }
    if (p->marks)
        take_marks(p);
    for (uint64_t w = 0; w < n; w++)
        if (p->bitmap[w])
            *found += (uint64_t)__builtin_popcountll(p->bitmap[w]);
    return 0;
}

long pykvm_ram_collect(struct pykvm_ram *r)
{
    uint64_t found = 0;
    for (uint32_t i = 0; i < r->count; i++) {
        long e = collect_part(r, &r->part[i], &found);
        if (e < 0)
            return e;
    }
    r->pages = found;
    return (long)found;
}

void pykvm_ram_touch(struct pykvm_ram *r, uint32_t part, uint64_t first, uint64_t count)
{
    struct pykvm_ram_part *p = &r->part[part];
    for (uint64_t at = first; at < first + count && at < p->pages; at++)
        p->bitmap[at / 64] |= 1ull << at % 64;
}

/* Pages that are not the same in both, by where their bytes are. */
static void add_different(struct pykvm_ram_part *p, pykvm_pages target, pykvm_pages base)
{
    for (uint64_t w = 0; w < words(p); w++) {
        uint64_t at = w * 64;
        uint64_t here = p->pages - at < 64 ? p->pages - at : 64;
        if (!memcmp(target + at, base + at, here * sizeof *target))
            continue;
        for (uint64_t i = 0; i < here; i++)
            if (target[at + i] != base[at + i])
                p->bitmap[w] |= 1ull << i;
    }
}

static uint64_t put_part(struct pykvm_ram_part *p, pykvm_pages target)
{
    uint64_t done = 0;
    for (uint64_t w = 0; w < words(p); w++) {
        uint64_t left = p->bitmap[w];
        while (left) {
            uint64_t page = w * 64 + (uint64_t)__builtin_ctzll(left);
            left &= left - 1;
            const uint8_t *from = target[page];
            if (from)
                memcpy(p->host + page * PYKVM_PAGE, from, PYKVM_PAGE);
            else
                memset(p->host + page * PYKVM_PAGE, 0, PYKVM_PAGE);
            done++;
        }
    }
    return done;
}

long pykvm_ram_put(struct pykvm_ram *r, const pykvm_pages *target, const pykvm_pages *base)
{
    uint64_t started = pykvm_now_ns(), done = 0;
    long e = pykvm_ram_collect(r);
    if (e < 0)
        return e;
    uint64_t logged = pykvm_now_ns();
    for (uint32_t i = 0; i < r->count; i++) {
        struct pykvm_ram_part *p = &r->part[i];
        if (target[i] != base[i])
            add_different(p, target[i], base[i]);
        done += put_part(p, target[i]);
    }
    r->pages = done;
    r->log_ns = logged - started;
    r->copy_ns = pykvm_now_ns() - logged;
    return (long)done;
}

uint64_t pykvm_ram_take(struct pykvm_ram *r, const uint8_t ***tables, uint8_t *room)
{
    uint8_t *at = room;
    for (uint32_t i = 0; i < r->count; i++) {
        struct pykvm_ram_part *p = &r->part[i];
        const uint8_t **table = tables[i];
        for (uint64_t w = 0; w < words(p); w++) {
            uint64_t left = p->bitmap[w];
            while (left) {
                uint64_t page = w * 64 + (uint64_t)__builtin_ctzll(left);
                left &= left - 1;
                const uint8_t *now = p->host + page * PYKVM_PAGE;
                const uint8_t *before = table[page] ? table[page] : zeros;
                if (!memcmp(now, before, PYKVM_PAGE))
                    continue;
                if (pykvm_page_is_zero(now)) {
                    table[page] = NULL;
                    continue;
                }
                memcpy(at, now, PYKVM_PAGE);
                table[page] = at;
                at += PYKVM_PAGE;
            }
        }
    }
    return (uint64_t)(at - room);
}

int pykvm_ram_compare(const struct pykvm_ram *r, const pykvm_pages *target, uint32_t *part,
                      uint64_t *offset)
{
    for (uint32_t i = 0; i < r->count; i++) {
        const struct pykvm_ram_part *p = &r->part[i];
        for (uint64_t page = 0; page < p->pages; page++) {
            const uint8_t *now = p->host + page * PYKVM_PAGE;
            const uint8_t *then = target[i][page] ? target[i][page] : zeros;
            if (!memcmp(now, then, PYKVM_PAGE))
                continue;
            uint64_t byte = 0;
            while (now[byte] == then[byte])
                byte++;
            *part = i;
            *offset = page * PYKVM_PAGE + byte;
            return 1;
        }
    }
    return 0;
}
