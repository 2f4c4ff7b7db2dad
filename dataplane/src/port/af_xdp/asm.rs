//! An assembler for the few eBPF instructions that the XDP program is made of (RFC 9669), so that no compiler for them is needed.

use std::collections::HashMap;

/// A register. `R0` returns, `R1`–`R5` are arguments and lost in calls, `R6`–`R9` are kept, `R10` is the stack's top.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Reg {
    R0 = 0,
    R1 = 1,
    R2 = 2,
    R3 = 3,
    R4 = 4,
    R6 = 6,
    R7 = 7,
    R8 = 8,
    R10 = 10,
}

/// Width of a load or store, by its code in the instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Size {
    /// One byte.
    Byte = 0x10,
    /// Two bytes, in the machine's order.
    Half = 0x08,
    /// Four bytes.
    Word = 0x00,
    /// Eight bytes.
    Double = 0x18,
}

/// What is done to a 64-bit register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Alu {
    /// `dst += …`
    Add = 0x00,
    /// `dst &= …`
    And = 0x50,
    /// `dst <<= …`
    ShiftLeft = 0x60,
    /// `dst >>= …`, filling with zeroes.
    ShiftRight = 0x70,
    /// `dst = …`
    Move = 0xb0,
}

/// When a jump is taken; numbers are unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum If {
    /// Equal.
    Eq = 0x10,
    /// Greater.
    Gt = 0x20,
    /// Different.
    Ne = 0x50,
    /// Less.
    Lt = 0xa0,
}

/// The other operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// A register's.
    Reg(Reg),
    /// This one, extended by its sign.
    Number(i32),
}

impl From<Reg> for Value {
    fn from(reg: Reg) -> Self {
        Self::Reg(reg)
    }
}

impl From<i32> for Value {
    fn from(number: i32) -> Self {
        Self::Number(number)
    }
}

/// A program: its instructions of 8 bytes, and which of them name a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Code {
    /// The instructions.
    pub bytes: Vec<u8>,
    /// Offset of an instruction that loads a map, and the map's name. The loader fills in the map's descriptor.
    pub maps: Vec<(usize, &'static str)>,
}

/// Collects instructions.
#[derive(Debug, Default)]
pub struct Asm {
    bytes: Vec<u8>,
    maps: Vec<(usize, &'static str)>,
    jumps: Vec<(usize, &'static str)>,
    labels: HashMap<&'static str, usize>,
}

const LEN: usize = 8;
const CLASS_LOAD: u8 = 0x00;
const CLASS_LOAD_REG: u8 = 0x01;
const CLASS_STORE: u8 = 0x02;
const CLASS_STORE_REG: u8 = 0x03;
const CLASS_JUMP: u8 = 0x05;
const CLASS_ALU64: u8 = 0x07;
const MODE_IMM: u8 = 0x00;
const MODE_MEM: u8 = 0x60;
const SOURCE_REG: u8 = 0x08;
const JUMP_ALWAYS: u8 = 0x00;
const CALL: u8 = 0x80;
const EXIT: u8 = 0x90;

impl Asm {
    /// `dst = *(size *)(base + offset)`
    pub fn load(&mut self, size: Size, dst: Reg, base: Reg, offset: i16) {
        self.emit(CLASS_LOAD_REG | MODE_MEM | size as u8, dst as u8, base as u8, offset, 0);
    }

    /// `*(size *)(base + offset) = value`
    pub fn store(&mut self, size: Size, base: Reg, offset: i16, value: impl Into<Value>) {
        match value.into() {
            Value::Reg(reg) => {
                self.emit(CLASS_STORE_REG | MODE_MEM | size as u8, base as u8, reg as u8, offset, 0);
            }
            Value::Number(number) => {
                self.emit(CLASS_STORE | MODE_MEM | size as u8, base as u8, 0, offset, number)
            }
        }
    }

    /// `dst = dst op value`
    pub fn alu(&mut self, op: Alu, dst: Reg, value: impl Into<Value>) {
        self.operate(CLASS_ALU64 | op as u8, dst, value.into(), 0);
    }

    /// `if a condition b goto label`
    pub fn jump_if(&mut self, condition: If, a: Reg, b: impl Into<Value>, label: &'static str) {
        self.jumps.push((self.bytes.len(), label));
        self.operate(CLASS_JUMP | condition as u8, a, b.into(), 0);
    }

    /// `goto label`
    pub fn jump(&mut self, label: &'static str) {
        self.jumps.push((self.bytes.len(), label));
        self.emit(CLASS_JUMP | JUMP_ALWAYS, 0, 0, 0, 0);
    }

    /// `label:`
    pub fn label(&mut self, label: &'static str) {
        self.labels.insert(label, self.bytes.len());
    }

    /// `dst = &map`, two instructions long.
    pub fn load_map(&mut self, dst: Reg, map: &'static str) {
        self.maps.push((self.bytes.len(), map));
        self.emit(CLASS_LOAD | MODE_IMM | Size::Double as u8, dst as u8, 0, 0, 0);
        self.emit(0, 0, 0, 0, 0);
    }

    /// Calls one of the kernel's helpers, by its number in `enum bpf_func_id`.
    pub fn call(&mut self, helper: i32) {
        self.emit(CLASS_JUMP | CALL, 0, 0, 0, helper);
    }

    /// `return r0`
    pub fn exit(&mut self) {
        self.emit(CLASS_JUMP | EXIT, 0, 0, 0, 0);
    }

    /// The program with its jumps resolved.
    ///
    /// # Panics
    /// If a label is missing: the programs are fixed, and their tests assemble all of them.
    pub fn finish(mut self) -> Code {
        for (at, label) in self.jumps {
            let target = self.labels.get(label).unwrap_or_else(|| panic!("no label {label}"));
            let skip = (target / LEN) as i16 - (at / LEN) as i16 - 1;
            self.bytes[at + 2..at + 4].copy_from_slice(&skip.to_ne_bytes());
        }
        Code { bytes: self.bytes, maps: self.maps }
    }

    fn operate(&mut self, code: u8, dst: Reg, value: Value, offset: i16) {
        match value {
            Value::Reg(reg) => self.emit(code | SOURCE_REG, dst as u8, reg as u8, offset, 0),
            Value::Number(number) => self.emit(code, dst as u8, 0, offset, number),
        }
    }

    fn emit(&mut self, code: u8, dst: u8, src: u8, offset: i16, imm: i32) {
        let registers = if cfg!(target_endian = "big") { dst << 4 | src } else { src << 4 | dst };
        self.bytes.extend([code, registers]);
        self.bytes.extend(offset.to_ne_bytes());
        self.bytes.extend(imm.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_encoded_as_rfc_9669_says() {
        let mut asm = Asm::default();
        asm.label("start");
        asm.load(Size::Half, Reg::R3, Reg::R7, 12);
        asm.alu(Alu::Add, Reg::R2, Reg::R7);
        asm.jump_if(If::Gt, Reg::R2, Reg::R8, "end");
        asm.store(Size::Word, Reg::R10, -12, Reg::R4);
        asm.load_map(Reg::R1, "map");
        asm.jump("start");
        asm.label("end");
        asm.call(51);
        asm.exit();
        let code = asm.finish();
        assert_eq!(code.maps, [(32, "map")]);
        let expected: [[u8; 8]; 9] = [
            [0x69, 0x73, 12, 0, 0, 0, 0, 0],
            [0x0f, 0x72, 0, 0, 0, 0, 0, 0],
            [0x2d, 0x82, 4, 0, 0, 0, 0, 0],
            [0x63, 0x4a, 0xf4, 0xff, 0, 0, 0, 0],
            [0x18, 0x01, 0, 0, 0, 0, 0, 0],
            [0; 8],
            [0x05, 0, 0xf9, 0xff, 0, 0, 0, 0],
            [0x85, 0, 0, 0, 51, 0, 0, 0],
            [0x95, 0, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(code.bytes, expected.concat());
    }

    #[test]
    #[should_panic(expected = "no label nowhere")]
    fn a_jump_to_nowhere_does_not_assemble() {
        let mut asm = Asm::default();
        asm.jump("nowhere");
        asm.finish();
    }
}
