//! The XDP program as an ELF object, which is what the loader reads.

use aya::maps::MapType;
use object::write::{Object, Relocation, StandardSegment, Symbol, SymbolId, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, RelocationFlags, SectionKind, SymbolFlags, SymbolKind,
    SymbolScope, elf,
};

use super::asm::Code;

/// The program's name in the object and in the kernel's listings.
pub const PROGRAM: &str = "vwire_af_xdp";

/// A map that the program refers to.
#[derive(Debug, Clone, Copy)]
pub struct MapDefinition {
    /// As in [`Code::maps`].
    pub name: &'static str,
    /// XSKMAP, hash…
    pub kind: MapType,
    /// Bytes of a key.
    pub key: u32,
    /// Bytes of a value.
    pub value: u32,
    /// Most entries.
    pub entries: u32,
}

impl MapDefinition {
    /// `struct bpf_map_def`, of which `flags` is zero.
    fn encode(&self) -> Vec<u8> {
        let words = [self.kind as u32, self.key, self.value, self.entries, 0];
        words.into_iter().flat_map(u32::to_ne_bytes).collect()
    }
}

/// An object with one XDP program, which says whether it takes frames in several buffers, and its maps.
///
/// # Errors
/// The writer's; the programs are fixed, and their tests write all of them.
pub fn write(code: &Code, maps: &[MapDefinition], fragments: bool) -> Result<Vec<u8>, object::write::Error> {
    let order = if cfg!(target_endian = "big") { Endianness::Big } else { Endianness::Little };
    let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, order);
    let definitions = object.add_section(Vec::new(), b"maps".to_vec(), SectionKind::Data);
    let known: Vec<(&str, SymbolId)> = maps
        .iter()
        .map(|map| {
            let bytes = map.encode();
            let symbol = symbol(map.name, SymbolKind::Data, bytes.len(), definitions);
            let symbol = object.add_symbol(symbol);
            object.add_symbol_data(symbol, definitions, &bytes, 4);
            (map.name, symbol)
        })
        .collect();
    let license = object.add_section(Vec::new(), b"license".to_vec(), SectionKind::Data);
    object.append_section_data(license, b"Apache-2.0\0", 1);
    let name: &[u8] = if fragments { b"xdp.frags" } else { b"xdp" };
    let segment = object.segment_name(StandardSegment::Text).to_vec();
    let text = object.add_section(segment, name.to_vec(), SectionKind::Text);
    let program = object.add_symbol(symbol(PROGRAM, SymbolKind::Text, code.bytes.len(), text));
    object.add_symbol_data(program, text, &code.bytes, 8);
    for (offset, name) in &code.maps {
        let Some((_, symbol)) = known.iter().find(|(known, _)| known == name) else { continue };
        let flags = RelocationFlags::Elf { r_type: elf::R_BPF_64_64 };
        object
            .add_relocation(text, Relocation { offset: *offset as u64, symbol: *symbol, addend: 0, flags })?;
    }
    object.write()
}

fn symbol(name: &str, kind: SymbolKind, size: usize, section: object::write::SectionId) -> Symbol {
    Symbol {
        name: name.as_bytes().to_vec(),
        value: 0,
        size: size as u64,
        kind,
        scope: SymbolScope::Linkage,
        weak: false,
        section: SymbolSection::Section(section),
        flags: SymbolFlags::None,
    }
}
