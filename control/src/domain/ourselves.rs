//! The URLs by which a domain's nsmgr-proxy is known.

use std::sync::Arc;

use super::AddressMap;

/// What leads back to us.
#[derive(Clone)]
pub struct Ourselves {
    url: String,
    addresses: Arc<AddressMap>,
    /// Whether our domain registers what it has in a registry of several domains (`NSMRS_ADDRESS`), under which other URL
    /// (`VWIRE_NSMRS_ENDPOINT_URL`), and the names of our own domain (`VWIRE_DOMAINS`).
    forwarded: Option<(Option<String>, Vec<String>)>,
}

impl Ourselves {
    /// `url` is where our domain reaches us.
    pub fn new(url: &str, addresses: Arc<AddressMap>) -> Self {
        Self { url: url.to_owned(), addresses, forwarded: None }
    }

    /// Our domain's endpoints are in a registry of several domains, too, `told` being their URL there if it is not ours. `domains` are
    /// the names of our own.
    #[must_use]
    pub fn forwarding(mut self, told: Option<String>, domains: Vec<String>) -> Self {
        self.forwarded = Some((told, domains));
        self
    }

    /// Where our domain reaches us.
    pub fn inside(&self) -> &str {
        &self.url
    }

    /// Where other domains reach us.
    pub fn outside(&self) -> String {
        self.outward(&self.url)
    }

    /// A URL of ours or of others, as it is dialled from here.
    pub fn outward(&self, url: &str) -> String {
        self.addresses.url_outward(url)
    }

    /// True for an endpoint of ours that another domain's registry has from us, by its name and URL there. Not for one of our own
    /// domain by the name that others have for it: that is a loop.
    pub fn have_forwarded(&self, name: &str, url: &str) -> bool {
        let Some((told, domains)) = &self.forwarded else { return false };
        let own =
            super::domain(name).is_some_and(|of| domains.iter().any(|own| own.eq_ignore_ascii_case(of)));
        !own && (url == self.url || told.as_deref() == Some(url) || url == self.outside())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_have_from_us_is_ours_by_each_of_our_urls() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("map");
        std::fs::write(&file, "10.0.0.1: 192.0.2.1\n").unwrap();
        let us = Ourselves::new("tcp://10.0.0.1:5004", Arc::new(AddressMap::new(&file)));
        assert!(!us.have_forwarded("nse@nsmrs.test", "tcp://10.0.0.1:5004"), "we forward nothing");
        let us = us.forwarding(Some("tcp://door.example.com:5004".into()), vec!["a.test".into()]);
        for url in ["tcp://10.0.0.1:5004", "tcp://192.0.2.1:5004", "tcp://door.example.com:5004"] {
            assert!(us.have_forwarded("nse@nsmrs.test", url), "{url}");
        }
        assert!(!us.have_forwarded("nse@nsmrs.test", "tcp://192.0.2.1:5005"));
        assert!(!us.have_forwarded("nse@A.test", "tcp://10.0.0.1:5004"), "a loop");
    }
}
