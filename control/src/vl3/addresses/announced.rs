//! Whether another endpoint may have what it says it has.

use std::net::IpAddr;

use ipnet::IpNet;
use tonic::Status;

use crate::ipam::Grant;
use crate::prefixes::overlap;

/// Checks what another endpoint, behind `port`, announces: that it is of its own, and nobody else's. Each prefix must begin with one of the
/// endpoint's own addresses `sources`, as every prefix of this network does, and must not overlap what we were granted (`own`) or what
/// leads to other ports (`taken`, of [`Router::routes`](crate::vl3::router::Router::routes)).
///
/// Of what we dial, `prefixes` are the answer's `src_routes` but for the way to the whole network (half of the bits), and `sources` its
/// `dst_ip_addrs`; of what dials us, the Request's `dst_routes` and `src_ip_addrs`.
///
/// # Errors
/// FAILED_PRECONDITION, naming both prefixes.
pub fn check(
    own: &[Grant],
    taken: &[(IpNet, String)],
    port: &str,
    sources: &[IpAddr],
    prefixes: &[IpNet],
) -> Result<(), Status> {
    for prefix in prefixes {
        let refused = |why: String| {
            Err(Status::failed_precondition(format!("the peer announces {prefix}, which is refused: {why}")))
        };
        if !sources.contains(&prefix.network()) {
            let own = sources.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return refused(format!(
                "a prefix of its own begins with its own address, and it has {}",
                if own.is_empty() { "none" } else { &own }
            ));
        }
        if let Some(overlap) = own.iter().find_map(|own| own.beside(*prefix).err()) {
            return refused(overlap.to_string());
        }
        let other = taken.iter().find(|(other, owner)| owner != port && overlap(other, prefix));
        if let Some((other, owner)) = other {
            return refused(format!("it overlaps {other}, which leads to {owner} already"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_peer_has_only_what_begins_with_its_address_and_is_nobody_elses() {
        let own = [Grant::of(net("172.16.1.0/24"))];
        let taken = [(net("172.16.1.5/32"), "client".to_owned()), (net("172.16.3.0/24"), "other".to_owned())];
        let source = |text: &str| text.parse::<IpAddr>().unwrap();
        let check = |port: &str, from: &str, prefixes: &[&str]| {
            let prefixes: Vec<_> = prefixes.iter().map(|prefix| net(prefix)).collect();
            check(&own, &taken, port, &[source(from)], &prefixes)
                .map_err(|status| status.message().to_owned())
        };
        check("peer", "172.16.2.0", &["172.16.2.0/32", "172.16.2.0/24"]).unwrap();
        check("other", "172.16.3.0", &["172.16.3.0/24"]).unwrap();
        for (from, prefixes, told) in [
            ("172.16.2.0", &["172.16.2.0/24", "172.16.4.0/24"][..], "announces 172.16.4.0/24"),
            ("172.16.2.0", &["0.0.0.0/0"], "begins with its own address, and it has 172.16.2.0"),
            ("172.16.1.0", &["172.16.1.0/24"], "overlaps 172.16.1.0/24"),
            ("172.16.1.5", &["172.16.1.5/32"], "overlaps 172.16.1.0/24"),
            ("172.16.0.0", &["172.16.0.0/16"], "overlaps 172.16.1.0/24"),
            ("172.16.3.0", &["172.16.3.0/25"], "overlaps 172.16.3.0/24, which leads to other already"),
        ] {
            let refused = check("peer", from, prefixes).unwrap_err();
            assert!(refused.contains(told), "{refused}");
        }
    }
}
