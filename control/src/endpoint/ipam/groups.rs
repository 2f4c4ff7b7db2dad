//! Groups of prefixes, as an endpoint is configured with them.

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;

/// `NSM_CIDR_PREFIX`: groups of prefixes. Each connection gets one pair of addresses from each group, from the group's first prefix
/// that has two left. Written `172.16.0.0/16`, or with several `[172.16.0.0/16, 172.17.0.0/16], fd00::/64`: a prefix outside
/// brackets is a group of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups(pub Vec<Vec<IpNet>>);

/// Why a text is no list of groups.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadGroups {
    /// A part that is no prefix.
    #[error("\"{0}\" is not a prefix; write address/length such as 172.16.0.0/16 or fd00::/64")]
    Prefix(String),
    /// Brackets without partner, or within each other.
    #[error(
        "the brackets of \"{0}\" do not match; write a group as [prefix, prefix], groups with commas between"
    )]
    Brackets(String),
    /// Nothing to assign from.
    #[error("no prefix is given; write at least one such as 172.16.0.0/16")]
    Empty,
    /// The same address would be assigned twice.
    #[error("{0} and {1} overlap: an address would be assigned twice")]
    Overlap(IpNet, IpNet),
}

impl FromStr for Groups {
    type Err = BadGroups;

    fn from_str(text: &str) -> Result<Self, BadGroups> {
        let brackets = || BadGroups::Brackets(text.to_owned());
        let mut groups = Vec::new();
        let mut rest = text.trim();
        while !rest.is_empty() {
            if let Some(inside) = rest.strip_prefix('[') {
                let (group, after) = inside.split_once(']').ok_or_else(brackets)?;
                if group.contains('[') {
                    return Err(brackets());
                }
                groups.push(group.split(',').map(prefix).collect::<Result<Vec<_>, _>>()?);
                rest = after.trim_start();
                if !rest.is_empty() {
                    rest = rest.strip_prefix(',').ok_or_else(brackets)?.trim_start();
                }
            } else {
                let (one, after) = rest.split_once(',').unwrap_or((rest, ""));
                if one.contains([']', '[']) {
                    return Err(brackets());
                }
                groups.push(vec![prefix(one)?]);
                rest = after.trim_start();
            }
        }
        if groups.is_empty() {
            return Err(BadGroups::Empty);
        }
        disjoint(&groups)?;
        Ok(Self(groups))
    }
}

fn prefix(text: &str) -> Result<IpNet, BadGroups> {
    let text = text.trim();
    text.parse().map(|prefix: IpNet| prefix.trunc()).map_err(|_| BadGroups::Prefix(text.to_owned()))
}

fn disjoint(groups: &[Vec<IpNet>]) -> Result<(), BadGroups> {
    let all: Vec<&IpNet> = groups.iter().flatten().collect();
    for (i, one) in all.iter().enumerate() {
        if let Some(other) = all[i + 1..].iter().find(|other| one.contains(**other) || other.contains(*one)) {
            return Err(BadGroups::Overlap(**one, **other));
        }
    }
    Ok(())
}

impl fmt::Display for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, group) in self.0.iter().enumerate() {
            let prefixes: Vec<String> = group.iter().map(IpNet::to_string).collect();
            let comma = if i == 0 { "" } else { "," };
            match prefixes.as_slice() {
                [one] => write!(f, "{comma}{one}")?,
                several => write!(f, "{comma}[{}]", several.join(","))?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read_as_the_go_endpoint_reads_them() {
        for (text, shown) in [
            ("169.254.0.0/16", "169.254.0.0/16"),
            ("172.16.0.0/16,fd00::/64", "172.16.0.0/16,fd00::/64"),
            ("[172.16.0.0/16, 172.17.0.0/16], fd00::/64", "[172.16.0.0/16,172.17.0.0/16],fd00::/64"),
            (" [ 10.0.0.1/24 ] ", "10.0.0.0/24"),
            ("fd00::/64,[10.0.0.0/24,10.0.1.0/24]", "fd00::/64,[10.0.0.0/24,10.0.1.0/24]"),
        ] {
            assert_eq!(text.parse::<Groups>().map(|g| g.to_string()), Ok(shown.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_can_not_be_meant_is_refused_with_its_part() {
        for (text, part) in [
            ("", "no prefix"),
            ("10.0.0.0", "10.0.0.0"),
            ("10.0.0.0/33", "10.0.0.0/33"),
            ("[10.0.0.0/24", "brackets"),
            ("10.0.0.0/24]", "brackets"),
            ("[[10.0.0.0/24]]", "brackets"),
            ("[10.0.0.0/24]10.0.1.0/24", "brackets"),
            ("[]", "not a prefix"),
            ("10.0.0.0/8,10.1.0.0/16", "overlap"),
        ] {
            let error = text.parse::<Groups>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
