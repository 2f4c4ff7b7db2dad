//! Captured frames as pcapng (draft-ietf-opsawg-pcapng): a section, one interface, then a packet block for
//! each frame with its direction, and why it was dropped as its comment. Lost frames are told in interface
//! statistics.

use crate::model::Mode;
use crate::worker::capture::{Direction, Record};

/// Block types (§4).
const SECTION_HEADER: u32 = 0x0A0D_0D0A;
const INTERFACE_DESCRIPTION: u32 = 1;
const INTERFACE_STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;
/// Says the byte order, which is this machine's.
const BYTE_ORDER: u32 = 0x1A2B_3C4D;
/// Link types (https://www.tcpdump.org/linktypes.html): Ethernet, and IP without a link header.
const LINKTYPE_ETHERNET: u16 = 1;
const LINKTYPE_RAW: u16 = 101;
/// Option codes, of any block and of the blocks above.
const COMMENT: u16 = 1;
const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_TSRESOL: u16 = 9;
const EPB_FLAGS: u16 = 2;
const ISB_IFDROP: u16 = 5;
/// The only interface.
const INTERFACE: u32 = 0;

/// A block under construction. Everything in it is padded to 32 bits.
struct Block(Vec<u8>);

impl Block {
    fn new(kind: u32) -> Self {
        // The length is filled in at the end.
        let mut block = Self(Vec::with_capacity(128));
        block.u32(kind).u32(0);
        block
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    /// A 64-bit time as the format has it: the high half first, whatever the byte order.
    fn time(&mut self, ns: u64) -> &mut Self {
        self.u32((ns >> 32) as u32).u32(ns as u32)
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn option(&mut self, code: u16, value: &[u8]) -> &mut Self {
        let value = &value[..value.len().min(usize::from(u16::MAX))];
        self.u16(code).u16(value.len() as u16).bytes(value)
    }

    fn end_options(&mut self) -> &mut Self {
        self.u32(0)
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        let length = (self.0.len() + 4) as u32;
        self.0[4..8].copy_from_slice(&length.to_ne_bytes());
        self.u32(length);
        out.append(&mut self.0);
    }
}

/// What a file begins with: its section and its interface, named as the port.
pub fn header(port: &str, mode: Mode, snap_len: u32) -> Vec<u8> {
    let mut out = Vec::new();
    let whole_file_unknown = [0xff; 8];
    Block::new(SECTION_HEADER)
        .u32(BYTE_ORDER)
        .u16(1)
        .u16(0)
        .bytes(&whole_file_unknown)
        .option(SHB_USERAPPL, concat!("vwire-dataplane ", env!("CARGO_PKG_VERSION")).as_bytes())
        .end_options()
        .finish(&mut out);
    let link_type = match mode {
        Mode::Ethernet => LINKTYPE_ETHERNET,
        Mode::Ip => LINKTYPE_RAW,
    };
    let nanoseconds = 9;
    Block::new(INTERFACE_DESCRIPTION)
        .u16(link_type)
        .u16(0)
        .u32(snap_len)
        .option(IF_NAME, port.as_bytes())
        .option(IF_TSRESOL, &[nanoseconds])
        .end_options()
        .finish(&mut out);
    out
}

/// Appends a frame.
pub fn packet(record: &Record, out: &mut Vec<u8>) {
    let mut block = Block::new(ENHANCED_PACKET);
    block
        .u32(INTERFACE)
        .time(record.time_ns)
        .u32(record.bytes.len() as u32)
        .u32(record.original_len as u32)
        .bytes(&record.bytes);
    let direction: u32 = match record.direction {
        Direction::In => 1,
        Direction::Out => 2,
    };
    block.option(EPB_FLAGS, &direction.to_ne_bytes());
    if let Some(reason) = record.dropped {
        block.option(COMMENT, format!("dropped: {}", reason.name()).as_bytes());
    }
    block.end_options().finish(out);
}

/// Appends how many frames the capture has missed since it began.
pub fn missed(frames: u64, time_ns: u64, out: &mut Vec<u8>) {
    Block::new(INTERFACE_STATISTICS)
        .u32(INTERFACE)
        .time(time_ns)
        .option(ISB_IFDROP, &frames.to_ne_bytes())
        .end_options()
        .finish(out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DropReason;
    use std::process::Command;

    fn record(i: u64, direction: Direction, dropped: Option<DropReason>) -> Record {
        // Broadcast ARP, a well-formed frame, with a varying tail.
        let mut frame = vec![0xff; 6];
        frame.extend_from_slice(&[
            2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1,
        ]);
        frame.extend_from_slice(&[0, 0, 0, 0, 0, 0, 10, 0, 0, 2]);
        frame.resize(60 + i as usize, 0);
        let time_ns = 1_700_000_000_123_456_000 + i;
        Record { time_ns, direction, dropped, original_len: frame.len(), bytes: frame }
    }

    fn tshark(file: &std::path::Path, args: &[&str]) -> String {
        let output =
            Command::new("tshark").arg("-r").arg(file).args(args).output().expect("tshark is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn tshark_reads_times_directions_and_drop_reasons() {
        let mut bytes = header("uplink", Mode::Ethernet, 65_600);
        packet(&record(0, Direction::In, None), &mut bytes);
        packet(&record(1, Direction::Out, Some(DropReason::TxFull)), &mut bytes);
        packet(&record(2, Direction::In, Some(DropReason::NoEgress)), &mut bytes);
        packet(&Record { original_len: 1500, ..record(3, Direction::Out, None) }, &mut bytes);
        missed(7, 1_700_000_000_123_456_009, &mut bytes);
        let file = tempfile::Builder::new().suffix(".pcapng").tempfile().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let fields =
            ["frame.time_epoch", "frame.interface_name", "frame.packet_flags_direction", "frame.comment"];
        let args: Vec<&str> =
            ["-T", "fields"].into_iter().chain(fields.iter().flat_map(|f| ["-e", f])).collect();
        let lines = tshark(file.path(), &args);
        let expected = "1700000000.123456000\tuplink\t0x00000001\t\n\
                        1700000000.123456001\tuplink\t0x00000002\tdropped: tx_full\n\
                        1700000000.123456002\tuplink\t0x00000001\tdropped: no_egress\n\
                        1700000000.123456003\tuplink\t0x00000002\t\n";
        assert_eq!(lines, expected);
        assert_eq!(tshark(file.path(), &["-Y", "_ws.malformed"]), "");
        let lengths = tshark(file.path(), &["-T", "fields", "-e", "frame.len", "-e", "frame.cap_len"]);
        assert_eq!(lengths, "60\t60\n61\t61\n62\t62\n1500\t63\n");
    }

    #[test]
    fn an_ip_port_is_captured_without_link_headers() {
        let mut bytes = header("tun", Mode::Ip, 100);
        let ping = [
            0x45, 0, 0, 28, 0, 1, 0x40, 0, 64, 1, 0x26, 0xdd, 10, 0, 0, 1, 10, 0, 0, 2, 8, 0, 0xf7, 0xfd, 0,
            1, 0, 1,
        ];
        packet(
            &Record { original_len: 28, bytes: ping.to_vec(), ..record(0, Direction::In, None) },
            &mut bytes,
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let seen =
            tshark(file.path(), &["-T", "fields", "-e", "_ws.col.Protocol", "-e", "ip.src", "-e", "ip.dst"]);
        assert_eq!(seen, "ICMP\t10.0.0.1\t10.0.0.2\n");
    }
}
