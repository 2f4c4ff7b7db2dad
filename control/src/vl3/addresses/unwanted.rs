//! Networks that a client has already (`excluded_prefixes` of its Request): it gets no address of them.

use std::net::IpAddr;

use ipnet::IpNet;
use tonic::Status;
use vwire_proto::nsm::connectioncontext::IpContext;

use crate::endpoint::ipam::Excluded;

/// Most of them.
const MAX: usize = 1024;

/// What a Request excludes.
pub(super) struct Unwanted {
    prefixes: Vec<IpNet>,
    ranges: Excluded,
}

impl Unwanted {
    /// Of a Request's context.
    ///
    /// # Errors
    /// INVALID_ARGUMENT with the one that can't be read.
    pub fn of(context: &IpContext) -> Result<Self, Status> {
        let wrong = |what: String| {
            Err(Status::invalid_argument(format!("context.ip_context.excluded_prefixes: {what}")))
        };
        let texts = &context.excluded_prefixes;
        if texts.len() > MAX {
            return wrong(format!("{} prefixes; at most {MAX} are taken", texts.len()));
        }
        let mut prefixes = Vec::with_capacity(texts.len());
        for text in texts {
            match text.parse::<IpNet>() {
                Ok(prefix) => prefixes.push(prefix.trunc()),
                Err(_) => {
                    let shown: String = text.chars().take(64).collect();
                    return wrong(format!("{shown:?} is not address/length"));
                }
            }
        }
        let ranges = Excluded::new(&prefixes);
        Ok(Self { prefixes, ranges })
    }

    pub fn is_empty(&self) -> bool {
        self.prefixes.is_empty()
    }

    pub fn prefixes(&self) -> impl Iterator<Item = &IpNet> {
        self.prefixes.iter()
    }

    pub fn covers(&self, address: IpAddr) -> bool {
        self.ranges.covers(address)
    }

    /// Whether a client that excludes these can be with an endpoint of this prefix: its address must be another network's nowhere.
    ///
    /// # Errors
    /// FAILED_PRECONDITION, naming both.
    pub fn check(&self, prefix: IpNet) -> Result<(), Status> {
        let own = prefix.network();
        match self.prefixes.iter().find(|unwanted| unwanted.contains(&own)) {
            Some(unwanted) => Err(Status::failed_precondition(format!(
                "context.ip_context.excluded_prefixes: {unwanted} overlaps {prefix}, the prefix of this endpoint, and covers its \
                 address {own}: the client has that network already; give the virtual network another one (NSM_PREFIX of its IPAM)"
            ))),
            None => Ok(()),
        }
    }

    /// For an error about addresses.
    pub fn told(&self) -> String {
        if self.is_empty() {
            return String::new();
        }
        format!(", nor one that the client's excluded_prefixes ({}) leave", self.prefixes.len())
    }
}
