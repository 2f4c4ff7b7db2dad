use super::super::{Note, Op, PipeSpec, Xconnect};
use super::*;

fn name(text: &str) -> PortName {
    text.parse().unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn port(text: &str) -> Op {
    Op::SetPort(name(text), PortSpec::Pipe(PipeSpec { pipe: name(text) }), Note::default())
}

fn member(port: &str, domain: &str) -> Op {
    let domain = name(domain);
    let neighbours = BTreeMap::new();
    Op::SetMember(name(port), MemberSpec { domain, mtu: None, mac: None, strict: true, neighbours })
}

fn route(domain: &str, prefix: &str, port: &str, via: Option<&str>) -> Op {
    let route = RouteSpec { port: name(port), via: via.map(address) };
    Op::SetRoute(name(domain), prefix.parse().unwrap(), route)
}

fn blue() -> Vec<Op> {
    vec![
        port("a"),
        port("b"),
        port("c"),
        Op::SetDomain(name("blue"), vec![address("10.0.0.1")]),
        member("a", "blue"),
        member("b", "blue"),
        route("blue", "10.0.1.0/24", "a", None),
        route("blue", "10.0.2.0/24", "b", Some("10.9.0.1")),
    ]
}

#[test]
fn what_does_not_fit_is_refused_by_name_and_changes_nothing() {
    let mut state = State::default().after(blue()).unwrap();
    let before = state.clone();
    let cases: Vec<(Vec<Op>, &str)> = vec![
        (vec![Op::RemovePort(name("a"))], "domain blue: port a: there is no such port"),
        (
            vec![Op::RemoveMember(name("a"))],
            "domain blue: route 10.0.1.0/24: it leads to port a, which is not in this domain",
        ),
        (
            vec![Op::SetDomain(name("red"), vec![]), member("a", "red")],
            "domain blue: route 10.0.1.0/24: it leads to port a, which is not in this domain",
        ),
        (vec![member("c", "red")], "domain red: port c: there is no such domain"),
        (
            vec![Op::AddXconnect(Xconnect::new(name("a"), name("c")).unwrap())],
            "domain blue: port a: it is in xconnect a - c; a port can be in one of the two",
        ),
        (
            vec![route("blue", "10.0.3.0/24", "c", None)],
            "domain blue: route 10.0.3.0/24: it leads to port c, which is not in this domain",
        ),
        (
            vec![route("blue", "10.0.0.1/32", "a", None)],
            "domain blue: route 10.0.0.1/32: it is a gateway address of the domain, and can't be both",
        ),
        (
            vec![
                Op::SetDomain(name("blue"), vec![address("10.0.5.5")]),
                route("blue", "10.0.5.5/32", "a", None),
            ],
            "domain blue: gateway 10.0.5.5 is also the prefix of a route, and can't be both",
        ),
        (
            vec![route("blue", "10.0.3.0/24", "a", Some("fd00::1"))],
            "domain blue: route 10.0.3.0/24: via fd00::1 is not of the prefix's family",
        ),
        (
            vec![route("blue", "10.0.3.0/24", "a", Some("10.0.0.1"))],
            "domain blue: route 10.0.3.0/24: via 10.0.0.1 is a gateway address of the domain itself",
        ),
        (
            vec![Op::RemoveRoute(name("blue"), "10.0.9.0/24".parse().unwrap())],
            "there is no route 10.0.9.0/24 in domain blue",
        ),
        (vec![Op::RemoveDomain(name("red"))], "there is no domain red"),
        (vec![Op::RemoveMember(name("c"))], "there is no port c in a domain"),
    ];
    for (ops, expected) in cases {
        assert_eq!(state.edit(ops).unwrap_err().to_string(), expected);
        assert_eq!(state, before, "after: {expected}");
    }
}

#[test]
fn a_domain_goes_with_all_that_is_in_it_and_comes_back_by_undo() {
    let mut state = State::default().after(blue()).unwrap();
    let before = state.clone();
    let edit = state.edit([Op::RemoveDomain(name("blue")), Op::RemovePort(name("a"))]).unwrap();
    assert_eq!((state.routing().routes(), state.routing().members().len()), (0, 0));
    state.undo(edit);
    assert_eq!(state, before);
}

#[test]
fn what_differs_between_two_states_is_found() {
    let before = State::default().after(blue()).unwrap();
    let after = before
        .after([
            route("blue", "10.0.1.0/24", "b", None),
            Op::RemoveRoute(name("blue"), "10.0.2.0/24".parse().unwrap()),
            route("blue", "fd00::/64", "a", None),
            Op::SetDomain(name("red"), vec![]),
            member("c", "red"),
        ])
        .unwrap();
    let touched = TouchedRouting::between(before.routing(), after.routing());
    let routes: Vec<_> =
        touched.routes.iter().map(|(domain, network)| format!("{domain} {network}")).collect();
    assert_eq!(routes, ["blue 10.0.1.0/24", "blue 10.0.2.0/24", "blue fd00::/64"]);
    assert_eq!((touched.whole.len(), touched.gateways.len(), touched.members.len()), (1, 0, 1));
    assert!(TouchedRouting::between(after.routing(), after.routing()).is_empty());
}

#[test]
fn prefixes_and_hardware_addresses_are_read_strictly() {
    for good in ["0.0.0.0/0", "10.60.0.0/16", "::/0", "fd60::7/128"] {
        assert_eq!(good.parse::<Network>().unwrap().to_string(), good);
    }
    for bad in [
        "10.60.0.1/16",
        "10.0.0.0/33",
        "10.0.0.0",
        "224.0.0.0/8",
        "fd60::1/64",
        "10.0.0.0/+8",
        "x/8",
        "1.2.3.4/-1",
    ] {
        assert!(bad.parse::<Network>().is_err(), "{bad}");
    }
    assert_eq!("02:00:00:00:00:ff".parse::<Mac>().unwrap().to_string(), "02:00:00:00:00:ff");
    for bad in [
        "",
        "02:00:00:00:00",
        "01:00:00:00:00:01",
        "00:00:00:00:00:00",
        "02:0:0:0:0:1",
        "02:00:00:00:00:+1",
        "gg:00:00:00:00:01",
    ] {
        assert!(bad.parse::<Mac>().is_err(), "{bad}");
    }
}
