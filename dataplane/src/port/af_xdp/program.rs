//! The XDP program: which frames of an interface go to our sockets. What it does not redirect goes on to the kernel untouched.

use super::asm::{Alu, Asm, Code, If, Reg, Size};

/// The XSKMAP: queue → socket.
pub const SOCKETS: &str = "vwire_sockets";
/// The hash map of [`super::steering::Key`]s whose datagrams are ours.
pub const STEERING: &str = "vwire_steering";

/// `enum xdp_action`.
const XDP_PASS: i32 = 2;
/// `enum bpf_func_id`.
const MAP_LOOKUP_ELEM: i32 = 1;
const REDIRECT_MAP: i32 = 51;

const ETHERNET: i32 = 14;
const IPV4_MIN: i32 = 20;
const IPV6: i32 = 40;
const UDP: i32 = 8;
const PROTOCOL_UDP: i32 = 17;

/// Where the program's argument, `struct xdp_md`, has its fields. An interpreter outside the kernel needs others.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    /// Width of the first two fields.
    pub pointer: Size,
    /// Offset of the frame's first byte.
    pub data: i16,
    /// Offset of the byte after its last.
    pub end: i16,
    /// Offset of the number of the receive queue.
    pub queue: i16,
}

/// The kernel's.
pub const XDP_MD: Context = Context { pointer: Size::Word, data: 0, end: 4, queue: 16 };

/// Every frame goes to the socket of its queue; where there is none, to the kernel.
pub fn all(context: Context) -> Code {
    let mut asm = Asm::default();
    asm.alu(Alu::Move, Reg::R6, Reg::R1);
    redirect(&mut asm, context);
    asm.finish()
}

/// UDP datagrams to an address and port in the map go to the socket of their queue; everything else, also fragments, IPv6 with
/// extension headers and frames with a VLAN tag, goes to the kernel.
pub fn datagrams(context: Context) -> Code {
    let mut asm = Asm::default();
    // R6: the argument; R7: where we are in the frame; R8: its end.
    asm.alu(Alu::Move, Reg::R6, Reg::R1);
    asm.load(context.pointer, Reg::R7, Reg::R6, context.data);
    asm.load(context.pointer, Reg::R8, Reg::R6, context.end);
    // The shortest frame of interest.
    bounds(&mut asm, ETHERNET + IPV4_MIN + UDP);
    // The key on the stack, of 20 bytes: address (16), port (2), zero (2). Spread over three zeroed words.
    asm.store(Size::Double, Reg::R10, KEY, 0);
    asm.store(Size::Double, Reg::R10, KEY + 8, 0);
    asm.store(Size::Word, Reg::R10, KEY_PORT, 0);
    // Which EtherType?
    asm.load(Size::Half, Reg::R3, Reg::R7, 12);
    asm.jump_if(If::Eq, Reg::R3, network_order(0x86dd), "ipv6");
    asm.jump_if(If::Ne, Reg::R3, network_order(0x0800), "pass");
    ipv4(&mut asm);
    asm.jump("udp");
    asm.label("ipv6");
    ipv6(&mut asm);
    asm.label("udp");
    // R7 is at the UDP header, which with IPv4 options may lie beyond what was checked.
    bounds(&mut asm, UDP);
    asm.load(Size::Half, Reg::R4, Reg::R7, 2);
    asm.store(Size::Half, Reg::R10, KEY_PORT, Reg::R4);
    // Is it in the map?
    asm.load_map(Reg::R1, STEERING);
    asm.alu(Alu::Move, Reg::R2, Reg::R10);
    asm.alu(Alu::Add, Reg::R2, i32::from(KEY));
    asm.call(MAP_LOOKUP_ELEM);
    asm.jump_if(If::Eq, Reg::R0, 0, "pass");
    redirect(&mut asm, context);
    asm.label("pass");
    asm.alu(Alu::Move, Reg::R0, XDP_PASS);
    asm.exit();
    asm.finish()
}

/// The key's place below the stack's top.
const KEY: i16 = -24;
const KEY_PORT: i16 = KEY + 16;

/// Passes frames that have fewer than `len` bytes from R7 on. The verifier wants to see exactly this before it lets us read them.
fn bounds(asm: &mut Asm, len: i32) {
    asm.alu(Alu::Move, Reg::R2, Reg::R7);
    asm.alu(Alu::Add, Reg::R2, len);
    asm.jump_if(If::Gt, Reg::R2, Reg::R8, "pass");
}

/// Puts the destination of an IPv4 header into the key as ::ffff:a.b.c.d, and R7 behind the header.
fn ipv4(asm: &mut Asm) {
    let at = ETHERNET as i16;
    // Version 4, and at least five words of header.
    asm.load(Size::Byte, Reg::R3, Reg::R7, at);
    asm.alu(Alu::Move, Reg::R4, Reg::R3);
    asm.alu(Alu::ShiftRight, Reg::R4, 4);
    asm.jump_if(If::Ne, Reg::R4, 4, "pass");
    asm.alu(Alu::And, Reg::R3, 15);
    asm.alu(Alu::ShiftLeft, Reg::R3, 2);
    asm.jump_if(If::Lt, Reg::R3, IPV4_MIN, "pass");
    // No fragment: neither "more fragments" nor an offset. The kernel joins them.
    asm.load(Size::Half, Reg::R4, Reg::R7, at + 6);
    asm.alu(Alu::And, Reg::R4, network_order(0x3fff));
    asm.jump_if(If::Ne, Reg::R4, 0, "pass");
    asm.load(Size::Byte, Reg::R4, Reg::R7, at + 9);
    asm.jump_if(If::Ne, Reg::R4, PROTOCOL_UDP, "pass");
    asm.store(Size::Half, Reg::R10, KEY + 10, 0xffff);
    asm.load(Size::Word, Reg::R4, Reg::R7, at + 16);
    asm.store(Size::Word, Reg::R10, KEY + 12, Reg::R4);
    asm.alu(Alu::Add, Reg::R7, ETHERNET);
    asm.alu(Alu::Add, Reg::R7, Reg::R3);
}

/// Puts the destination of an IPv6 header into the key, and R7 behind the header.
fn ipv6(asm: &mut Asm) {
    let at = ETHERNET as i16;
    bounds(asm, ETHERNET + IPV6 + UDP);
    asm.load(Size::Byte, Reg::R4, Reg::R7, at);
    asm.alu(Alu::ShiftRight, Reg::R4, 4);
    asm.jump_if(If::Ne, Reg::R4, 6, "pass");
    asm.load(Size::Byte, Reg::R4, Reg::R7, at + 6);
    asm.jump_if(If::Ne, Reg::R4, PROTOCOL_UDP, "pass");
    for word in 0..4 {
        asm.load(Size::Word, Reg::R4, Reg::R7, at + 24 + 4 * word);
        asm.store(Size::Word, Reg::R10, KEY + 4 * word, Reg::R4);
    }
    asm.alu(Alu::Add, Reg::R7, ETHERNET + IPV6);
}

/// `return redirect_map(SOCKETS, queue, XDP_PASS)`: the last argument is what happens where the queue has no socket (Linux 5.3).
fn redirect(asm: &mut Asm, context: Context) {
    asm.load(Size::Word, Reg::R2, Reg::R6, context.queue);
    asm.load_map(Reg::R1, SOCKETS);
    asm.alu(Alu::Move, Reg::R3, XDP_PASS);
    asm.call(REDIRECT_MAP);
    asm.exit();
}

/// What a load of two bytes gives for a number that is on the wire.
fn network_order(number: u16) -> i32 {
    i32::from(number.to_be())
}

#[cfg(test)]
mod tests;
