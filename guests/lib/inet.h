/* Just enough Internet for a guest: ARP (RFC 826), IPv4 (791), ICMP echo (792), UDP (768). Numbers on
   the wire are big-endian: swap16() and swap32(). Frames live in `struct net_buffer`. */
#pragma once
#include "virtio.h"

struct ethernet { uint8_t to[6], from[6]; uint16_t type; } __attribute__((packed));
struct arp {
    uint16_t hardware, protocol;
    uint8_t hardware_size, protocol_size;
    uint16_t operation;
    uint8_t sender_mac[6];
    uint32_t sender_ip;
    uint8_t target_mac[6];
    uint32_t target_ip;
} __attribute__((packed));
struct ipv4 {
    uint8_t version, service;
    uint16_t length, identification, fragment;
    uint8_t life, protocol;
    uint16_t checksum;
    uint32_t from, to;
} __attribute__((packed));
struct icmp { uint8_t type, code; uint16_t checksum, identifier, sequence; } __attribute__((packed));
struct udp { uint16_t from, to, length, checksum; } __attribute__((packed));

enum { ETHER_IPV4 = 0x0800, ETHER_ARP = 0x0806, IP_ICMP = 1, IP_UDP = 17, ECHO_REPLY = 0, ECHO = 8 };

static inline uint16_t swap16(uint16_t v) { return v << 8 | v >> 8; }
static inline uint32_t swap32(uint32_t v) { return __builtin_bswap32(v); }

/* One end of a wire. Addresses are as on the wire. */
struct inet { struct net *net; uint32_t ip; };

uint32_t ip_address(const char *text);
uint16_t inet_checksum(const void *data, unsigned bytes, uint32_t sum);
unsigned make_arp_request(struct inet *inet, uint8_t *frame, uint32_t whose);
unsigned make_echo(struct inet *inet, uint8_t *frame, const uint8_t *mac, uint32_t to,
                   uint16_t sequence, unsigned payload);
unsigned make_udp(struct inet *inet, uint8_t *frame, const uint8_t *mac, uint32_t to,
                  uint16_t port, unsigned payload);
unsigned inet_answer(struct inet *inet, uint8_t *frame, unsigned bytes);
int is_arp_reply(const uint8_t *frame, unsigned bytes, uint32_t whose, uint8_t mac[6]);
int is_echo_reply(const uint8_t *frame, unsigned bytes, uint32_t from, uint16_t *sequence);
