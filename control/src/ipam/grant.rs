//! What an endpoint may assign addresses from.

use ipnet::IpNet;
use vwire_proto::nsm::ipam::PrefixResponse;

/// A prefix, and what of it must be left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The prefix; no bit behind its length is set. Its first address is the endpoint's own.
    pub prefix: IpNet,
    /// No address of these may be assigned. They need not lie in the prefix.
    pub excluded: Vec<IpNet>,
}

/// A server's answer that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: \"{value}\" is no prefix")]
pub struct BadGrant {
    field: &'static str,
    value: String,
}

impl Grant {
    /// A prefix of which nothing is excluded; bits behind its length count as 0.
    pub fn of(prefix: IpNet) -> Self {
        Self { prefix: prefix.trunc(), excluded: Vec::new() }
    }

    /// Reads a server's answer. Go's server may answer with bits behind the length: they count as 0.
    ///
    /// # Errors
    /// [`BadGrant`] with the field that is no prefix.
    pub fn read(answer: &PrefixResponse) -> Result<Self, BadGrant> {
        let read = |field, value: &String| {
            let prefix: Result<IpNet, _> = value.parse();
            prefix.map(|prefix| prefix.trunc()).map_err(|_| BadGrant { field, value: value.clone() })
        };
        let excluded = answer.exclude_prefixes.iter().map(|value| read("exclude_prefixes", value));
        Ok(Self { prefix: read("prefix", &answer.prefix)?, excluded: excluded.collect::<Result<_, _>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn answers_are_read_and_bad_ones_named() {
        let answer = |prefix: &str, excluded: &[&str]| PrefixResponse {
            prefix: prefix.into(),
            exclude_prefixes: excluded.iter().map(|&text| text.into()).collect(),
        };
        let read = Grant::read(&answer("172.16.0.4/24", &["172.16.0.0/30", "fd00::1/128"])).unwrap();
        assert_eq!(read.prefix, net("172.16.0.0/24"), "as Go's server says it");
        assert_eq!(read.excluded, [net("172.16.0.0/30"), net("fd00::1/128")]);
        assert_eq!(Grant::read(&answer("fd00::/64", &[])), Ok(Grant::of(net("fd00::/64"))));
        for (prefix, excluded, told) in [
            ("", &[][..], "prefix: \"\""),
            ("172.16.0.0", &[], "prefix: \"172.16.0.0\""),
            ("172.16.0.0/24", &["10.0.0.0/8", "all"], "exclude_prefixes: \"all\""),
        ] {
            let error = Grant::read(&answer(prefix, excluded)).unwrap_err().to_string();
            assert!(error.starts_with(told), "{error}");
        }
    }
}
