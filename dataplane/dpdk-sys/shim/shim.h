/* What DPDK has only as inline functions or macros, as functions and constants. One call does a whole burst. */
#ifndef VWIRE_DPDK_SHIM_H
#define VWIRE_DPDK_SHIM_H

#include <stddef.h>
#include <stdint.h>

#include <rte_alarm.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>

/* One segment of a received frame. */
struct vwire_view {
	uint8_t *data;
	uint32_t len;
};

#define VWIRE_BURST 64

/* A burst as it was received. Bit i of a set is about frame i. */
struct vwire_received {
	struct rte_mbuf *mbufs[VWIRE_BURST];
	/* The first segments. */
	struct vwire_view views[VWIRE_BURST];
	/* Frames that are not one segment of at least one byte: they are to be looked at. */
	uint64_t odd;
	/* Their lengths, and how many segments they have, 0 if the first does not lie within its buffer. */
	uint32_t lens[VWIRE_BURST];
	uint16_t segments[VWIRE_BURST];
	/* Frames whose buffer is of the pool asked for and belongs to its mbuf alone, so that a device may send it on. */
	uint64_t movable;
};

/* An empty mbuf to be filled. */
struct vwire_room {
	struct rte_mbuf *mbuf;
	uint8_t *data;
	uint32_t room;
};

/* What a frame owes that the device is to pay. A field of 0 is not asked for. */
struct vwire_debt {
	uint64_t flags;
	uint16_t l2_len;
	uint16_t l3_len;
	uint16_t l4_len;
	uint16_t segment_size;
};

int vwire_errno(void);
/* 1 if the calling thread has an lcore number, which per-thread caches of buffers need. */
int vwire_is_registered(void);

/*
 * rte_eth_rx_burst of at most VWIRE_BURST frames, and what there is to know of each. Each mbuf is ready to be sent as it is: what the
 * driver noted about it asks nothing of a sender.
 */
uint16_t vwire_rx_burst(uint16_t port, uint16_t queue, const struct rte_mempool *pool, struct vwire_received *to, uint16_t count);
/* The views of a frame's segments after the first, at most `count`; returns how many. One that lies outside its buffer ends them. */
uint16_t vwire_next_views(struct rte_mbuf *mbuf, struct vwire_view *views, uint16_t count);
/* rte_pktmbuf_alloc_bulk; 0 if all were had, and none is otherwise. */
int vwire_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **mbufs, struct vwire_room *rooms, uint16_t count);
/* Appends `next`, of one segment and `len` bytes, to the frame that begins with `first`. */
void vwire_chain(struct rte_mbuf *first, struct rte_mbuf *next, uint16_t len);
/* The length of a filled mbuf of one segment. */
void vwire_set_len(struct rte_mbuf *mbuf, uint16_t len);
/* What the device is to do. */
void vwire_set_debt(struct rte_mbuf *mbuf, const struct vwire_debt *debt);
/* rte_eth_tx_burst */
uint16_t vwire_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count);
/* The same. Before, an mbuf gets the length in `lens`, or keeps its own where that is 0. */
uint16_t vwire_tx_burst_of(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, const uint16_t *lens, uint16_t count);
/* rte_eth_tx_prepare */
uint16_t vwire_tx_prepare(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count);

/* rte_eth_link_get_nowait: 1 up, 0 down, negative if the device does not say. `mbps` is UINT32_MAX if it is not known. */
int vwire_link(uint16_t port, uint32_t *mbps);
/* rte_eth_macaddr_get */
int vwire_mac(uint16_t port, uint8_t mac[6]);
/* rte_eth_intr_conf is made of bit fields. */
void vwire_ask_interrupts(struct rte_eth_conf *conf, int link, int rx);
/* The device behind a port, for rte_dev_remove. */
struct rte_device *vwire_device(uint16_t port);
/* What DPDK logs goes to `sink`, a line or a part of one at a time. Call it before rte_eal_init. 0, or an errno. */
int vwire_log_to(void (*sink)(const char *text, size_t len));

static const uint64_t VWIRE_RX_SCATTER = RTE_ETH_RX_OFFLOAD_SCATTER;
static const uint64_t VWIRE_RX_RSS_HASH = RTE_ETH_RX_OFFLOAD_RSS_HASH;
static const uint64_t VWIRE_TX_TCP_CKSUM = RTE_ETH_TX_OFFLOAD_TCP_CKSUM;
static const uint64_t VWIRE_TX_UDP_CKSUM = RTE_ETH_TX_OFFLOAD_UDP_CKSUM;
static const uint64_t VWIRE_TX_IPV4_CKSUM = RTE_ETH_TX_OFFLOAD_IPV4_CKSUM;
static const uint64_t VWIRE_TX_TCP_TSO = RTE_ETH_TX_OFFLOAD_TCP_TSO;
static const uint64_t VWIRE_TX_MULTI_SEGS = RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
static const uint64_t VWIRE_RSS_IP = RTE_ETH_RSS_IP | RTE_ETH_RSS_TCP | RTE_ETH_RSS_UDP;
static const uint32_t VWIRE_MQ_RSS = RTE_ETH_MQ_RX_RSS;
static const uint32_t VWIRE_DEV_INTR_LSC = RTE_ETH_DEV_INTR_LSC;
static const uint32_t VWIRE_DEV_INTR_RMV = RTE_ETH_DEV_INTR_RMV;
static const uint16_t VWIRE_HEADROOM = RTE_PKTMBUF_HEADROOM;
static const uint64_t VWIRE_MBUF_TX_TCP_SEG = RTE_MBUF_F_TX_TCP_SEG;
static const uint64_t VWIRE_MBUF_TX_TCP_CKSUM = RTE_MBUF_F_TX_TCP_CKSUM;
static const uint64_t VWIRE_MBUF_TX_UDP_CKSUM = RTE_MBUF_F_TX_UDP_CKSUM;
static const uint64_t VWIRE_MBUF_TX_IP_CKSUM = RTE_MBUF_F_TX_IP_CKSUM;
static const uint64_t VWIRE_MBUF_TX_IPV4 = RTE_MBUF_F_TX_IPV4;
static const uint64_t VWIRE_MBUF_TX_IPV6 = RTE_MBUF_F_TX_IPV6;

#endif
