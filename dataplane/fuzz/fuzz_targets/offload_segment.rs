//! Whatever an offload says of whatever frame, it is refused, or both ways to cut give the same frames, which hold every byte of
//! the payload once and in order.
#![no_main]

use libfuzzer_sys::fuzz_target;
use memif::Lent;
use vwire_dataplane::burst::{Burst, Gso, Offload};
use vwire_dataplane::offload::segment::Segmenter;
use vwire_dataplane::offload::{complete_checksum, each_plain};
use vwire_dataplane::port::PortIndex;

/// The input begins with the offload (10 bytes), how the frame is scattered (1), and what a header looks like (1).
const PROLOGUE: usize = 12;

fn offload(bytes: &[u8]) -> Offload {
    let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    Offload {
        needs_csum: bytes[0] & 1 == 1,
        gso: [Gso::None, Gso::Tcp4, Gso::Tcp6, Gso::Udp][usize::from(bytes[1] & 3)],
        hdr_len: word(2),
        gso_size: word(4),
        csum_start: word(6),
        csum_offset: word(8),
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((prologue, frame)) = bytes.split_at_checked(PROLOGUE) else { return };
    if frame.is_empty() {
        return;
    }
    let offload = offload(prologue);
    let (first, second) = frame.split_at(usize::from(prologue[10]) % frame.len());
    let views = [Lent::from(first), Lent::from(second)];
    let mut burst = Burst::new(PortIndex(0));
    assert!(burst.push_with(&views, Some(offload)));
    let (_, frames) = burst.runs().next().expect("one frame");
    let mut viewed: Vec<Vec<u8>> = Vec::new();
    let each = each_plain(&frames, &frames.as_slice()[0], |views| {
        viewed.push(views.iter().flat_map(Lent::to_vec).collect());
        true
    });
    let Ok(mut segmenter) = Segmenter::new(views[0], &views[1..], &offload) else {
        assert!(each.is_err() || offload == Offload::default());
        return;
    };
    assert_eq!(each, Ok(viewed.len()));
    let mut written = Vec::new();
    let mut buffer = vec![0; 1 << 17];
    while let Some(len) = segmenter.write_next(&mut buffer) {
        written.push(buffer[..len].to_vec());
    }
    assert_eq!(written, viewed);
    if offload.gso == Gso::None {
        let mut completed = frame.to_vec();
        assert_eq!(complete_checksum(&mut completed, &offload), Ok(()));
        assert_eq!(written, [completed]);
    } else {
        let header = written[0].len() - usize::from(offload.gso_size).min(written[0].len());
        let payload: usize = written.iter().map(|segment| segment.len()).sum();
        assert!(payload >= frame.len() && header < frame.len());
        let last = &written[written.len() - 1];
        assert_eq!(last.last(), frame.last(), "the payload ends where the frame does");
    }
});
