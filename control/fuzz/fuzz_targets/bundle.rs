//! Other trust domains' bundles, and the files that say where they are published: whatever is in the file is read or refused; what is
//! read can be written and read again as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vwire_control::identity::issuer::{Endpoint, bundle};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(endpoint) = Endpoint::parse(bytes) {
        assert_eq!(Endpoint::parse(endpoint.text().as_bytes()), Ok(endpoint));
    }
    let Ok(authorities) = bundle::parse(bytes) else { return };
    assert!(!authorities.is_empty());
    let _ = bundle::domain(&authorities);
    assert_eq!(bundle::fingerprints(&authorities).len(), authorities.len());
    assert_eq!(bundle::parse(bundle::to_pem(&authorities).as_bytes()).expect("what we wrote"), authorities);
    if let Ok(json) = bundle::to_json(&authorities, 7, 300) {
        let published = bundle::published(json.as_bytes()).expect("what we wrote");
        assert_eq!((published.sequence, published.refresh_hint), (Some(7), Some(300)));
        assert_eq!(published.authorities, authorities);
    }
});
