//! A configuration file of any bytes: taken, or refused in one line that begins with its name.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use vwire_dataplane::config::Config;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Err(error) = Config::parse(Path::new("f.toml"), text) {
        let said = error.to_string();
        assert!(said.starts_with("f.toml"), "{said}");
        assert!(!said.contains('\n'), "{said}");
    }
});
