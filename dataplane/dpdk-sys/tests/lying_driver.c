/*
 * What the shim makes of mbufs as no driver should give them: a driver made here hands them out, one burst for each case, and each
 * verdict is compared. Prints the case that is not as it should be, and ends with 1 then.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../shim/shim.h"

#define SEGMENTS 4
#define BUFFER 256
#define ROOM 128

/* The pool of ours; only its address counts. */
static struct rte_mempool *const POOL = (struct rte_mempool *)0x1000;
static struct rte_mempool *const OTHER = (struct rte_mempool *)0x2000;

static struct rte_mbuf segments[SEGMENTS];
static uint8_t buffers[SEGMENTS][BUFFER];

/* What one case expects of the only frame. */
struct wanted {
	int odd, movable;
	uint16_t segments;
	uint32_t len;
};

static const struct wanted REGULAR = {.odd = 0, .movable = 1};
static const struct wanted OUTSIDE = {.odd = 1, .movable = 1, .segments = 0};

static uint16_t lie(void *queue, struct rte_mbuf **mbufs, uint16_t count)
{
	(void)queue;
	if (count == 0)
		return 0;
	mbufs[0] = &segments[0];
	return 1;
}

static void install(void)
{
	static void *data[1], *callbacks[1];

	rte_eth_fp_ops[0].rx_pkt_burst = lie;
	rte_eth_fp_ops[0].rxq.data = data;
	rte_eth_fp_ops[0].rxq.clbk = callbacks;
}

/* Frames of `count` segments of 60 bytes each, as they should be. */
static struct rte_mbuf *honest(uint16_t count)
{
	memset(segments, 0, sizeof(segments));
	for (int i = 0; i < SEGMENTS; i++) {
		segments[i].buf_addr = buffers[i];
		segments[i].buf_len = BUFFER;
		segments[i].data_off = ROOM;
		segments[i].data_len = 60;
		segments[i].pkt_len = 60;
		segments[i].nb_segs = 1;
		segments[i].refcnt = 1;
		segments[i].pool = POOL;
		segments[i].next = i + 1 < count ? &segments[i + 1] : NULL;
	}
	segments[0].nb_segs = count;
	segments[0].pkt_len = 60U * count;
	return &segments[0];
}

static int failed;

static void expect(const char *name, struct wanted wanted)
{
	struct vwire_received got;

	memset(&got, 0xff, sizeof(got));
	if (vwire_rx_burst(0, 0, POOL, &got, VWIRE_BURST) != 1 || got.mbufs[0] != &segments[0]) {
		printf("%s: the frame is lost\n", name);
		failed = 1;
		return;
	}
	const int odd = got.odd & 1, movable = got.movable & 1;
	int same = odd == wanted.odd && movable == wanted.movable && (got.odd & ~1ULL) == 0;

	if (odd)
		same &= got.segments[0] == wanted.segments && (wanted.len == 0 || got.lens[0] == wanted.len);
	else
		same &= got.views[0].data == buffers[0] + ROOM && got.views[0].len == 60;
	if (!same) {
		printf("%s: odd %d, movable %d, segments %u, length %u\n", name, odd, movable, got.segments[0], got.lens[0]);
		failed = 1;
	}
}

static void one_segment(void)
{
	honest(1);
	expect("as it should be", REGULAR);
	honest(1)->data_len = BUFFER - ROOM + 1;
	segments[0].pkt_len = BUFFER - ROOM + 1;
	expect("data beyond the buffer by one", OUTSIDE);
	honest(1)->data_len = UINT16_MAX;
	segments[0].pkt_len = UINT16_MAX;
	expect("the longest data", OUTSIDE);
	honest(1)->data_off = UINT16_MAX;
	expect("data far behind the buffer", OUTSIDE);
	honest(1)->buf_len = 0;
	expect("a buffer of nothing", OUTSIDE);
	honest(1)->pkt_len = 61;
	expect("one segment, and a byte more", (struct wanted){.odd = 1, .movable = 1, .segments = 1, .len = 61});
	honest(1)->pkt_len = UINT32_MAX;
	expect("the longest packet", (struct wanted){.odd = 1, .movable = 1, .segments = 1, .len = UINT32_MAX});
	honest(1)->nb_segs = 0;
	expect("no segment", (struct wanted){.odd = 1, .movable = 1, .segments = 0});
	honest(1)->nb_segs = UINT16_MAX;
	expect("more segments than there are", (struct wanted){.odd = 1, .movable = 1, .segments = UINT16_MAX});
	honest(1)->data_len = 0;
	expect("no data", (struct wanted){.odd = 1, .movable = 1, .segments = 1, .len = 60});
	honest(1)->buf_addr = NULL;
	segments[0].data_off = 0;
	expect("no buffer", (struct wanted){.odd = 1, .movable = 1, .segments = 1, .len = 60});
}

/* Frames that a device may not send on, since the buffer is somebody else's, too. */
static void whose(void)
{
	const struct wanted kept = {.odd = 0, .movable = 0};

	honest(1)->pool = OTHER;
	expect("another pool", kept);
	honest(1)->refcnt = 2;
	expect("two owners", kept);
	honest(1)->ol_flags = RTE_MBUF_F_INDIRECT;
	expect("another mbuf's buffer", kept);
	honest(1)->ol_flags = RTE_MBUF_F_EXTERNAL;
	expect("a buffer from outside", kept);
}

/* What a driver says about a sender's work is not passed on to a sender. */
static void flags(void)
{
	honest(1)->ol_flags = RTE_MBUF_F_RX_IP_CKSUM_GOOD;
	expect("a receiver's flag", REGULAR);
	honest(1)->ol_flags = RTE_MBUF_F_TX_TCP_SEG | RTE_MBUF_F_TX_IPV4;
	expect("a sender's flags", REGULAR);
	if (segments[0].ol_flags != 0) {
		printf("a sender's flags stay: %#lx\n", (unsigned long)segments[0].ol_flags);
		failed = 1;
	}
}

static void next_views(const char *name, uint16_t room, uint16_t wanted)
{
	struct vwire_view views[SEGMENTS];
	const uint16_t count = vwire_next_views(&segments[0], views, room);
	int same = count == wanted;

	for (int i = 0; i < count; i++)
		same &= views[i].data == buffers[i + 1] + ROOM && views[i].len == 60;
	if (!same) {
		printf("%s: %u segments\n", name, count);
		failed = 1;
	}
}

static void chains(void)
{
	honest(3);
	expect("three segments", (struct wanted){.odd = 1, .movable = 1, .segments = 3, .len = 180});
	next_views("three segments", SEGMENTS, 2);
	next_views("room for one", 1, 1);
	honest(3);
	segments[1].data_len = BUFFER;
	next_views("the second beyond its buffer", SEGMENTS, 0);
	honest(3);
	segments[2].data_off = BUFFER + 1;
	next_views("the third beyond its buffer", SEGMENTS, 1);
	honest(3);
	segments[2].next = &segments[1];
	next_views("a ring", 2, 2);
	honest(1)->nb_segs = 3;
	next_views("segments that are not there", SEGMENTS, 0);
}

int main(void)
{
	install();
	one_segment();
	whose();
	flags();
	chains();
	return failed;
}
