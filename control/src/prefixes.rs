//! Arithmetic on prefixes: addresses as numbers, and spans of them.

use std::net::IpAddr;

use ipnet::IpNet;

/// Numbers from the first to the last, both included.
pub(crate) type Span = (u128, u128);

/// An address as a number; those of both versions of IP begin at 0.
pub(crate) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => v6.into(),
    }
}

/// All addresses of a prefix.
pub(crate) fn span(prefix: &IpNet) -> Span {
    (number(prefix.network()), number(prefix.broadcast()))
}

/// Spans that neither overlap nor touch, in order.
pub(crate) fn merged(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_unstable();
    let mut merged: Vec<Span> = Vec::with_capacity(spans.len());
    for (first, last) in spans {
        match merged.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

/// True if two prefixes have an address in common: one contains the other then.
pub(crate) fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_that_touch_are_one_and_the_last_number_is_ordinary() {
        assert_eq!(
            merged(vec![(4, 5), (0, 1), (2, 2), (8, u128::MAX), (9, 9)]),
            [(0, 2), (4, 5), (8, u128::MAX)]
        );
        assert_eq!(span(&"10.0.0.5/30".parse().unwrap()), (0x0a00_0004, 0x0a00_0007));
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        assert!(
            overlap(&net("10.0.0.0/8"), &net("10.1.0.0/16"))
                && overlap(&net("10.1.0.0/16"), &net("10.0.0.0/8"))
        );
        assert!(
            !overlap(&net("10.0.0.0/8"), &net("::/0")) && !overlap(&net("10.0.0.0/9"), &net("10.128.0.0/9"))
        );
    }
}
