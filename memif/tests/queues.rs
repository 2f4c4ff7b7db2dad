//! The four ends of the rings against one another.

mod common;

use common::{Bench, Collect, Random, pattern, receive_all, shape};
use memif::Lent;
use memif::queue::{BufferSpacing, ClientShape, Pair, RxQueue, Stopped, TxQueue, TxRefused, pair};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

fn small(log2_size: u8, buffer_size: u32) -> ClientShape {
    ClientShape { buffer_size, ..shape(log2_size) }
}

fn send(tx: &mut TxQueue, frame: &[u8]) {
    tx.push(Lent::from(frame)).expect("room");
    tx.publish();
}

/// Both directions of a pair: client to server, server to client.
fn both_ways(mut each: impl FnMut(&mut TxQueue, &mut RxQueue), shape: ClientShape) {
    let Pair { mut client, mut server } = pair(shape).expect("pair");
    each(&mut client.tx[0], &mut server.rx[0]);
    each(&mut server.tx[0], &mut client.rx[0]);
}

#[test]
fn frames_of_every_length_arrive_whole_in_both_directions() {
    let lengths = (1..=2200).chain((2200..65_536).step_by(977)).chain([65_535, 65_536]);
    let lengths: Vec<usize> = lengths.collect();
    both_ways(
        |tx, rx| {
            for (number, &len) in lengths.iter().enumerate() {
                let frame = pattern(number as u64, len);
                send(tx, &frame);
                let mut got = Collect::new(8);
                assert_eq!(rx.receive(&mut got), Ok(1));
                assert_eq!(got.segments, [len.div_ceil(2048)], "a frame of {len} bytes");
                assert!(got.frames[0] == frame, "a frame of {len} bytes was changed");
                rx.release();
            }
            assert_eq!(rx.take_faults().total(), 0);
        },
        shape(8),
    );
}

#[test]
fn packed_and_spaced_buffers_carry_the_same() {
    for spacing in [BufferSpacing::Packed, BufferSpacing::OddLines] {
        both_ways(
            |tx, rx| {
                let frames: Vec<Vec<u8>> = (0..16).map(|n| pattern(n, 2048)).collect();
                frames.iter().for_each(|frame| tx.push(Lent::from(frame.as_slice())).expect("room"));
                tx.publish();
                assert!(receive_all(rx).unwrap() == frames, "{spacing:?}");
            },
            ClientShape { spacing, ..shape(4) },
        );
    }
}

#[test]
fn order_and_contents_survive_many_turns_of_the_indices() {
    for log2 in [1, 2, 3, 7] {
        both_ways(
            |tx, rx| {
                let mut random = Random(7 + u64::from(log2));
                let (mut sent, mut received) = (0u64, 0u64);
                while received < 100_000 {
                    for _ in 0..random.below(9) {
                        let frame = pattern(sent, 1 + (sent % 128) as usize);
                        sent += u64::from(tx.push(Lent::from(frame.as_slice())).is_ok());
                    }
                    tx.publish();
                    let mut got = Collect::new(random.below(9) as usize);
                    rx.receive(&mut got).unwrap();
                    for frame in got.frames {
                        assert_eq!(frame, pattern(received, 1 + (received % 128) as usize));
                        received += 1;
                    }
                    if random.below(3) > 0 {
                        rx.release();
                    }
                }
            },
            small(log2, 64),
        );
    }
}

#[test]
fn pieces_are_gathered_into_one_frame() {
    both_ways(
        |tx, rx| {
            let frame = pattern(1, 5000);
            let parts = [Lent::from(&frame[..14]), Lent::from(&frame[14..3000]), Lent::from(&frame[3000..])];
            tx.push_chain(&parts).unwrap();
            tx.push_with(5000, |writer| parts.iter().for_each(|&part| writer.append(part))).unwrap();
            tx.push_with(64, |writer| writer.append_bytes(&frame[..64])).unwrap();
            tx.publish();
            assert!(receive_all(rx).unwrap() == [&frame[..], &frame[..], &frame[..64]]);
        },
        shape(4),
    );
}

#[test]
fn a_writer_keeps_what_was_written_and_no_more_than_was_reserved() {
    both_ways(
        |tx, rx| {
            let bytes = pattern(2, 9000);
            tx.push_with(9000, |writer| writer.append_bytes(&bytes[..100])).unwrap();
            tx.push_with(2048, |writer| writer.append_bytes(&bytes)).unwrap();
            assert_eq!(tx.push_with(100, |_| ()), Err(TxRefused::Empty));
            tx.publish();
            assert!(receive_all(rx).unwrap() == [&bytes[..100], &bytes[..2048]]);
        },
        shape(4),
    );
}

#[test]
fn a_full_ring_refuses_and_takes_again_what_was_released() {
    both_ways(
        |tx, rx| {
            let frames: Vec<Vec<u8>> = (0..9).map(|n| pattern(n, 60)).collect();
            let views: Vec<Lent<'_>> = frames.iter().map(|frame| Lent::from(frame.as_slice())).collect();
            assert_eq!(tx.push_burst(&views), Err(Stopped { at: 8, why: TxRefused::Full }));
            assert_eq!(tx.free(), 0);
            tx.publish();
            let mut got = Collect::new(3);
            assert_eq!(rx.receive(&mut got), Ok(3));
            assert_eq!(tx.free(), 0, "lent frames are not the sender's yet");
            rx.release();
            assert_eq!(tx.free(), 3);
            tx.push_burst(&views[..3]).unwrap();
            assert_eq!(tx.push(views[0]), Err(TxRefused::Full));
            assert_eq!(tx.fault(), None);
        },
        shape(3),
    );
}

#[test]
fn nothing_is_visible_before_it_is_published() {
    both_ways(
        |tx, rx| {
            tx.push(Lent::from(&[1; 60][..])).unwrap();
            assert_eq!(rx.backlog(), 0);
            assert_eq!(receive_all(rx).unwrap().len(), 0);
            tx.publish();
            assert_eq!(rx.backlog(), 1);
            assert_eq!(receive_all(rx).unwrap().len(), 1);
        },
        shape(3),
    );
}

#[test]
fn frames_that_cannot_be_carried_are_refused_and_leave_the_ring_alone() {
    both_ways(
        |tx, rx| {
            let long = vec![0; 65_537];
            assert_eq!(tx.push(Lent::from(&long[..])), Err(TxRefused::TooLong));
            assert_eq!(tx.push(Lent::from(&[][..])), Err(TxRefused::Empty));
            assert_eq!(tx.push_chain(&[]), Err(TxRefused::Empty));
            tx.publish();
            assert_eq!(rx.backlog(), 0);
        },
        shape(8),
    );
    // Four slots of 64 bytes hold 256; and never are more than 64 descriptors chained.
    both_ways(|tx, _| assert_eq!(tx.push(Lent::from(&[0; 257][..])), Err(TxRefused::TooLong)), small(2, 64));
    both_ways(
        |tx, _| assert_eq!(tx.push(Lent::from(&[0; 4097][..])), Err(TxRefused::TooLong)),
        small(10, 64),
    );
    both_ways(|tx, _| assert_eq!(tx.push(Lent::from(&[0; 4096][..])), Ok(())), small(10, 64));
}

#[test]
fn a_chain_that_does_not_fit_now_waits_for_room() {
    both_ways(
        |tx, rx| {
            send(tx, &[1; 60]);
            assert_eq!(tx.push(Lent::from(&[2; 250][..])), Err(TxRefused::Full));
            receive_all(rx).unwrap();
            assert_eq!(tx.push(Lent::from(&[2; 250][..])), Ok(()));
        },
        small(2, 64),
    );
}

fn is_readable(rx: &RxQueue) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(rx.event_fd(), PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).expect("poll") == 1
}

#[test]
fn a_receiver_is_interrupted_only_when_it_asked_for_it() {
    both_ways(
        |tx, rx| {
            send(tx, &[0; 60]);
            assert!(!is_readable(rx), "masked from the start");
            rx.unmask();
            tx.publish();
            assert!(!is_readable(rx), "nothing new was published");
            send(tx, &[0; 60]);
            assert!(is_readable(rx));
            rx.drain_event();
            assert!(!is_readable(rx));
            rx.mask();
            send(tx, &[0; 60]);
            assert!(!is_readable(rx));
            assert_eq!(receive_all(rx).unwrap().len(), 3);
        },
        shape(4),
    );
}

#[test]
fn a_client_shows_nothing_before_it_is_connected_and_masks_what_it_polls() {
    let server = Bench::server(shape(4));
    assert_eq!((server.to_server.head(&server.memory), server.to_client.head(&server.memory)), (0, 0));
    assert_eq!(server.to_server.flags(&server.memory), 1, "the server receives from this ring and polls it");
    assert_eq!(server.to_client.flags(&server.memory), 0, "the client's to set");
    let client = Bench::client(shape(4));
    assert_eq!((client.to_server.head(&client.memory), client.to_client.head(&client.memory)), (0, 16));
    assert_eq!(client.to_server.flags(&client.memory), 0);
    assert_eq!(client.to_client.flags(&client.memory), 1);
}

#[test]
fn a_prefilled_ring_is_sent_again_and_again() {
    let Pair { mut client, mut server } = pair(shape(3)).expect("pair");
    let frames: Vec<Vec<u8>> = (0..3).map(|n| pattern(n, 100 + n as usize)).collect();
    let views: Vec<Lent<'_>> = frames.iter().map(|frame| Lent::from(frame.as_slice())).collect();
    client.tx[0].prefill(&views).unwrap();
    assert_eq!(server.rx[0].backlog(), 0);
    for _ in 0..20_000 {
        assert_eq!(client.tx[0].republish(100), 8);
        let got = receive_all(&mut server.rx[0]).unwrap();
        assert_eq!(got.len(), 8);
        assert!(got.iter().zip(frames.iter().cycle()).all(|(got, sent)| got == sent));
    }
}

#[test]
fn several_rings_each_way_do_not_mix() {
    let shape = ClientShape { to_server: 3, to_client: 2, ..shape(4) };
    let Pair { mut client, mut server } = pair(shape).expect("pair");
    for (number, tx) in client.tx.iter_mut().enumerate() {
        send(tx, &pattern(number as u64, 100));
    }
    for (number, tx) in server.tx.iter_mut().enumerate() {
        send(tx, &pattern(10 + number as u64, 100));
    }
    for (number, rx) in server.rx.iter_mut().enumerate() {
        assert_eq!(receive_all(rx).unwrap(), [pattern(number as u64, 100)]);
    }
    for (number, rx) in client.rx.iter_mut().enumerate() {
        assert_eq!(receive_all(rx).unwrap(), [pattern(10 + number as u64, 100)]);
    }
}

#[test]
fn two_threads_pass_frames_in_order() {
    let Pair { client, server } = pair(shape(6)).expect("pair");
    const COUNT: u64 = 300_000;
    let mut tx = client.tx.into_iter().next().unwrap();
    let mut rx = server.rx.into_iter().next().unwrap();
    let sender = std::thread::spawn(move || {
        let mut sent = 0;
        while sent < COUNT {
            match tx.push(Lent::from(&sent.to_le_bytes()[..])) {
                Ok(()) => sent += 1,
                Err(TxRefused::Full) => std::thread::yield_now(),
                Err(other) => panic!("{other}"),
            }
            if sent % 17 == 0 || sent == COUNT {
                tx.publish();
            }
        }
        tx
    });
    let mut expected = 0u64;
    while expected < COUNT {
        let got = receive_all(&mut rx).unwrap();
        if got.is_empty() {
            // The sender publishes every 17th; a full ring of 64 unpublished would be stuck, and cannot happen.
            std::thread::yield_now();
        }
        for frame in got {
            assert_eq!(frame, expected.to_le_bytes());
            expected += 1;
        }
    }
    sender.join().expect("sender");
}
