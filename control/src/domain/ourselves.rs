//! The URLs by which a domain's nsmgr-proxy is known.

use std::sync::Arc;

use super::AddressMap;

/// What leads back to us.
#[derive(Clone)]
pub struct Ourselves {
    url: String,
    addresses: Arc<AddressMap>,
    /// What our endpoints have elsewhere, if it is told (`VWIRE_NSMRS_ENDPOINT_URL`).
    told: Option<String>,
}

impl Ourselves {
    /// `url` is where our domain reaches us; `told` is what else other domains were told.
    pub fn new(url: &str, addresses: Arc<AddressMap>, told: Option<String>) -> Self {
        Self { url: url.to_owned(), addresses, told }
    }

    /// Where our domain reaches us.
    pub fn inside(&self) -> &str {
        &self.url
    }

    /// Where other domains reach us.
    pub fn outside(&self) -> String {
        self.addresses.url_outward(&self.url)
    }

    /// A URL of ours or of others, as it is dialled from here.
    pub fn outward(&self, url: &str) -> String {
        self.addresses.url_outward(url)
    }

    /// True for a URL that leads back to us.
    pub fn is(&self, url: &str) -> bool {
        url == self.url || self.told.as_deref() == Some(url) || url == self.outside()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_leads_back_is_us() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("map");
        std::fs::write(&file, "10.0.0.1: 192.0.2.1\n").unwrap();
        let map = Arc::new(AddressMap::new(&file));
        let us = Ourselves::new("tcp://10.0.0.1:5004", map, Some("tcp://door.example.com:5004".into()));
        for url in ["tcp://10.0.0.1:5004", "tcp://192.0.2.1:5004", "tcp://door.example.com:5004"] {
            assert!(us.is(url), "{url}");
        }
        assert!(!us.is("tcp://192.0.2.1:5005") && !us.is("tcp://192.0.2.2:5004"));
    }
}
