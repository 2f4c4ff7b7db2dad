use super::*;
use crate::model::{Op, PipeSpec, Xconnect};

fn name(text: &str) -> PortName {
    text.parse().unwrap()
}

fn pipe(port: &str) -> (PortName, PortSpec) {
    (name(port), PortSpec::Pipe(PipeSpec { pipe: name(port) }))
}

fn underlay(addresses: &[&str], gateways: &[&str]) -> Result<UnderlaySpec, Invalid> {
    UnderlaySpec {
        addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        gateways: gateways.iter().map(|text| text.parse().unwrap()).collect(),
        mtu: UnderlayMtu::default(),
        mac: None,
    }
    .checked()
}

fn tunnel(local: &str, remote: &str) -> PortSpec {
    let spec = VxlanSpec {
        vni: 42.try_into().unwrap(),
        local: local.parse().unwrap(),
        remote: remote.parse().unwrap(),
        port: Default::default(),
        underlay_mtu: None,
        mode: Mode::Ethernet,
        underlay: Some(name("nic")),
    };
    PortSpec::Vxlan(spec.checked().unwrap())
}

fn state(underlays: &[(&str, UnderlaySpec)], tunnels: &[(&str, PortSpec)]) -> Result<State, StateError> {
    let tunnels = tunnels.iter().map(|(port, spec)| (name(port), spec.clone()));
    let ports = [pipe("nic"), pipe("host")].into_iter().chain(tunnels);
    State::with_underlays(ports, underlays.iter().map(|(port, spec)| (name(port), spec.clone())), [])
}

fn refusal<T: std::fmt::Debug>(result: Result<T, StateError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn an_underlay_says_what_does_not_fit() {
    let why = |addresses: &[&str], gateways: &[&str]| underlay(addresses, gateways).unwrap_err().0;
    let v4 = "192.0.2.1/24";
    assert_eq!(why(&[], &[]), "addresses: 1 to 16 are possible, not 0");
    assert_eq!(why(&[v4, "192.0.2.1/32"], &[]), "addresses: 192.0.2.1 is there twice");
    assert_eq!(
        why(&[v4], &["198.51.100.1"]),
        "gateways: 198.51.100.1 is not on link; it must be in a prefix of 192.0.2.1/24"
    );
    assert_eq!(why(&[v4], &["192.0.2.1"]), "gateways: 192.0.2.1 is one of the underlay's own addresses");
    assert!(why(&[v4], &["192.0.2.2", "192.0.2.3"]).starts_with("gateways: at most one of each family"));
    assert!(underlay(&[v4, "2001:db8::1/64"], &["192.0.2.254", "fe80::1"]).is_ok());
    let narrow =
        UnderlaySpec { mtu: 1279.try_into().unwrap(), ..underlay(&["2001:db8::1/64"], &[]).unwrap() };
    assert_eq!(
        narrow.checked().unwrap_err().0,
        "mtu: 2001:db8::1/64 needs one of 1280 bytes or more, and it is 1279"
    );
}

#[test]
fn a_tunnel_needs_an_underlay_with_its_address_and_a_way_to_its_peer() {
    let spec = underlay(&["192.0.2.1/24", "2001:db8::1/64"], &["192.0.2.254"]).unwrap();
    let with = |local: &str, remote: &str| state(&[("nic", spec.clone())], &[("t", tunnel(local, remote))]);
    assert!(with("192.0.2.1", "192.0.2.2").is_ok());
    assert!(with("192.0.2.1", "198.51.100.7").is_ok(), "by the gateway");
    assert!(with("2001:db8::1", "2001:db8::2").is_ok());
    assert_eq!(
        refusal(with("192.0.2.3", "192.0.2.2")),
        "port t: local: 192.0.2.3 is not an address of underlay nic, which has 192.0.2.1/24, 2001:db8::1/64"
    );
    assert_eq!(
        refusal(with("2001:db8::1", "2001:db8:1::2")),
        "port t: remote: 2001:db8:1::2 is not on the link of underlay nic (192.0.2.1/24, 2001:db8::1/64), and it has no \
         gateway of that family"
    );
    assert_eq!(
        refusal(state(&[], &[("t", tunnel("192.0.2.1", "192.0.2.2"))])),
        "port t: underlay: port nic is no underlay; describe it as one, with its addresses"
    );
    let both = [("t", tunnel("192.0.2.1", "192.0.2.2")), ("u", tunnel("192.0.2.1", "192.0.2.2"))];
    assert_eq!(
        refusal(state(&[("nic", spec)], &both)),
        "ports t and u both want vni 42 to 192.0.2.2 on underlay nic"
    );
}

#[test]
fn an_underlay_is_an_ethernet_port_and_in_no_domain() {
    let spec = underlay(&["192.0.2.1/24"], &[]).unwrap();
    assert_eq!(refusal(state(&[("gone", spec.clone())], &[])), "underlay gone: port: there is no port gone");
    let two = [("nic", spec.clone()), ("t", spec.clone())];
    let carrying = refusal(state(&two, &[("t", tunnel("192.0.2.1", "192.0.2.2"))]));
    assert_eq!(carrying, "underlay t: port: a tunnel can't carry tunnels");
    let mut good = state(&[("nic", spec)], &[]).unwrap();
    let member = crate::model::MemberSpec {
        domain: name("blue"),
        mtu: None,
        mac: None,
        strict: true,
        neighbours: Default::default(),
    };
    let into_domain = [Op::SetDomain(name("blue"), Vec::new()), Op::SetMember(name("nic"), member)];
    let why = refusal(good.edit(into_domain));
    assert_eq!(why, "underlay nic: port: it is in domain blue; a port can be one of the two");
    // An exception port is a cross-connect like others.
    let _ = good.edit([Op::AddXconnect(Xconnect::new(name("nic"), name("host")).unwrap())]).unwrap();
}

#[test]
fn what_a_port_carries_is_known_through_changes_and_back() {
    let spec = underlay(&["192.0.2.1/24"], &[]).unwrap();
    let mut state = state(&[("nic", spec.clone())], &[("t", tunnel("192.0.2.1", "192.0.2.2"))]).unwrap();
    let before = state.clone();
    let carried = |state: &State| state.carried_by(&name("nic")).cloned().collect::<Vec<_>>();
    assert_eq!(carried(&state), [name("t")]);
    let refused = refusal(state.edit([Op::RemoveUnderlay(name("nic"))]));
    assert!(refused.contains("port nic is no underlay"), "{refused}");
    assert_eq!(state, before, "nothing is changed then");
    let edit = state.edit([Op::RemovePort(name("t")), Op::RemoveUnderlay(name("nic"))]).unwrap();
    assert!(carried(&state).is_empty() && state.underlays().is_empty());
    state.undo(edit);
    assert_eq!(state, before);
}
