//! The `path` metadata of registry calls: read or refused; what was read is written and read again the same, and going on by one
//! hop changes nothing but our two segments.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vwire_control::registry::path::RegistryPath;

fuzz_target!(|data: &[u8]| {
    let Ok(path) = RegistryPath::parse(data) else { return };
    let again = RegistryPath::parse(path.to_json().as_bytes());
    // JSON may grow when it is escaped anew, past the limit; nothing else may go wrong.
    match again {
        Ok(again) => assert_eq!(again, path),
        Err(error) => assert!(error.message().contains("at most"), "{error}"),
    }
    let mut next = path.clone();
    let Ok(callers) = next.advance("caller".into(), "ours".into()) else { return };
    assert_eq!(next.index, callers + 1);
    assert!(next.tokens.len() >= 2 && next.tokens.len() <= path.tokens.len().max(1) + 1);
    for (index, token) in path.tokens.iter().enumerate() {
        let ours = index == callers as usize || index == callers as usize + 1;
        assert!(ours || next.tokens[index] == *token);
    }
});
