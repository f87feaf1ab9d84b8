/* Moving the data of requests: by io_uring where that does not block, else by plain system calls. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>
#include "pykvm_blk_engine.h"

#define IOV_MOST 1024
#define SLOW 2000000ull            /* ns: a write to the page cache that took longer was blocked */
#define SLOW_FOR 100000000ull      /* ns for which others then do the writing */

static uint8_t zeros[1 << 16];

static int bounce(struct pykvm_blk *b, struct blk_request *r)
{
    if (posix_memalign(&r->bounce, 4096, r->length)) {
        r->bounce = NULL;
        return ENOMEM;
    }
    b->bounced += r->length;
    r->data = r->iov;
    r->data_count = r->count;
    r->bounce_iov = (struct iovec){r->bounce, r->length};
    if (r->type == T_OUT)
        blk_copy(r->data, r->data_count, r->bounce, r->length, 0);
    r->iov = &r->bounce_iov;
    r->count = 1;
    return 0;
}

/* O_DIRECT has its terms: what does not meet them gets a bounce buffer, or is done alone. */
int blk_prepare(struct pykvm_blk *b, struct blk_request *r)
{
    if (blk_guarded(b, r)) { /* the copy is what is written: the guest may change the original */
        int error = b->bounced + r->length > BLK_BOUNCE ? ENOMEM : bounce(b, r);
        if (!error && blk_foreign(b, r, r->bounce))
            error = EPERM;
        if (error)
            return error;
    }
    if (!(b->c.flags & PYKVM_BLK_DIRECT) || (r->type != T_IN && r->type != T_OUT))
        return 0;
    if ((r->offset | r->length) & (b->c.align - 1)) {
        r->alone = 1;
        return 0;
    }
    if (r->bounce)
        return 0;
    uint64_t places = 0, lengths = 0;
    for (uint32_t i = 0; i < r->count; i++) {
        places |= (uintptr_t)r->iov[i].iov_base;
        lengths |= r->iov[i].iov_len;
    }
    if (!(places & (b->c.memory_align - 1)) && !(lengths & (b->c.align - 1)))
        return 0;
    if (b->bounced + r->length > BLK_BOUNCE) {
        r->alone = 1;
        return 0;
    }
    return bounce(b, r);
}

void blk_unbounce(struct pykvm_blk *b, struct blk_request *r)
{
    if (!r->bounce)
        return;
    uint64_t length = (char *)r->bounce_iov.iov_base + r->bounce_iov.iov_len - (char *)r->bounce;
    if (r->type == T_IN && !r->error)
        blk_copy(r->data, r->data_count, r->bounce, length, 1);
    b->bounced -= length;
    free(r->bounce);
    r->bounce = NULL;
}

/* What the kernel said of a read or write: 1 when the request has ended, 0 when it goes on. */
int blk_moved(struct blk_request *r, int64_t result)
{
    if (result == -EAGAIN || result == -EINTR)
        return 0;
    if (result <= 0) { /* a file that ends early was truncated; a write of nothing has no room */
        r->error = result < 0 ? -result : r->type == T_IN ? EIO : ENOSPC;
        return 1;
    }
    uint64_t n = result;
    r->offset += n;
    r->length -= n;
    while (n && n >= r->iov->iov_len) {
        n -= r->iov->iov_len;
        if (r->iov == &r->bounce_iov) { /* blk_unbounce wants to know its end */
            r->bounce_iov.iov_base = (char *)r->bounce_iov.iov_base + r->bounce_iov.iov_len;
            r->bounce_iov.iov_len = 0;
        } else {
            r->iov++;
        }
        r->count--;
    }
    if (n) {
        r->iov->iov_base = (char *)r->iov->iov_base + n;
        r->iov->iov_len -= n;
    }
    return !r->length;
}

static void transfer(struct pykvm_blk *b, struct blk_request *r)
{
    int fd = r->alone ? b->c.plain_fd : b->c.fd;
    for (;;) {
        int count = r->count < IOV_MOST ? r->count : IOV_MOST;
        ssize_t n = r->type == T_IN
            ? preadv(fd, r->iov, count, r->offset)
            : pwritev2(fd, r->iov, count, r->offset, r->dsync ? RWF_DSYNC : 0);
        if (blk_moved(r, n < 0 ? -errno : n))
            return;
    }
}

static int write_zeros(struct pykvm_blk *b, uint64_t offset, uint64_t length)
{
    while (length) {
        size_t n = length < sizeof zeros ? length : sizeof zeros;
        ssize_t done = pwrite(b->c.plain_fd, zeros, n, offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return done ? errno : ENOSPC;
        offset += done;
        length -= done;
    }
    return 0;
}

static int unsupported(int error)
{
    return error == EOPNOTSUPP || error == ENOSYS || error == ENOTTY || error == EINVAL;
}

static int discard(struct pykvm_blk *b, const struct blk_segment *s)
{
    uint64_t range[2] = {s->offset, s->length};
    int error = 0;
    if (b->c.flags & PYKVM_BLK_DEVICE) {
        if (ioctl(b->c.plain_fd, BLKDISCARD, range) < 0)
            error = errno;
    } else if (fallocate(b->c.plain_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, s->offset,
                         s->length) < 0) {
        error = errno;
    }
    return unsupported(error) ? 0 : error; /* a hint: a host that cannot may leave it */
}

static int zero_range(struct pykvm_blk *b, const struct blk_segment *s)
{
    /* Blocks may be given back only where the driver allows it (5.2.6). */
    int modes[2] = {FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 0}, count = 1;
    if (s->unmap) {
        modes[0] = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
        modes[1] = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
        count = 2;
    }
    for (int i = 0; i < count; i++) {
        if (!fallocate(b->c.plain_fd, modes[i], s->offset, s->length))
            return 0;
        if (!unsupported(errno))
            return errno;
    }
    return write_zeros(b, s->offset, s->length);
}

static int clear(struct pykvm_blk *b, struct blk_request *r)
{
    uint64_t end = b->c.offset + b->c.bytes;
    for (uint32_t i = 0; i < r->segments; i++) {
        struct blk_segment s = r->segment[i];
        r->offset = s.offset;
        r->length = s.length;
        if (s.offset + s.length > end) { /* what the file does not have is zeros already */
            if (s.offset >= end)
                continue;
            s.length = end - s.offset;
        }
        if (!s.length)
            continue;
        int error = r->type == T_DISCARD ? discard(b, &s) : zero_range(b, &s);
        if (error)
            return error;
    }
    return r->dsync && fdatasync(b->c.plain_fd) < 0 ? errno : 0;
}

/* The whole request, however long it takes; in any thread. r->error says how it went. */
void blk_perform(struct pykvm_blk *b, struct blk_request *r)
{
    if (r->type == T_IN || r->type == T_OUT)
        transfer(b, r);
    else if (r->type == T_FLUSH)
        r->error = fdatasync(b->c.plain_fd) < 0 ? errno : 0;
    else
        r->error = clear(b, r);
}

static int queue_up(struct pykvm_blk *b, struct blk_request *r)
{
    struct io_uring_sqe *s = pykvm_uring_sqe(&b->ring);
    if (!s)
        return 0;
    s->fd = b->c.fd;
    s->user_data = (uintptr_t)r;
    if (r->type == T_FLUSH) {
        s->opcode = IORING_OP_FSYNC;
        s->fsync_flags = IORING_FSYNC_DATASYNC;
        return 1;
    }
    s->off = r->offset;
    if (r->count == 1) {
        s->opcode = r->type == T_IN ? IORING_OP_READ : IORING_OP_WRITE;
        s->addr = (uintptr_t)r->iov->iov_base;
        s->len = r->iov->iov_len;
    } else {
        s->opcode = r->type == T_IN ? IORING_OP_READV : IORING_OP_WRITEV;
        s->addr = (uintptr_t)r->iov;
        s->len = r->count < IOV_MOST ? r->count : IOV_MOST;
    }
    if (r->dsync)
        s->rw_flags = RWF_DSYNC;
    return 1;
}

/* A write to the page cache is a copy; file systems that cannot promise that it does not block make
 * io_uring hand each one to a thread, at several times the cost. So it is done here and now, until
 * one blocks: then the threads have it for a while. */
static int write_here(struct pykvm_blk *b, struct blk_request *r)
{
    if (b->c.flags & PYKVM_BLK_DIRECT || r->dsync || b->now < b->slow_until)
        return 0;
    uint64_t before = pykvm_now();
    transfer(b, r);
    b->now = pykvm_now();
    if (b->now - before > SLOW)
        b->slow_until = b->now + SLOW_FOR;
    return 1;
}

int blk_submit(struct pykvm_blk *b, struct blk_request *r)
{
    if (r->alone) {
        blk_perform(b, r);
        b->now = pykvm_now();
        return 1;
    }
    if (r->type == T_OUT && write_here(b, r))
        return 1;
    if (r->type == T_IN && !b->uring && !(b->c.flags & PYKVM_BLK_DIRECT)) {
        ssize_t n = preadv2(b->c.fd, r->iov, r->count < IOV_MOST ? r->count : IOV_MOST, r->offset,
                            RWF_NOWAIT);
        if (n > 0 && blk_moved(r, n))
            return 1;
    }
    if (b->uring > 0 && r->type != T_DISCARD && r->type != T_WRITE_ZEROES && queue_up(b, r))
        return 0;
    blk_pool_give(b, r);
    return 0;
}
