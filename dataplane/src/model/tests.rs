use vwire_proto::dataplane::v1 as pb;

use super::*;

fn name(text: &str) -> PortName {
    text.parse().unwrap()
}

fn pipe(name_: &str, pipe: &str) -> (PortName, PortSpec) {
    (name(name_), PortSpec::Pipe(PipeSpec { pipe: name(pipe) }))
}

fn join(a: &str, b: &str) -> Xconnect {
    Xconnect::new(name(a), name(b)).unwrap()
}

fn pb_memif(name: &str) -> pb::Port {
    let memif = pb::Memif { role: 1, socket: format!("/run/{name}"), ..Default::default() };
    pb::Port { name: name.into(), kind: Some(pb::port::Kind::Memif(memif)), ..Default::default() }
}

fn pb_vxlan(name: &str, edit: impl FnOnce(&mut pb::Vxlan)) -> pb::Port {
    let mut vxlan =
        pb::Vxlan { vni: 42, local: "10.9.0.1".into(), remote: "10.9.0.2".into(), ..Default::default() };
    edit(&mut vxlan);
    pb::Port { name: name.into(), kind: Some(pb::port::Kind::Vxlan(vxlan)), ..Default::default() }
}

fn pb_kernel(name: &str, edit: impl FnOnce(&mut pb::Kernel)) -> pb::Port {
    let mut kernel = pb::Kernel { ifname: "nsm-1".into(), ..Default::default() };
    edit(&mut kernel);
    pb::Port { name: name.into(), kind: Some(pb::port::Kind::Kernel(kernel)), ..Default::default() }
}

fn refusal(ports: Vec<pb::Port>, xconnects: Vec<(&str, &str)>) -> String {
    let xconnects = xconnects.iter().map(|(a, b)| pb::Xconnect { a: (*a).into(), b: (*b).into() }).collect();
    state_from_proto(&pb::State { ports, xconnects, ..Default::default() }).unwrap_err().to_string()
}

#[test]
fn what_the_api_gives_back_is_what_it_was_given() {
    let kernel = pb_kernel("k", |k| {
        k.netns = "/run/netns/n1".into();
        k.addresses = vec!["10.60.1.2/30".into(), "2001:db8::2/64".into()];
        k.mtu = 1450;
        (k.mode, k.queues) = (1, 2);
    });
    let mut memif = pb_memif("m");
    if let Some(pb::port::Kind::Memif(memif)) = &mut memif.kind {
        *memif = pb::Memif { mode: 1, queues: 2, ring_size: 512, buffer_size: 4096, ..memif.clone() };
    }
    let vxlan = pb_vxlan("t", |t| (t.port, t.underlay_mtu, t.mode) = (4790, 9000, 1));
    let pipe = pb::Port {
        note: b"any \0 bytes \xff".to_vec(),
        name: "p".into(),
        kind: Some(pb::port::Kind::Pipe(pb::Pipe { pipe: "x".into() })),
    };
    let xconnects = vec![pb::Xconnect { a: "k".into(), b: "t".into() }];
    let given = pb::State { ports: vec![kernel, memif, pipe, vxlan], xconnects, ..Default::default() };
    assert_eq!(state_to_proto(&state_from_proto(&given).unwrap()), given);
}

#[test]
fn a_secret_is_taken_but_not_given_back() {
    let mut port = pb_memif("m");
    if let Some(pb::port::Kind::Memif(memif)) = &mut port.kind {
        memif.secret = "open sesame".into();
    }
    let state = state_from_proto(&pb::State { ports: vec![port], ..Default::default() }).unwrap();
    assert!(matches!(&state.ports()[&name("m")], PortSpec::Memif(m) if m.secret.reveal() == "open sesame"));
    assert!(!format!("{:?}{state:?}", state_to_proto(&state)).contains("sesame"));
}

#[test]
fn a_bad_field_is_named_with_its_reason() {
    let nameless = pb::Port { name: "a/b".into(), kind: None, ..Default::default() };
    let kindless = pb::Port { name: "a".into(), kind: None, ..Default::default() };
    let roleless = pb::Port {
        name: "a".into(),
        kind: Some(pb::port::Kind::Memif(pb::Memif::default())),
        ..Default::default()
    };
    let far = pb_vxlan("t", |t| t.vni = 1 << 24);
    let cases = [
        (
            nameless,
            "state.ports[0].name: a port's name has 1 to 63 bytes of A-Z a-z 0-9 . _ -; \"a/b\" does not",
        ),
        (kindless, "state.ports[0].kind: is needed: memif, kernel, af_xdp, vxlan, pipe or dpdk"),
        (roleless, "state.ports[0].memif.role: is needed: ROLE_SERVER or ROLE_CLIENT"),
        (far, "state.ports[0].vxlan.vni: a vni can be 0 to 16777215 (24 bits), not 16777216"),
        (pb_vxlan("t", |t| t.port = 65_536), "state.ports[0].vxlan.port: port can be 1 to 65535, not 65536"),
        (
            pb_vxlan("t", |t| t.remote = "fe80::1".into()),
            "state.ports[0].vxlan.remote: fe80::1 is not of the same family as local, 10.9.0.1",
        ),
        (
            pb_vxlan("t", |t| t.remote = t.local.clone()),
            "state.ports[0].vxlan.remote: 10.9.0.1 is this end's own address",
        ),
        (
            pb_vxlan("t", |t| t.remote = "224.0.0.1".into()),
            "state.ports[0].vxlan.remote: 224.0.0.1 is not an address that one host can have",
        ),
        (pb_vxlan("t", |t| t.local = String::new()), "state.ports[0].vxlan.local: \"\" is not an IP address"),
        (pb_kernel("k", |k| k.mtu = 67), "state.ports[0].kernel.mtu: mtu can be 68 to 65521 bytes, not 67"),
        (pb_kernel("k", |k| k.mode = 9), "state.ports[0].kernel.mode: there is no mode 9"),
        (
            pb_kernel("k", |k| (k.mtu, k.addresses) = (1279, vec!["2001:db8::2/64".into()])),
            "state.ports[0].kernel.addresses: 2001:db8::2/64 needs an mtu of 1280 bytes or more, and mtu is 1279",
        ),
        (
            pb_kernel("k", |k| k.addresses = vec!["1.2.3.4/8".into(), "1.2.3.4".into()]),
            "state.ports[0].kernel.addresses[1]: \"1.2.3.4\" is no address with a prefix length, like 10.60.1.2/30",
        ),
    ];
    for (port, expected) in cases {
        assert_eq!(refusal(vec![port], vec![]), expected);
    }
}

#[test]
fn parts_that_do_not_fit_together_are_refused() {
    let ports = || vec![pb_memif("a"), pb_memif("b"), pb_memif("c")];
    assert_eq!(refusal(vec![pb_memif("a"), pb_memif("a")], vec![]), "state: port a is there twice");
    assert_eq!(refusal(ports(), vec![("a", "z")]), "state: xconnect a - z: there is no port z");
    assert_eq!(
        refusal(ports(), vec![("a", "b"), ("c", "b")]),
        "state: port b can be in one xconnect, not in both a - b and b - c"
    );
    assert_eq!(
        refusal(ports(), vec![("a", "a")]),
        "state.xconnects[0].b: port a can't be cross-connected with itself"
    );
    assert_eq!(
        refusal(vec![pb_vxlan("s", |_| ()), pb_vxlan("t", |t| t.underlay_mtu = 9000)], vec![]),
        "state: ports s and t both want vni 42 from 10.9.0.1:4789 to 10.9.0.2"
    );
    let ip = pb_kernel("k", |k| k.mode = 2);
    assert!(refusal(vec![ip, pb_memif("m")], vec![("k", "m")]).contains("the other's with IP"));
}

#[test]
fn a_pipe_has_two_ends() {
    assert!(State::new([pipe("a", "p"), pipe("b", "p")], []).is_ok());
    let error = State::new([pipe("a", "p"), pipe("b", "p"), pipe("c", "p")], []).unwrap_err();
    assert_eq!(error.to_string(), "ports a and c both want pipe p");
}

#[test]
fn operations_are_judged_by_where_they_lead() {
    let state = State::new([pipe("a", "p"), pipe("b", "q")], [join("a", "b")]).unwrap();
    let remove = |name_: &str| Op::RemovePort(name(name_));
    let left = state.after([remove("b"), Op::RemoveXconnect(join("b", "a"))]).unwrap();
    assert_eq!((left.ports().len(), left.xconnects().len()), (1, 0));
    assert_eq!(state.after([remove("b")]).unwrap_err().to_string(), "xconnect a - b: there is no port b");
    assert_eq!(state.after([remove("z")]).unwrap_err().to_string(), "there is no port z");
    let cut = Op::RemoveXconnect(join("a", "z"));
    assert_eq!(state.after([cut]).unwrap_err().to_string(), "there is no xconnect a - z");
    let (port, spec) = pipe("c", "r");
    let moved = [
        Op::RemoveXconnect(join("a", "b")),
        Op::AddXconnect(join("c", "a")),
        Op::SetPort(port, spec, Note::default()),
    ];
    assert_eq!(state.after(moved).unwrap().xconnects().iter().next(), Some(&join("a", "c")));
}

#[test]
fn a_tunnels_longest_frame_follows_from_the_underlays_mtu() {
    let spec = |local: &str, remote: &str| {
        let edit = |t: &mut pb::Vxlan| (t.local, t.remote) = (local.into(), remote.into());
        let state = pb::State { ports: vec![pb_vxlan("t", edit)], ..Default::default() };
        match &state_from_proto(&state).unwrap().ports()[&name("t")] {
            PortSpec::Vxlan(vxlan) => (vxlan.max_frame(1500), vxlan.endpoint().to_string()),
            _ => unreachable!("a tunnel was asked for"),
        }
    };
    assert_eq!(spec("10.9.0.1", "10.9.0.2"), (1464, "10.9.0.1:4789".into()));
    assert_eq!(spec("fd00::1", "fd00::2"), (1444, "[fd00::1]:4789".into()));
}

proptest::proptest! {
    #[test]
    fn no_state_message_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
        if let Ok(state) = <pb::State as prost::Message>::decode(&bytes[..]) {
            let _ = state_from_proto(&state);
        }
    }

    #[test]
    fn no_text_panics(text in ".{0,40}") {
        let _ = text.parse::<PortName>();
        let _ = text.parse::<IfName>();
        let _ = text.parse::<ControlSocket>();
        let _ = text.parse::<Netns>();
        let _ = text.parse::<Prefix>();
        let _ = text.parse::<Secret>();
        proptest::prop_assert!(shown(&text).len() < 80 * 12);
    }
}

#[test]
fn only_ports_with_the_same_kind_of_frames_are_joined() {
    let memif = |name: &str, mode| {
        let mut port = pb_memif(name);
        if let Some(pb::port::Kind::Memif(memif)) = &mut port.kind {
            memif.mode = mode;
        }
        port
    };
    let ports = |mode: i32| {
        let pipe = pb::port::Kind::Pipe(pb::Pipe { pipe: "x".into() });
        let pipe = pb::Port { name: "any".into(), kind: Some(pipe), ..Default::default() };
        let kernel = pb_kernel("k", |kernel| kernel.mode = mode);
        vec![memif("m", mode), kernel, pb_vxlan("t", |t| t.mode = mode), pipe]
    };
    let joined = |ports: Vec<pb::Port>, a: &str, b: &str| {
        let xconnects = vec![pb::Xconnect { a: a.into(), b: b.into() }];
        state_from_proto(&pb::State { ports, xconnects, ..Default::default() })
    };
    for (a, b) in [("m", "k"), ("k", "t"), ("m", "t"), ("any", "m"), ("any", "k"), ("any", "t")] {
        for mode in [1, 2] {
            assert!(joined(ports(mode), a, b).is_ok(), "{a} {b} {mode}");
        }
        if a != "any" {
            let mixed = ports(1).into_iter().zip(ports(2));
            let mixed = mixed.map(|(ethernet, ip)| if ethernet.name == a { ethernet } else { ip }).collect();
            let error = joined(mixed, a, b).unwrap_err().to_string();
            assert!(error.contains("the other's with IP"), "{a} {b}: {error}");
        }
    }
}
