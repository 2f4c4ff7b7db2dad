#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "shim.h"

int vwire_errno(void)
{
	return rte_errno;
}

int vwire_is_registered(void)
{
	return rte_lcore_id() != LCORE_ID_ANY;
}

/* 1 if the segment lies within its buffer. */
static inline int view_of(const struct rte_mbuf *mbuf, struct vwire_view *view)
{
	const uint32_t offset = mbuf->data_off, len = mbuf->data_len;

	view->data = (uint8_t *)mbuf->buf_addr + offset;
	view->len = len;
	return offset + len <= mbuf->buf_len;
}

/* The reference count and the number of segments, which lie side by side, in one read. */
static inline uint32_t refcnt_and_segments(const struct rte_mbuf *mbuf)
{
	uint32_t both;

	_Static_assert(offsetof(struct rte_mbuf, nb_segs) == offsetof(struct rte_mbuf, refcnt) + 2, "they lie apart");
	memcpy(&both, (const char *)mbuf + offsetof(struct rte_mbuf, refcnt), sizeof(both));
	return both;
}

/* Flags that ask something of a sender, or are about the buffer: they lie above those of receivers. */
static inline int has_foreign_flags(const struct rte_mbuf *mbuf)
{
	return mbuf->ol_flags >= RTE_MBUF_F_FIRST_FREE;
}

/* What nearly all frames are: one segment with something in it, in a buffer of the pool that is the mbuf's own. */
static inline int is_regular(const struct rte_mbuf *mbuf, const struct vwire_view *view, const struct rte_mempool *pool)
{
	if (unlikely(refcnt_and_segments(mbuf) != 0x00010001))
		return 0;
	if (unlikely(mbuf->pkt_len != view->len))
		return 0;
	if (unlikely(view->len == 0))
		return 0;
	if (unlikely(view->data == NULL))
		return 0;
	if (unlikely(has_foreign_flags(mbuf)))
		return 0;
	return likely(mbuf->pool == pool);
}

static __rte_noinline void note_irregular(struct vwire_received *to, uint16_t i, const struct rte_mempool *pool)
{
	struct rte_mbuf *mbuf = to->mbufs[i];
	const int within = view_of(mbuf, &to->views[i]);
	const uint16_t segments = within ? mbuf->nb_segs : 0;
	const uint64_t bit = 1ULL << i;

	to->lens[i] = mbuf->pkt_len;
	to->segments[i] = segments;
	if (segments != 1 || to->lens[i] != to->views[i].len || to->lens[i] == 0 || to->views[i].data == NULL)
		to->odd |= bit;
	if (!RTE_MBUF_DIRECT(mbuf) || rte_mbuf_refcnt_read(mbuf) != 1 || mbuf->pool != pool)
		to->movable &= ~bit;
	else if (has_foreign_flags(mbuf))
		mbuf->ol_flags = 0;
}

uint16_t vwire_rx_burst(uint16_t port, uint16_t queue, const struct rte_mempool *pool, struct vwire_received *to, uint16_t count)
{
	uint16_t received = rte_eth_rx_burst(port, queue, to->mbufs, count);

	to->odd = 0;
	to->movable = UINT64_MAX;
	/* The driver has just written the mbufs, so they need no prefetch; it did not touch what is in them. */
	for (uint16_t i = 0; i < received; i++) {
		struct vwire_view *view = &to->views[i];
		const int within = view_of(to->mbufs[i], view);

		rte_prefetch0(view->data);
		if (unlikely(!within) || unlikely(!is_regular(to->mbufs[i], view, pool)))
			note_irregular(to, i, pool);
	}
	return received;
}

uint16_t vwire_next_views(struct rte_mbuf *mbuf, struct vwire_view *views, uint16_t count)
{
	uint16_t seen = 0;

	for (struct rte_mbuf *next = mbuf->next; next != NULL && seen < count && view_of(next, &views[seen]); next = next->next)
		seen++;
	return seen;
}

int vwire_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **mbufs, struct vwire_room *rooms, uint16_t count)
{
	int error = rte_pktmbuf_alloc_bulk(pool, mbufs, count);

	if (error != 0)
		return error;
	for (uint16_t i = 0; i < count; i++) {
		rooms[i].mbuf = mbufs[i];
		rooms[i].data = rte_pktmbuf_mtod(mbufs[i], uint8_t *);
		rooms[i].room = rte_pktmbuf_tailroom(mbufs[i]);
	}
	return 0;
}

void vwire_chain(struct rte_mbuf *first, struct rte_mbuf *next, uint16_t len)
{
	struct rte_mbuf *last = rte_pktmbuf_lastseg(first);

	next->data_len = len;
	next->pkt_len = len;
	last->next = next;
	first->nb_segs++;
	first->pkt_len += len;
}

static inline void set_len(struct rte_mbuf *mbuf, uint16_t len)
{
	mbuf->data_len = len;
	mbuf->pkt_len = len;
}

void vwire_set_len(struct rte_mbuf *mbuf, uint16_t len)
{
	set_len(mbuf, len);
}

void vwire_set_debt(struct rte_mbuf *mbuf, const struct vwire_debt *debt)
{
	mbuf->ol_flags |= debt->flags;
	mbuf->l2_len = debt->l2_len;
	mbuf->l3_len = debt->l3_len;
	mbuf->l4_len = debt->l4_len;
	mbuf->tso_segsz = debt->segment_size;
}

uint16_t vwire_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count)
{
	return rte_eth_tx_burst(port, queue, mbufs, count);
}

uint16_t vwire_tx_burst_of(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, const uint16_t *lens, uint16_t count)
{
	for (uint16_t i = 0; i < count; i++)
		if (lens[i] != 0)
			set_len(mbufs[i], lens[i]);
	return rte_eth_tx_burst(port, queue, mbufs, count);
}

uint16_t vwire_tx_prepare(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count)
{
	return rte_eth_tx_prepare(port, queue, mbufs, count);
}

int vwire_link(uint16_t port, uint32_t *mbps)
{
	struct rte_eth_link link;
	int error;

	memset(&link, 0, sizeof(link));
	error = rte_eth_link_get_nowait(port, &link);
	if (error != 0)
		return error < 0 ? error : -error;
	*mbps = link.link_speed;
	return link.link_status == RTE_ETH_LINK_UP;
}

int vwire_mac(uint16_t port, uint8_t mac[6])
{
	struct rte_ether_addr address;
	int error = rte_eth_macaddr_get(port, &address);

	if (error == 0)
		memcpy(mac, address.addr_bytes, 6);
	return error;
}

void vwire_ask_interrupts(struct rte_eth_conf *conf, int link, int rx)
{
	conf->intr_conf.lsc = link != 0;
	conf->intr_conf.rxq = rx != 0;
	conf->intr_conf.rmv = 0;
}

struct rte_device *vwire_device(uint16_t port)
{
	struct rte_eth_dev_info info;

	return rte_eth_dev_info_get(port, &info) == 0 ? info.device : NULL;
}

static void (*log_sink)(const char *text, size_t len);

static ssize_t log_write(void *cookie, const char *text, size_t len)
{
	(void)cookie;
	log_sink(text, len);
	return (ssize_t)len;
}

int vwire_log_to(void (*sink)(const char *text, size_t len))
{
	cookie_io_functions_t functions = { .write = log_write };
	FILE *stream = fopencookie(NULL, "w", functions);

	if (stream == NULL)
		return errno;
	log_sink = sink;
	setvbuf(stream, NULL, _IOLBF, 0);
	return rte_openlog_stream(stream);
}
