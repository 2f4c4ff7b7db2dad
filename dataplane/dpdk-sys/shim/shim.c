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

static inline void view_of(const struct rte_mbuf *mbuf, struct vwire_view *view)
{
	view->data = rte_pktmbuf_mtod(mbuf, uint8_t *);
	view->len = mbuf->data_len;
	view->frame_len = mbuf->pkt_len;
	view->pool = mbuf->pool;
	view->segments = mbuf->nb_segs;
	view->exclusive = RTE_MBUF_DIRECT(mbuf) && rte_mbuf_refcnt_read(mbuf) == 1;
}

uint16_t vwire_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, struct vwire_view *views, uint16_t count)
{
	uint16_t received = rte_eth_rx_burst(port, queue, mbufs, count);

	for (uint16_t i = 0; i < received; i++) {
		if (i + 4 < received)
			rte_prefetch0(mbufs[i + 4]);
		view_of(mbufs[i], &views[i]);
		rte_prefetch0(views[i].data);
	}
	return received;
}

uint16_t vwire_next_views(struct rte_mbuf *mbuf, struct vwire_view *views, uint16_t count)
{
	uint16_t seen = 0;

	for (struct rte_mbuf *next = mbuf->next; next != NULL && seen < count; next = next->next)
		view_of(next, &views[seen++]);
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

void vwire_set_len(struct rte_mbuf *mbuf, uint16_t len)
{
	mbuf->data_len = len;
	mbuf->pkt_len = len;
}

void vwire_set_debt(struct rte_mbuf *mbuf, const struct vwire_debt *debt)
{
	mbuf->ol_flags |= debt->flags;
	mbuf->l2_len = debt->l2_len;
	mbuf->l3_len = debt->l3_len;
	mbuf->l4_len = debt->l4_len;
	mbuf->tso_segsz = debt->segment_size;
}

void vwire_forget_rx(struct rte_mbuf *mbuf)
{
	mbuf->ol_flags &= RTE_MBUF_F_INDIRECT | RTE_MBUF_F_EXTERNAL;
	mbuf->tx_offload = 0;
}

uint16_t vwire_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, const uint16_t *lens, uint16_t count)
{
	for (uint16_t i = 0; i < count; i++)
		if (lens[i] == VWIRE_TAKEN)
			vwire_forget_rx(mbufs[i]);
		else if (lens[i] != 0)
			vwire_set_len(mbufs[i], lens[i]);
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
