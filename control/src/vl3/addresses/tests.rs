use vwire_proto::nsm::connectioncontext::Route as ApiRoute;

use super::*;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn granted(prefixes: &[&str]) -> Addresses {
    let addresses = Addresses::new(prefixes.len());
    prefixes.iter().enumerate().for_each(|(slot, prefix)| addresses.grant(slot, Grant::of(net(prefix))));
    addresses
}

fn routes(routes: &[ApiRoute]) -> Vec<(&str, &str)> {
    routes.iter().map(|route| (&route.prefix[..], &route.next_hop[..])).collect()
}

fn route(prefix: &str, next_hop: &str) -> ApiRoute {
    ApiRoute { prefix: prefix.into(), next_hop: next_hop.into() }
}

/// A first Request without anything.
fn client(addresses: &Addresses, id: &str) -> IpContext {
    let mut context = IpContext::default();
    assert!(addresses.assign(id, &mut context).unwrap().is_new);
    addresses.add_global(id, &mut context);
    context
}

fn prefixes(assigned: &Assigned) -> Vec<String> {
    assigned.routes.iter().map(|route| route.prefix.to_string()).collect()
}

#[test]
fn a_client_gets_what_a_go_endpoint_gives() {
    let addresses = granted(&["172.16.1.0/24"]);
    let context = client(&addresses, "a");
    assert_eq!(
        (&context.src_ip_addrs[..], &context.dst_ip_addrs[..]),
        (&["172.16.1.1/32".to_owned()][..], &["172.16.1.0/32".to_owned()][..])
    );
    let expected =
        [("172.16.1.0/32", "172.16.1.0"), ("172.16.1.0/24", "172.16.1.0"), ("172.16.1.0/16", "172.16.1.0")];
    assert_eq!(routes(&context.src_routes), expected);
    assert_eq!(routes(&context.dst_routes), [("172.16.1.1/32", "")]);
    let mut again = context.clone();
    let assigned = addresses.assign("a", &mut again).unwrap();
    assert_eq!(
        (again, assigned.is_new, prefixes(&assigned)),
        (context, false, vec!["172.16.1.1/32".to_owned()])
    );
    assert_eq!(addresses.gateways(), [ip("172.16.1.0")]);
}

#[test]
fn two_slots_are_dual_stack() {
    let addresses = granted(&["172.16.1.0/24", "2001:db8::/112"]);
    let context = client(&addresses, "a");
    assert_eq!(context.src_ip_addrs, ["172.16.1.1/32", "2001:db8::1/128"]);
    assert_eq!(context.dst_ip_addrs, ["172.16.1.0/32", "2001:db8::/128"]);
    assert_eq!(routes(&context.dst_routes), [("172.16.1.1/32", ""), ("2001:db8::1/128", "")]);
    assert!(routes(&context.src_routes).contains(&("2001:db8::/64", "2001:db8::")), "{context:?}");
    assert_eq!(addresses.gateways(), [ip("172.16.1.0"), ip("2001:db8::")]);
}

#[test]
fn nothing_is_assigned_before_there_is_a_prefix_and_nothing_is_kept_of_a_part() {
    let addresses = Addresses::new(2);
    addresses.grant(0, Grant::of(net("10.0.0.0/30")));
    let mut context = IpContext::default();
    let refused = addresses.assign("a", &mut context).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    assert!(refused.message().starts_with("prefix pool is initializing"), "{refused}");
    assert_eq!((context, addresses.figures()), (IpContext::default(), vec![(net("10.0.0.0/30"), 0, 3)]));
    addresses.grant(1, Grant::of(net("fd00::/126")));
    assert_eq!(client(&addresses, "a").src_ip_addrs, ["10.0.0.1/32", "fd00::1/128"]);
}

#[test]
fn an_exhausted_prefix_says_so_and_a_close_makes_room() {
    let addresses = granted(&["10.0.0.0/30"]);
    for id in ["a", "b", "c"] {
        client(&addresses, id);
    }
    let refused = addresses.assign("d", &mut IpContext::default()).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    assert!(
        refused.message().contains("prefix 10.0.0.0/30")
            && refused.message().contains("NSM_CLIENT_PREFIX_LEN"),
        "{refused}"
    );
    addresses.free("b");
    addresses.free("b");
    assert_eq!(client(&addresses, "d").src_ip_addrs, ["10.0.0.2/32"]);
    // What is excluded is nobody's.
    let addresses = Addresses::new(1);
    addresses.grant(
        0,
        Grant { prefix: net("10.0.0.0/29"), excluded: vec![net("10.0.0.0/30"), net("10.0.0.6/31")] },
    );
    assert_eq!(client(&addresses, "a").src_ip_addrs, ["10.0.0.4/32"]);
    assert_eq!(client(&addresses, "b").src_ip_addrs, ["10.0.0.5/32"]);
    assert!(addresses.assign("c", &mut IpContext::default()).is_err());
}

#[test]
fn who_comes_back_has_its_address_again_if_it_is_free() {
    let addresses = granted(&["10.0.0.0/24"]);
    let mut former = IpContext {
        src_ip_addrs: vec!["10.0.0.9/32".into()],
        dst_ip_addrs: vec!["10.0.0.0/32".into()],
        dst_routes: vec![route("10.0.0.9/32", "")],
        ..Default::default()
    };
    let asked = former.clone();
    addresses.assign("new", &mut former).unwrap();
    assert_eq!(former.src_ip_addrs, ["10.0.0.9/32"]);
    let mut taken = asked.clone();
    let assigned = addresses.assign("another", &mut taken).unwrap();
    assert_eq!(
        (taken.src_ip_addrs, prefixes(&assigned)),
        (vec!["10.0.0.1/32".to_owned()], vec!["10.0.0.1/32".to_owned()])
    );
    assert_eq!(routes(&taken.dst_routes), [("10.0.0.1/32", "")], "what it does not have does not lead to it");
    // The endpoint's own address is nobody else's.
    let mut own = IpContext { src_ip_addrs: vec!["10.0.0.0/32".into()], ..Default::default() };
    addresses.assign("third", &mut own).unwrap();
    assert_eq!(own.src_ip_addrs, ["10.0.0.2/32"]);
}

#[test]
fn what_another_endpoint_gave_is_forgotten() {
    let addresses = granted(&["10.0.0.0/24"]);
    let mut context = IpContext {
        src_ip_addrs: vec!["10.1.0.9/32".into()],
        dst_ip_addrs: vec!["10.1.0.0/32".into()],
        src_routes: vec![route("10.1.0.0/24", "10.1.0.0"), route("10.1.0.0/16", "10.1.0.0")],
        dst_routes: vec![route("10.1.0.9/32", "")],
        excluded_prefixes: vec!["192.168.0.0/16".into()],
        ..Default::default()
    };
    addresses.assign("a", &mut context).unwrap();
    assert_eq!(
        (&context.src_ip_addrs[..], &context.dst_ip_addrs[..]),
        (&["10.0.0.1/32".to_owned()][..], &["10.0.0.0/32".to_owned()][..])
    );
    assert_eq!(routes(&context.src_routes), [("10.0.0.0/32", "10.0.0.0"), ("10.0.0.0/24", "10.0.0.0")]);
    assert_eq!(context.excluded_prefixes, ["192.168.0.0/16"]);
    // A client that has something may say what it likes.
    context.src_ip_addrs.push("10.0.0.77/32".into());
    context.dst_routes.push(route("0.0.0.0/0", ""));
    let assigned = addresses.assign("a", &mut context).unwrap();
    assert_eq!(
        (context.src_ip_addrs, prefixes(&assigned)),
        (vec!["10.0.0.1/32".to_owned()], vec!["10.0.0.1/32".to_owned()])
    );
}

#[test]
fn another_endpoint_keeps_its_own_and_says_what_is_behind_it() {
    let addresses = granted(&["172.16.1.0/24"]);
    let mut context = IpContext {
        src_ip_addrs: vec!["172.16.2.0/32".into()],
        dst_routes: vec![route("172.16.2.0/32", "172.16.2.0"), route("172.16.2.0/24", "172.16.2.0")],
        ..Default::default()
    };
    let assigned = addresses.assign("peer", &mut context).unwrap();
    assert_eq!(context.src_ip_addrs, ["172.16.2.0/32"]);
    assert_eq!(context.dst_ip_addrs, ["172.16.1.0/32"]);
    assert_eq!(
        routes(&context.src_routes),
        [("172.16.1.0/32", "172.16.1.0"), ("172.16.1.0/24", "172.16.1.0")]
    );
    assert_eq!(assigned.announced, [net("172.16.2.0/32"), net("172.16.2.0/24")]);
    let via = |prefix: &str, via: Option<&str>| Route { prefix: net(prefix), via: via.map(ip) };
    assert_eq!(assigned.routes, [via("172.16.2.0/32", None), via("172.16.2.0/24", Some("172.16.2.0"))]);
    // It refreshes after our prefix has changed.
    addresses.grant(0, Grant::of(net("172.16.9.0/24")));
    let again = addresses.assign("peer", &mut context).unwrap();
    assert_eq!((again.routes, again.is_new), (assigned.routes, false));
    assert_eq!(context.dst_ip_addrs, ["172.16.9.0/32"]);
    assert_eq!(
        routes(&context.src_routes),
        [("172.16.9.0/32", "172.16.9.0"), ("172.16.9.0/24", "172.16.9.0")]
    );
}

#[test]
fn another_prefix_replaces_addresses_and_routes_one_connection_at_a_time() {
    let addresses = granted(&["172.16.1.0/24", "fd00::/64"]);
    let (mut a, mut b) = (client(&addresses, "a"), client(&addresses, "b"));
    addresses.grant(0, Grant::of(net("172.17.0.0/24")));
    let gateways = ["172.17.0.0", "fd00::", "172.16.1.0"].map(ip);
    assert_eq!(addresses.gateways(), gateways, "the old one is answered at while somebody has it");
    let assigned = addresses.assign("b", &mut b).unwrap();
    addresses.add_global("b", &mut b);
    assert_eq!(b.src_ip_addrs, ["fd00::2/128", "172.17.0.1/32"]);
    assert_eq!(b.dst_ip_addrs, ["fd00::/128", "172.17.0.0/32"]);
    assert!(
        b.src_routes.iter().chain(&b.dst_routes).all(|route| !route.prefix.starts_with("172.16.")),
        "{b:?}"
    );
    assert_eq!(prefixes(&assigned), ["172.17.0.1/32", "fd00::2/128"]);
    assert_eq!(addresses.gateways(), gateways);
    addresses.assign("a", &mut a).unwrap();
    assert_eq!(addresses.gateways(), ["172.17.0.0", "fd00::"].map(ip));
    // A wider prefix around the same addresses, or another exclusion: who need not change does not.
    addresses.grant(0, Grant { prefix: net("172.17.0.0/16"), excluded: vec![net("172.17.0.1/32")] });
    addresses.assign("a", &mut a).unwrap();
    addresses.assign("b", &mut b).unwrap();
    assert!(a.src_ip_addrs.contains(&"172.17.0.2/32".to_owned()), "{a:?}");
    assert!(b.src_ip_addrs.contains(&"172.17.0.3/32".to_owned()), "{b:?}");
}

#[test]
fn a_restart_keeps_what_connections_have() {
    let before = granted(&["10.0.0.0/24"]);
    let mut context = client(&before, "a");
    client(&before, "b");
    let after = Addresses::new(1);
    for id in ["a", "b"] {
        after.restore(id, before.held(id).unwrap());
    }
    assert_eq!((after.prefixes(), after.gateways()), (vec![Some(net("10.0.0.0/24"))], vec![ip("10.0.0.0")]));
    let was = context.clone();
    assert!(!after.assign("a", &mut context).unwrap().is_new, "before the prefix server has answered");
    assert_eq!(context, was);
    assert_eq!(after.assign("c", &mut IpContext::default()).unwrap_err().code(), tonic::Code::Unavailable);
    after.grant(0, Grant::of(net("10.0.0.0/24")));
    assert_eq!(client(&after, "c").src_ip_addrs, ["10.0.0.3/32"]);
    after.free("b");
    assert_eq!(client(&after, "d").src_ip_addrs, ["10.0.0.2/32"]);
}

#[test]
fn bad_input_is_named_and_changes_nothing() {
    let addresses = granted(&["10.0.0.0/24"]);
    for (context, part) in [
        (IpContext { src_ip_addrs: vec!["x".repeat(1 << 16)], ..Default::default() }, "src_ip_addrs"),
        (IpContext { dst_ip_addrs: vec!["10.0.0.0/33".into()], ..Default::default() }, "dst_ip_addrs"),
        (IpContext { src_ip_addrs: vec!["10.0.0.1/32".into(); 65], ..Default::default() }, "at most 64"),
        (IpContext { dst_routes: vec![route("", ""); 1], ..Default::default() }, "dst_routes"),
        (IpContext { src_routes: vec![route("10.0.0.0/8", ""); 257], ..Default::default() }, "at most 256"),
    ] {
        let mut asked = context.clone();
        let refused = addresses.assign("bad", &mut asked).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        assert!(refused.message().contains(part) && refused.message().len() < 200, "{refused}");
        assert_eq!(asked, context);
    }
    assert_eq!(client(&addresses, "good").src_ip_addrs, ["10.0.0.1/32"]);
}

#[test]
fn a_client_gets_nothing_of_the_networks_that_it_has() {
    let addresses = granted(&["172.16.1.0/29"]);
    let excluding = |prefixes: &[&str]| IpContext {
        excluded_prefixes: prefixes.iter().map(|&prefix| prefix.to_owned()).collect(),
        ..Default::default()
    };
    let mut context = excluding(&["172.16.1.1/32", "172.16.1.2/31", "10.0.0.0/8", "fd00::/8"]);
    addresses.assign("a", &mut context).unwrap();
    assert_eq!(context.src_ip_addrs, ["172.16.1.4/32"]);
    // Later it has that network, too: it gets another address, and the old one is free.
    context.excluded_prefixes.push("172.16.1.4/32".into());
    addresses.assign("a", &mut context).unwrap();
    assert_eq!(context.src_ip_addrs, ["172.16.1.5/32"]);
    // Whoever has the endpoint's own address elsewhere can't be served, and neither can it who has all the rest.
    let before = addresses.figures();
    for (prefixes, code, told) in [
        (&["172.16.0.0/16"][..], tonic::Code::FailedPrecondition, "172.16.0.0/16 overlaps 172.16.1.0/29"),
        (&["172.16.1.0/32"], tonic::Code::FailedPrecondition, "covers its address 172.16.1.0"),
        (
            &["172.16.1.1/32", "172.16.1.2/31", "172.16.1.4/30"],
            tonic::Code::ResourceExhausted,
            "excluded_prefixes (3) leave",
        ),
        (&["172.16.1"], tonic::Code::InvalidArgument, "excluded_prefixes: \"172.16.1\""),
        (&["::/0"; 1025], tonic::Code::InvalidArgument, "excluded_prefixes: 1025"),
    ] {
        let mut context = excluding(prefixes);
        let refused = addresses.assign("b", &mut context).unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(told), "{refused}");
        assert_eq!(context, excluding(prefixes), "nothing has changed");
    }
    assert_eq!(addresses.figures(), before, "nor for others");
    assert_eq!(client(&addresses, "c").src_ip_addrs, ["172.16.1.1/32"]);
}
