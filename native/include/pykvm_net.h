/* The net engine: moves the frames of one virtio-net queue pair between its rings and a file
 * descriptor, in a thread that does not need Python. The readable twin of it is
 * pykvm/devices/virtio/net_path.py: the same frames, drops and limits. VIRTIO 1.2, section 5.1.6. */
#ifndef PYKVM_NET_H
#define PYKVM_NET_H
#include <stdint.h>
#include "pykvm_limits.h"
#include "pykvm_virtq.h"

enum { PYKVM_NET_FRAME = 65536 + 22, PYKVM_NET_HEADER = 12 };
enum {
    PYKVM_NET_IN = 256 << 10,                      /* bytes of a stream's buffers */
    PYKVM_NET_OUT = PYKVM_NET_FRAME + 4,
};
enum {
    PYKVM_NET_STREAM = 1,    /* 4 bytes of length (big endian) before each frame */
    PYKVM_NET_MERGEABLE = 2, /* MRG_RXBUF */
    PYKVM_NET_ENDS = 4,      /* an empty read means that the peer has closed */
};

/* Which frames the driver wants (5.1.6.5.1 to 5.1.6.5.3); table: first the unicast addresses. */
struct pykvm_net_filter {
    uint8_t promisc, allmulti, alluni, nomulti, nouni, nobcast, vlans_on, unused;
    uint8_t mac[6];
    uint16_t unicast, multicast;
    uint8_t table[64 * 6];
    uint8_t vlans[4096 / 8];
};

/* Frames that went nowhere; shared by the engines of a device. */
struct pykvm_net_drops { uint64_t filtered, no_room, bad, refused, no_link, stalled; };

/* Parts of frames on a stream. Outlives engines, as the stream would be out of step without. */
struct pykvm_net_stream {
    uint8_t *in, *out;       /* PYKVM_NET_IN and PYKVM_NET_OUT bytes */
    uint32_t in_at, in_end, out_at, out_end;
};

struct pykvm_net_config {
    struct pykvm_vq *rx, *tx;
    int rx_kick, tx_kick;    /* eventfds */
    struct pykvm_vq_signal rx_signal, tx_signal;
    int fd, pcap_fd;         /* -1: no carrier; no capture */
    uint32_t flags;
    uint32_t header;         /* bytes before each frame in the rings: 10 or 12 */
    uint32_t port_header;    /* on `fd`: the same or 0 */
    uint64_t stall_ns;       /* how long a peer may take nothing before frames are dropped */
    struct pykvm_limit *limit_in, *limit_out;
    struct pykvm_stat *stats; /* two: for the driver, from it */
    struct pykvm_net_drops *drops;
    struct pykvm_net_stream *stream; /* with PYKVM_NET_STREAM */
};

struct pykvm_net;
enum { PYKVM_NET_STOPPED, PYKVM_NET_LOST, PYKVM_NET_RX_BROKEN, PYKVM_NET_TX_BROKEN };

struct pykvm_net *pykvm_net_new(const struct pykvm_net_config *config); /* NULL: no memory, no fds */
void pykvm_net_free(struct pykvm_net *e);
/* At any time, from any thread. */
void pykvm_net_set_filter(struct pykvm_net *e, const struct pykvm_net_filter *filter);
/* Runs until one of the four; nothing that was taken from a ring is kept then. */
int pykvm_net_run(struct pykvm_net *e);
void pykvm_net_stop(struct pykvm_net *e);           /* from another thread */
const char *pykvm_net_why(const struct pykvm_net *e); /* after LOST, or BROKEN without q->error */
#endif
