//! Other trust domains' bundles: whatever is in the file is read or refused; what is read can be written and read again as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vwire_control::identity::issuer::bundle;

fuzz_target!(|bytes: &[u8]| {
    let Ok(authorities) = bundle::parse(bytes) else { return };
    assert!(!authorities.is_empty());
    let _ = bundle::domain(&authorities);
    assert_eq!(bundle::fingerprints(&authorities).len(), authorities.len());
    assert_eq!(bundle::parse(bundle::to_pem(&authorities).as_bytes()).expect("what we wrote"), authorities);
    if let Ok(json) = bundle::to_json(&authorities) {
        assert_eq!(bundle::parse(json.as_bytes()).expect("what we wrote"), authorities);
    }
});
