struct pykvm_net_filter {
    uint8_t promisc, allmulti, alluni, nomulti, nouni, nobcast, vlans_on, unused;
    uint8_t mac[6];
    uint16_t unicast, multicast;
    uint8_t table[384];
    uint8_t vlans[512];
};
struct pykvm_net_drops { uint64_t filtered, no_room, bad, refused, no_link, stalled; };
struct pykvm_net_stream {
    uint8_t *in, *out;
    uint32_t in_at, in_end, out_at, out_end;
};
#define PYKVM_NET_IN ...
#define PYKVM_NET_OUT ...
#define PYKVM_NET_STREAM 1
#define PYKVM_NET_MERGEABLE 2
#define PYKVM_NET_ENDS 4
struct pykvm_net_config {
    struct pykvm_vq *rx, *tx;
    int rx_kick, tx_kick;
    struct pykvm_vq_signal rx_signal, tx_signal;
    int fd, pcap_fd;
    uint32_t flags, header, port_header;
    uint64_t stall_ns;
    struct pykvm_limit *limit_in, *limit_out;
    struct pykvm_stat *stats;
    struct pykvm_net_drops *drops;
    struct pykvm_net_stream *stream;
};
struct pykvm_net;
#define PYKVM_NET_STOPPED 0
#define PYKVM_NET_LOST 1
#define PYKVM_NET_RX_BROKEN 2
#define PYKVM_NET_TX_BROKEN 3
struct pykvm_net *pykvm_net_new(const struct pykvm_net_config *config);
void pykvm_net_free(struct pykvm_net *e);
void pykvm_net_set_filter(struct pykvm_net *e, const struct pykvm_net_filter *filter);
int pykvm_net_run(struct pykvm_net *e);
void pykvm_net_stop(struct pykvm_net *e);
const char *pykvm_net_why(const struct pykvm_net *e);
