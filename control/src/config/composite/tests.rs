//! The texts of the first NSM's examples, as they were shipped, and what is wrong with others.

use super::*;

/// The seed's icmp responder: a ConfigMap beside the Deployment that mounts it.
const RESPONDER: &str = r#"---
apiVersion: apps/v1
kind: Deployment
spec: {replicas: 2}
metadata:
  name: ucnf-endpoint
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: universal-cnf-endpoint
data:
  config.yaml: |
    endpoints:
    - name: "icmp-responder"
      labels:
        app: "ucnf-endpoint"
      ipam:
        prefixpool: "10.60.1.0/24"
      ifname: "endpoint0"
"#;

/// The seed's client.
const CLIENT: &str = r#"
initactions:
  - command:
      name: "vppctl"
      args: ["show", "version"]
  - client:
      name: "icmp-responder"
      ifname: "client0"
      labels:
        app: "ucnf-client"
"#;

/// The seed's vL3, as its chart makes it.
const VL3: &str = r#"
endpoints:
- name: "vl3-service"
  labels:
    app: "vl3-nse-vl3-service"
    cnns/nsr.port: "50000"
  ipam:
    prefixpool: "10.60.0.0/16"
    routes: []
  ifname: "endpoint0"
"#;

/// A later vL3.
const LATER: &str = r#"
endpoints:
- name: vl3-service
  nseName: vl3-1
  labels: {app: vl3-nse}
  vl3:
    ipam:
      defaultPrefixPool: fd60::/48
      prefixLength: 64
      routes: []
      serverAddress: vl3-ipam:5006
    ifName: endpoint0
    nameServers: []
"#;

fn settings(text: &str, role: &str) -> BTreeMap<String, String> {
    read(text).unwrap().expect("a composite").settings_with(role, None).unwrap()
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn the_responder_of_the_first_example_is_an_endpoint() {
    let wanted = map(&[
        ("service_names", "icmp-responder"),
        ("labels", "app:ucnf-endpoint"),
        ("cidr_prefix", "10.60.1.0/24"),
    ]);
    assert_eq!(settings(RESPONDER, "nse"), wanted);
    let more = "Endpoints:\n- {name: a, ipam: {prefixPool: 10.60.1.0/24, routes: [10.0.0.0/8, fd00::/8]}, nameservers: [10.60.1.1]}\n\
                - {name: b, ipam: {prefixPool: 10.60.1.0/24, routes: [10.0.0.0/8, fd00::/8]}, nameservers: [10.60.1.1]}\n";
    let wanted = map(&[
        ("service_names", "a,b"),
        ("labels", ""),
        ("cidr_prefix", "10.60.1.0/24"),
        ("routes", "10.0.0.0/8,fd00::/8"),
        ("dns_configs", r#"[{"dns_server_ips":["10.60.1.1"]}]"#),
    ]);
    assert_eq!(settings(more, "nse"), wanted);
}

#[test]
fn its_client_is_a_client() {
    let wanted = map(&[("network_services", "kernel://icmp-responder/client0?app=ucnf-client")]);
    assert_eq!(settings(CLIENT, "nsc"), wanted);
    let told = read(CLIENT).unwrap().unwrap().settings_with("nse", None).unwrap_err();
    assert_eq!(told, "endpoints: there is none");
    let told = read(VL3).unwrap().unwrap().settings_with("nsc", None).unwrap_err();
    assert_eq!(told, "initactions: no client is among them");
}

#[test]
fn a_virtual_network_is_an_endpoint_and_a_prefix_service() {
    let wanted =
        map(&[("service_names", "vl3-service"), ("labels", "app:vl3-nse-vl3-service,cnns/nsr.port:50000")]);
    assert_eq!(settings(VL3, "vl3"), wanted);
    assert_eq!(settings(VL3, "vl3-ipam"), map(&[("prefix", "10.60.0.0/16")]));
    let own = read(VL3).unwrap().unwrap().settings_with("vl3", Some("232")).unwrap();
    assert_eq!(own["vl3_prefix"], "10.60.232.0/24");
    let wanted = map(&[
        ("service_names", "vl3-service"),
        ("name", "vl3-1"),
        ("labels", "app:vl3-nse"),
        ("prefix_server_url", "vl3-ipam:5006"),
    ]);
    assert_eq!(settings(LATER, "vl3"), wanted);
    assert_eq!(settings(LATER, "vl3-ipam"), map(&[("prefix", "fd60::/48"), ("client_prefix_len", "64")]));
}

#[test]
fn what_is_no_composite_is_left_to_others() {
    for text in
        ["", "labels: {a: b}\nlisten_on: [x]\n", "- 1\n", "a: [", "kind: ConfigMap\ndata: {other: x}\n", "42"]
    {
        assert_eq!(read(text), Ok(None), "{text}");
    }
}

#[test]
fn what_can_not_be_done_is_refused_with_its_place() {
    let filters = "endpoints: [{name: a, action: {vppconfig: {acls: []}}}]";
    for (text, told) in [
        (filters, "endpoints[0].action: nothing of it can be done here, and it must not be lost"),
        ("endpoints: [{labels: {}}]", "endpoints[0].name: missing"),
        ("endpoints: [{name: a, colour: red}]", "endpoints[0].colour: nobody knows it"),
        (
            "endpoints: [{name: a}, {name: b, labels: {x: y}}]",
            "endpoints[1].labels: x:y, and endpoints[0] has nothing: one process is one endpoint",
        ),
        (
            "endpoints: [{name: a, nsename: n}, {name: b, nsename: n}, {name: c, nsename: m}]",
            "endpoints[2].nsename: m, and endpoints[0] has n",
        ),
        (
            "endpoints: [{name: a, ipam: {prefixpool: 10.60.0.0/16}}, {name: b, vl3: {ipam: {prefixpool: 10.61.0.0/16}}}]",
            "endpoints[1].ipam.prefixpool: 10.61.0.0/16, and endpoints[0] has 10.60.0.0/16",
        ),
        (
            "endpoints: [{name: a, ipam: {prefixlength: 24}}, {name: b}]",
            "endpoints[1].ipam.prefixlength: nothing, and endpoints[0] has 24",
        ),
        (
            "endpoints: [{name: a, ipam: {routes: [10.0.0.0/8]}}, {name: b, ipam: {routes: [10.0.0.0/8, 11.0.0.0/8]}}]",
            "endpoints[1].ipam.routes: 10.0.0.0/8,11.0.0.0/8, and endpoints[0] has 10.0.0.0/8",
        ),
        (
            "endpoints: [{name: a}, {name: b, ipam: {serveraddress: 'x:5006'}}]",
            "endpoints[1].ipam.serveraddress: x:5006, and endpoints[0] has nothing",
        ),
        (
            "endpoints: [{name: a, nameservers: [10.0.0.1]}, {name: b}]",
            "endpoints[1].nameservers: nothing, and endpoints[0] has 10.0.0.1",
        ),
        (
            "endpoints: [{name: a, ipam: {prefixpool: 10.60.0.0}}]",
            "endpoints[0].ipam.prefixpool: \"10.60.0.0\" is not a prefix",
        ),
        ("endpoints: [{name: a, ipam: {prefixpool: [1]}}]", "endpoints[0].ipam.prefixpool: not a text"),
        ("endpoints: [{name: a, ipam: {routes: [x]}}]", "endpoints[0].ipam.routes: \"x\" is not a prefix"),
        (
            "endpoints: [{name: a, vl3: {ipam: {prefixlength: 400}}}]",
            "endpoints[0].vl3.ipam.prefixlength: \"400\" is not a length",
        ),
        ("endpoints: [{name: a, ipam: 5}]", "endpoints[0].ipam: not a list of keys"),
        ("endpoints: [{name: 'a,b'}]", "endpoints[0].name: \"a,b\": has a blank or one of"),
        ("endpoints: [{name: a, labels: {x: 'y,z'}}]", "endpoints[0].labels.x: \"y,z\": a label has"),
        ("endpoints: [{name: a, Name: b}]", "endpoints[0].name: there twice"),
        ("endpoints: {}", "endpoints: not a list"),
        ("initactions: [5]", "initactions[0]: not a list of keys"),
        ("initactions: [{client: {ifname: x}}]", "initactions[0].client.name: missing"),
        ("kind: ConfigMap\ndata: {config.yaml: 'endpoints: ['}", "data.config.yaml: "),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.starts_with(told), "{text}: {error}");
    }
    let routes = "endpoints: [{name: a, ipam: {routes: [10.0.0.0/8]}}]";
    for (text, role, octet, told) in [
        (routes, "vl3", None, "endpoints[0].ipam.routes: a vL3 endpoint"),
        (VL3, "vl3", Some("300"), "NSE_IPAM_UNIQUE_OCTET: \"300\""),
        (RESPONDER, "vl3", Some("3"), "endpoints[0].ipam.prefixpool: 10.60.1.0/24: NSE_IPAM_UNIQUE_OCTET"),
        (routes, "vl3-ipam", None, "endpoints[0].ipam.prefixpool: missing"),
        (VL3, "registry", None, "endpoints: `vwire registry` is none"),
    ] {
        let error = read(text).unwrap().unwrap().settings_with(role, octet).unwrap_err();
        assert!(error.starts_with(told), "{role}: {error}");
    }
}
