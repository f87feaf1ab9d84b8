/* A disk that was taken for raw by its bytes must not come to look like another format: next time it
 * would be opened as that, and a guest could choose its backing file. So a write to its first or last
 * sector is copied, looked at, and refused if it has such a header. The signs are those of
 * pykvm/devices/block/images_detect.py; a test holds the two against each other. */
#include <string.h>
#include "pykvm_blk_engine.h"

static uint32_t big32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* Comments and blank lines, then version=1 to 3: a VMDK descriptor. */
static int vmdk_text(const uint8_t *at, const uint8_t *end)
{
    while (at < end) {
        const uint8_t *stop = memchr(at, '\n', end - at), *last = stop ? stop : end;
        while (last > at && (last[-1] == '\r' || last[-1] == ' '))
            last--;
        if (last - at >= 8 && !memcmp(at, "version=", 8))
            return last - at == 9 && at[8] >= '1' && at[8] <= '3';
        if (last > at && *at != '#')
            return 0;
        at = stop ? stop + 1 : end;
    }
    return 0;
}

static int vhd_footer(const uint8_t *p)
{
    uint32_t sum = 0;
    if (memcmp(p, "conectix", 8) || big32(p + 60) != 2)
        return 0;
    for (int i = 0; i < BLK_SECTOR; i++)
        sum += i < 64 || i >= 68 ? p[i] : 0;
    return big32(p + 64) == ~sum;
}

int pykvm_blk_looks_foreign(const uint8_t *p, int last)
{
    if (last)
        return vhd_footer(p);
    if (!memcmp(p, "QFI\xfb", 4))
        return big32(p + 4) >= 1 && big32(p + 4) <= 3;
    return !memcmp(p, "KDMV", 4) || !memcmp(p, "COWD", 4) || vmdk_text(p, p + BLK_SECTOR) ||
           !memcmp(p + 0x40, "\x7f\x10\xda\xbe", 4) || !memcmp(p, "vhdxfile", 8) ||
           !memcmp(p, "conectix", 8) || !memcmp(p, "QED", 4) ||
           !memcmp(p, "WithoutFreeSpace", 16) || !memcmp(p, "WithouFreSpacExt", 16);
}

/* Whether a request writes to one of the two sectors; `first` and `last` say to which. */
int blk_guarded(struct pykvm_blk *b, struct blk_request *r)
{
    uint64_t at = r->offset - b->c.offset;
    return b->c.flags & PYKVM_BLK_GUARDED && r->type == T_OUT &&
           (at < BLK_SECTOR || at + r->length > b->c.bytes - BLK_SECTOR);
}

/* Looks at the copy of a guarded request's data. */
int blk_foreign(struct pykvm_blk *b, struct blk_request *r, const uint8_t *data)
{
    uint64_t at = r->offset - b->c.offset, end = b->c.bytes - BLK_SECTOR;
    if (!at && pykvm_blk_looks_foreign(data, 0))
        return 1;
    return end >= BLK_SECTOR && at <= end && at + r->length >= end + BLK_SECTOR &&
           pykvm_blk_looks_foreign(data + (end - at), 1);
}
