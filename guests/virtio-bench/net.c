/* net.c: frames to and from a network card. */
#include "bench.h"
#include "inet.h"

enum { ECHOES, STREAM, SINK, SERVE, RECEIVERS = 128, SENDERS = 128, PORT = 9 };

static struct net net;
static struct inet inet = {&net, 0};
static struct net_buffer *const receivers = (void *)BUFFERS, *const senders = receivers + RECEIVERS;
static struct net_buffer *idle[SENDERS + RECEIVERS]; /* senders that are not under way */
static unsigned idle_count;
static uint64_t count, depth, size;
static uint32_t peer;
static uint8_t peer_mac[6];
static int operation = -1;
static const char *const names[] = {"echo", "stream", "sink", "serve"};

const char *net_prepare(void)
{
    for (unsigned i = 0; i < 4; i++)
        if (option_is("op", names[i]))
            operation = i;
    if (operation < 0)
        return "op must be echo, stream, sink or serve";
    const char *ip = option_text("ip", 0), *to = option_text("peer", 0);
    inet.ip = ip_address(ip ? ip : "10.0.2.15");
    peer = ip_address(to ? to : "10.0.2.2");
    count = option("count", 1000);
    depth = option("qd", operation == STREAM ? 64 : 1);
    size = option("size", 64);
    if (!inet.ip || !peer)
        return "ip and peer must be addresses: 10.0.2.15";
    if (size > 1472 || depth < 1 || depth > SENDERS)
        return "size must be 0 to 1472, qd 1 to 128";
    if (!net_open(&net, option("nic", 0), QUEUE_MOST))
        return "no network card";
    if (net.receive.size < RECEIVERS || net.transmit.size < SENDERS)
        return "the queues are too short";
    return 0;
}

/* Gives back what was sent; the buffers of answers are receivers and go to the device again. */
static void reclaim(void)
{
    for (struct net_buffer *done; (done = queue_take(&net.transmit, 0));)
        if (done >= senders)
            idle[idle_count++] = done;
        else
            net_post(&net, done);
}

/* The next frame that is not somebody's question: those are answered on the way. */
static struct net_buffer *next_frame(unsigned *bytes)
{
    reclaim();
    struct net_buffer *frame = net_receive(&net, bytes);
    if (!frame)
        return 0;
    unsigned answer = inet_answer(&inet, frame->frame, *bytes);
    if (!answer)
        return frame;
    outcome.requests += operation == SERVE;
    outcome.bytes += operation == SERVE ? answer : 0;
    if (!net_send(&net, frame, answer))
        net_post(&net, frame);
    queue_kick(&net.transmit);
    queue_kick(&net.receive);
    return 0;
}

static void give_back(struct net_buffer *frame)
{
    net_post(&net, frame);
    queue_kick(&net.receive);
}

static int find_peer(void)
{
    unsigned bytes;
    for (unsigned tries = 0; tries < 10; tries++) {
        struct net_buffer *ask = idle[--idle_count];
        net_send(&net, ask, make_arp_request(&inet, ask->frame, peer));
        queue_kick(&net.transmit);
        for (uint64_t begin = rdtsc(); rdtsc() - begin < second / 2; pause()) {
            struct net_buffer *frame = next_frame(&bytes);
            if (!frame)
                continue;
            int found = is_arp_reply(frame->frame, bytes, peer, peer_mac);
            give_back(frame);
            if (found)
                return 1;
        }
    }
    return 0;
}

/* `qd` pings under way; a second without an answer is an error for each of them. */
static void echoes(void)
{
    uint64_t sent = 0, done = 0, last = rdtsc();
    uint16_t sequence;
    unsigned bytes;
    while (done < count) {
        for (; sent < count && sent - done < depth && idle_count; sent++) {
            struct net_buffer *ping = idle[--idle_count];
            net_send(&net, ping, make_echo(&inet, ping->frame, peer_mac, peer, sent, size));
        }
        queue_kick(&net.transmit);
        struct net_buffer *frame = next_frame(&bytes);
        if (!frame) {
            if (rdtsc() - last > second) {
                outcome.errors += sent - done;
                done = sent;
                last = rdtsc();
            }
            pause();
            continue;
        }
        if (is_echo_reply(frame->frame, bytes, peer, &sequence)) {
            done++;
            outcome.requests++;
            outcome.bytes += 2 * bytes;
            last = rdtsc();
        }
        net_post(&net, frame);
        queue_kick(&net.receive);
    }
}

/* Datagrams to the discard port (RFC 863), as fast as the device takes them. */
static void stream(void)
{
    uint64_t sent = 0;
    unsigned bytes;
    while (outcome.requests < count) {
        unsigned before = idle_count;
        struct net_buffer *frame = next_frame(&bytes);
        if (frame)
            give_back(frame);
        outcome.requests += idle_count - before;
        uint64_t under_way = sent - outcome.requests;
        if (sent == count || under_way == depth) {
            pause();
            continue;
        }
        for (; sent < count && under_way < depth && idle_count; sent++, under_way++) {
            struct net_buffer *datagram = idle[--idle_count];
            unsigned n = make_udp(&inet, datagram->frame, peer_mac, peer, PORT, size);
            net_send(&net, datagram, n);
            outcome.bytes += n;
        }
        queue_kick(&net.transmit);
    }
}

/* Datagrams to our discard port, whoever sends them; the clock starts with the first. */
static void sink(void)
{
    unsigned bytes;
    for (uint64_t last = rdtsc(); outcome.requests < count;) {
        struct net_buffer *frame = next_frame(&bytes);
        if (!frame) {
            if (outcome.requests && rdtsc() - last > 2 * second) { /* the rest was lost */
                outcome.errors = count - outcome.requests;
                outcome.end = last;
                return;
            }
            pause();
            continue;
        }
        const struct ipv4 *ip = (void *)(frame->frame + sizeof(struct ethernet));
        const struct udp *udp = (void *)(ip + 1);
        if (bytes > 42 && ip->protocol == IP_UDP && udp->to == swap16(PORT)) {
            last = rdtsc();
            if (outcome.requests++ == 0)
                outcome.begin = last;
            outcome.bytes += bytes;
        }
        give_back(frame);
    }
}

uint64_t net_measure(uint64_t a, uint64_t b)
{
    unsigned bytes;
    (void)a, (void)b;
    for (unsigned i = 0; i < RECEIVERS; i++)
        net_post(&net, &receivers[i]);
    queue_kick(&net.receive);
    for (unsigned i = 0; i < SENDERS; i++)
        idle[idle_count++] = &senders[i];
    if ((operation == ECHOES || operation == STREAM) && !find_peer()) {
        outcome.error = "the peer does not answer ARP";
        return 0;
    }
    while (idle_count < SENDERS)
        reclaim(); /* what is idle from here on was sent for the measurement */
    outcome.begin = rdtsc();
    if (operation == ECHOES)
        echoes();
    else if (operation == STREAM)
        stream();
    else if (operation == SINK)
        sink();
    else
        while (outcome.requests < count) {
            struct net_buffer *frame = next_frame(&bytes);
            if (frame)
                give_back(frame);
        }
    if (!outcome.end)
        outcome.end = rdtsc();
    return 0;
}

void net_describe(void)
{
    print("{\"device\":\"net\",\"transport\":\"%s\",\"op\":\"%s\",\"size\":%lu,\"qd\":%lu,"
          "\"kicks\":%lu,",
          net.virtio.transport->name, names[operation], size, depth,
          net.transmit.kicks + net.receive.kicks);
}
