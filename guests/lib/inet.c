/* inet.c: frames that a guest with one address sends, understands and answers. */
#include "inet.h"

enum { IDENTIFIER = 0x766d, ARP_REQUEST = 1, ARP_REPLY = 2 };
enum { ARP_BYTES = sizeof(struct ethernet) + sizeof(struct arp) };
enum { IP_AT = sizeof(struct ethernet), BODY_AT = IP_AT + sizeof(struct ipv4) };

/* "10.0.2.15" as on the wire; 0 for what is no address. */
uint32_t ip_address(const char *text)
{
    uint32_t address = 0;
    for (unsigned i = 0, part; i < 4; i++) {
        for (part = 0; *text >= '0' && *text <= '9'; text++)
            part = part * 10 + *text - '0';
        if (part > 255 || (i < 3 && *text++ != '.'))
            return 0;
        address |= part << 8 * i;
    }
    return address;
}

/* The ones' complement sum of 16-bit words (RFC 1071), on top of `sum`. Words may be summed in the
   machine's own byte order. */
uint16_t inet_checksum(const void *data, unsigned bytes, uint32_t sum)
{
    const uint8_t *at = data;
    for (; bytes > 1; bytes -= 2, at += 2)
        sum += *(const uint16_t *)at;
    if (bytes)
        sum += *at;
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return ~sum;
}

static void address(struct inet *inet, uint8_t *frame, const uint8_t *to, uint16_t type)
{
    struct ethernet *ethernet = (void *)frame;
    memcpy(ethernet->to, to, 6);
    memcpy(ethernet->from, inet->net->mac, 6);
    ethernet->type = swap16(type);
}

static unsigned make_arp(struct inet *inet, uint8_t *frame, const uint8_t *to, uint16_t operation,
                         uint32_t target)
{
    address(inet, frame, to, ETHER_ARP);
    struct arp *arp = (void *)(frame + sizeof(struct ethernet));
    *arp = (struct arp){
        .hardware = swap16(1), .protocol = swap16(ETHER_IPV4), .hardware_size = 6,
        .protocol_size = 4, .operation = swap16(operation), .sender_ip = inet->ip,
        .target_ip = target,
    };
    memcpy(arp->sender_mac, inet->net->mac, 6);
    if (operation == ARP_REPLY)
        memcpy(arp->target_mac, to, 6);
    return ARP_BYTES;
}

/* "Who has this address?", to everybody. All make_ functions return the frame's bytes. */
unsigned make_arp_request(struct inet *inet, uint8_t *frame, uint32_t whose)
{
    return make_arp(inet, frame, (const uint8_t[6]){255, 255, 255, 255, 255, 255}, ARP_REQUEST,
                    whose);
}

static unsigned make_ip(struct inet *inet, uint8_t *frame, const uint8_t *mac, uint32_t to,
                        uint8_t protocol, unsigned body)
{
    address(inet, frame, mac, ETHER_IPV4);
    struct ipv4 *ip = (void *)(frame + IP_AT);
    *ip = (struct ipv4){
        .version = 0x45, .length = swap16(sizeof *ip + body), .fragment = swap16(0x4000),
        .life = 64, .protocol = protocol, .from = inet->ip, .to = to,
    };
    ip->checksum = inet_checksum(ip, sizeof *ip, 0);
    return BODY_AT + body;
}

/* A ping with `payload` bytes; what these are is what was in the frame before. */
unsigned make_echo(struct inet *inet, uint8_t *frame, const uint8_t *mac, uint32_t to,
                   uint16_t sequence, unsigned payload)
{
    struct icmp *icmp = (void *)(frame + BODY_AT);
    *icmp = (struct icmp){ECHO, 0, 0, swap16(IDENTIFIER), swap16(sequence)};
    icmp->checksum = inet_checksum(icmp, sizeof *icmp + payload, 0);
    return make_ip(inet, frame, mac, to, IP_ICMP, sizeof *icmp + payload);
}

/* A datagram from and to `port`. A checksum of 0 says that there is none. */
unsigned make_udp(struct inet *inet, uint8_t *frame, const uint8_t *mac, uint32_t to, uint16_t port,
                  unsigned payload)
{
    struct udp *udp = (void *)(frame + BODY_AT);
    *udp = (struct udp){swap16(port), swap16(port), swap16(sizeof *udp + payload), 0};
    return make_ip(inet, frame, mac, to, IP_UDP, sizeof *udp + payload);
}

/* The length of the IPv4 packet in the frame that is for us, without options and whole; or 0. */
static unsigned whole_ip(const uint8_t *frame, unsigned bytes)
{
    const struct ethernet *ethernet = (const void *)frame;
    const struct ipv4 *ip = (const void *)(frame + IP_AT);
    if (bytes < BODY_AT || ethernet->type != swap16(ETHER_IPV4) || ip->version != 0x45)
        return 0;
    unsigned length = swap16(ip->length);
    return length >= sizeof *ip && length <= bytes - IP_AT ? length : 0;
}

/* Turns a frame that asks (who has our address? are you there?) into its answer, in place.
   Returns the answer's bytes; 0: there is nothing to say. */
unsigned inet_answer(struct inet *inet, uint8_t *frame, unsigned bytes)
{
    struct ethernet *ethernet = (void *)frame;
    struct arp *arp = (void *)(frame + sizeof *ethernet);
    if (bytes >= ARP_BYTES && ethernet->type == swap16(ETHER_ARP)) {
        if (arp->operation != swap16(ARP_REQUEST) || arp->target_ip != inet->ip)
            return 0;
        uint8_t mac[6];
        memcpy(mac, arp->sender_mac, 6);
        return make_arp(inet, frame, mac, ARP_REPLY, arp->sender_ip);
    }
    struct ipv4 *ip = (void *)(frame + IP_AT);
    struct icmp *icmp = (void *)(frame + BODY_AT);
    unsigned length = whole_ip(frame, bytes);
    if (length < sizeof *ip + sizeof *icmp || ip->to != inet->ip || ip->protocol != IP_ICMP ||
        icmp->type != ECHO)
        return 0;
    memcpy(ethernet->to, ethernet->from, 6);
    memcpy(ethernet->from, inet->net->mac, 6);
    ip->to = ip->from;
    ip->from = inet->ip;
    icmp->type = ECHO_REPLY;
    icmp->checksum = 0;
    icmp->checksum = inet_checksum(icmp, length - sizeof *ip, 0);
    return IP_AT + length;
}

/* 1: this says which MAC address belongs to `whose`. */
int is_arp_reply(const uint8_t *frame, unsigned bytes, uint32_t whose, uint8_t mac[6])
{
    const struct ethernet *ethernet = (const void *)frame;
    const struct arp *arp = (const void *)(frame + sizeof *ethernet);
    if (bytes < ARP_BYTES || ethernet->type != swap16(ETHER_ARP) ||
        arp->operation != swap16(ARP_REPLY) || arp->sender_ip != whose)
        return 0;
    memcpy(mac, arp->sender_mac, 6);
    return 1;
}

/* 1: this answers a ping of ours. */
int is_echo_reply(const uint8_t *frame, unsigned bytes, uint32_t from, uint16_t *sequence)
{
    const struct ipv4 *ip = (const void *)(frame + IP_AT);
    const struct icmp *icmp = (const void *)(frame + BODY_AT);
    unsigned length = whole_ip(frame, bytes);
    if (length < sizeof *ip + sizeof *icmp || ip->from != from || ip->protocol != IP_ICMP ||
        icmp->type != ECHO_REPLY || icmp->identifier != swap16(IDENTIFIER) ||
        inet_checksum(icmp, length - sizeof *ip, 0) != 0)
        return 0;
    *sequence = swap16(icmp->sequence);
    return 1;
}
