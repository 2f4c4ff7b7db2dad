//! Files that will do and files that will not, and what is said of those.

use std::path::Path;

use super::*;
use crate::model::{ControlSocket, Mode, PortSpec, Role};

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("f.toml"), text)
}

fn refusal(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

const MEMIF: &str =
    "[[port]]\nname = \"a\"\nkind = \"memif\"\nrole = \"server\"\nsocket = \"/run/vwire/a.sock\"\nid = 0\n";

#[test]
fn an_empty_file_is_an_engine_without_ports() {
    let config = parse("").unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(config.workers.cores, [0]);
    assert_eq!(config.workers.mode, WorkerMode::Adaptive);
    assert_eq!((config.admin.listen, config.api.socket), (None, None));
}

#[test]
fn every_key_ends_where_it_belongs() {
    let config = parse(
        r#"
[workers]
cores = [1, 3]
mode = "poll"
[stats]
path = "/tmp/stats"
[admin]
listen = "127.0.0.1:9090"
[api]
socket = "/run/vwire/dataplane.sock"
[log]
filter = "info"
format = "json"
[[port]]
name = "a"
kind = "memif"
role = "client"
socket = "@there"
id = 7
mode = "ip"
secret = "s"
queues = 2
ring_size = 64
buffer_size = 9216
[[port]]
name = "k"
kind = "kernel"
ifname = "nsm-1"
netns = "/run/netns/node1"
addresses = ["10.60.1.2/30"]
mtu = 1450
mode = "ip"
[[port]]
name = "t"
kind = "vxlan"
vni = 42
local = "fd00::1"
remote = "fd00::2"
port = 4790
underlay_mtu = 9000
[[port]]
name = "p"
kind = "pipe"
pipe = "x"
[[xconnect]]
ports = ["p", "t"]
[[xconnect]]
ports = ["a", "k"]
"#,
    )
    .unwrap();
    assert_eq!((config.workers.cores, config.workers.mode), (vec![1, 3], WorkerMode::Poll));
    assert_eq!(config.admin.listen, Some("127.0.0.1:9090".parse().unwrap()));
    assert_eq!(config.api.socket.unwrap().as_path(), Path::new("/run/vwire/dataplane.sock"));
    assert_eq!((config.log.filter.as_str(), config.log.format), ("info", LogFormat::Json));
    assert_eq!(config.state.xconnects().len(), 2);
    let port = |name: &str| config.state.ports()[&name.parse().unwrap()].clone();
    let PortSpec::Memif(a) = port("a") else { panic!("a is a memif") };
    assert_eq!((a.role, a.id, a.mode, a.queues.get()), (Role::Client, 7, Mode::Ip, 2));
    assert_eq!((a.ring_size.get(), a.buffer_size.get(), a.secret.reveal()), (64, 9216, "s"));
    assert_eq!(a.socket, ControlSocket::Abstract("there".into()));
    let PortSpec::Kernel(k) = port("k") else { panic!("k is a kernel interface") };
    assert_eq!((k.ifname.as_str(), k.mtu.get(), k.mode), ("nsm-1", 1450, Mode::Ip));
    let PortSpec::Vxlan(t) = port("t") else { panic!("t is a tunnel") };
    assert_eq!((t.vni.get(), t.port.get(), t.underlay_mtu.map(|mtu| mtu.get())), (42, 4790, Some(9000)));
}

/// Text, and what the operator reads.
const BAD: &[(&str, &str)] = &[
    ("x = 1", "f.toml:1: x: unknown field `x`, expected one of `workers`, `stats`, `admin`, `api`, `log`"),
    ("[workers]\ncore = [1]", "f.toml:2: workers.core: unknown field `core`, expected `cores` or `mode`"),
    ("[workers]\ncores = []", "f.toml:2: workers.cores: name 1 to 64 cores, not 0"),
    ("[workers]\ncores = [1, 1]", "f.toml:2: workers.cores: core 1 is there twice"),
    (
        "[workers]\ncores = [\n 1,\n -1\n]",
        "f.toml:4: workers.cores[1]: invalid value: integer `-1`, expected usize",
    ),
    ("[workers]\ncores = \"1\"", "f.toml:2: workers.cores: invalid type: string \"1\", expected a sequence"),
    (
        "[workers]\nmode = \"fast\"",
        "f.toml:2: workers.mode: unknown variant `fast`, expected `poll` or `adaptive`",
    ),
    ("[admin]\nlisten = \"localhost\"", "f.toml:2: admin.listen: invalid socket address syntax"),
    (
        "[api]\nsocket = \"relative\"",
        "f.toml:2: api.socket: a socket is an absolute path of at most 107 bytes; \"relative\" has 8",
    ),
    ("[stats]\npath = 5", "f.toml:2: stats.path: invalid type: integer `5`, expected path string"),
    ("[port]\nname = \"a\"", "f.toml:1: port: write [[port]]: it is a list, not one table"),
    ("\n[[port]]\nkind = \"memif\"", "f.toml:2: port[0]: missing field `name`"),
    ("[[port]]\nname = \"a\"", "f.toml:1: port[0]: missing field `kind`"),
    (
        "[[port]]\nname = \"a\"\nkind = \"tap\"",
        "f.toml:3: port[0].kind: kind is memif, kernel, af_xdp, vxlan, pipe or dpdk, not \"tap\"",
    ),
    (
        "[[port]]\nname = \"a b\"\nkind = \"pipe\"\npipe = \"x\"",
        "f.toml:2: port[0].name: a port's name has 1 to 63 bytes of A-Z a-z 0-9 . _ -; \"a b\" does not",
    ),
    ("[[port]]\nname = \"a\"\nkind = \"memif\"\nsocket = \"/a\"", "f.toml:1: port[0]: missing field `role`"),
    (
        "[[port]]\nname = \"t\"\nkind = \"vxlan\"\nvni = 16777216\nlocal = \"1.1.1.1\"\nremote = \"1.1.1.2\"",
        "f.toml:4: port[0].vni: a vni can be 0 to 16777215 (24 bits), not 16777216",
    ),
    (
        "[[port]]\nname = \"t\"\nkind = \"vxlan\"\nvni = -1\nlocal = \"1.1.1.1\"\nremote = \"1.1.1.2\"",
        "f.toml:4: port[0].vni: a vni can be 0 to 16777215 (24 bits), not -1",
    ),
    (
        "[[port]]\nname = \"t\"\nkind = \"vxlan\"\nvni = 1\nlocal = \"1.1.1.1\"\nremote = \"::2\"",
        "f.toml:1: port[0]: remote: ::2 is not of the same family as local, 1.1.1.1",
    ),
    (
        "[[port]]\nname = \"k\"\nkind = \"kernel\"\nifname = \"k\"\nmtu = 99999999999999999999",
        "f.toml:5: port[0].mtu: ",
    ),
    (
        "[[port]]\nname = \"k\"\nkind = \"kernel\"\nifname = \"k\"\naddresses = [\"1.1.1.1/8\", \"x\"]",
        "f.toml:5: port[0].addresses: \"x\" is no address with a prefix length, like 10.60.1.2/30",
    ),
    (
        "[[port]]\nname = \"k\"\nkind = \"kernel\"\nifname = \"k\"\nvni = 4",
        "f.toml:5: port[0].vni: unknown field `vni`, expected one of `ifname`, `netns`, `addresses`, `mtu`, `mode`, `queues`",
    ),
    (
        "[[port]]\nname = \"k\"\nkind = \"kernel\"\nifname = \"k\"\nnetns = \"inode://4/5\"",
        "f.toml:1: port[0]: inode:// names a descriptor sent over the API; a file can't send one",
    ),
    ("a = ", "f.toml:1: "),
    (
        "[[xconnect]]\nports = [\"a\"]",
        "f.toml:2: xconnect[0].ports: invalid length 1, expected an array of length 2",
    ),
    ("[[xconnect]]\nports = [\"a\", \"b\"]", "f.toml:1: xconnect[0]: xconnect a - b: there is no port a"),
    (
        "[[xconnect]]\nports = [\"a\", \"a\"]",
        "f.toml:1: xconnect[0]: port a can't be cross-connected with itself",
    ),
];

#[test]
fn a_refusal_names_file_line_key_and_reason() {
    for (text, expected) in BAD {
        let said = refusal(text);
        assert!(said.starts_with(expected), "{text:?}\n said {said}\n not  {expected}");
        assert!(!said.contains('\n'), "one line: {said}");
        let windows = refusal(&text.replace('\n', "\r\n"));
        assert_eq!(windows, said, "CRLF changes nothing");
    }
}

#[test]
fn a_domain_is_read_and_what_does_not_fit_in_it_is_named() {
    let domain =
        |rest: &str| format!("{MEMIF}[[domain]]\nname = \"blue\"\ngateways = [\"10.0.0.1\"]\n{rest}");
    let port = "[[domain.port]]\nport = \"a\"\nmtu = 9000\nsource_check = \"off\"\n";
    let route = |prefix: &str| format!("[[domain.route]]\nprefix = \"{prefix}\"\nport = \"a\"\n");
    let state = parse(&domain(&format!("{port}{}{}", route("10.0.1.0/24"), route("::/0")))).unwrap().state;
    let (routing, a) = (state.routing(), "a".parse().unwrap());
    let member = &routing.members()[&a];
    assert_eq!((member.mtu.unwrap().get(), member.strict, member.domain.as_str()), (9000, false, "blue"));
    let routes: Vec<_> = routing.domains()[&member.domain].routes.keys().map(ToString::to_string).collect();
    assert_eq!(routes, ["10.0.1.0/24", "::/0"]);
    let cases = [
        (
            domain(&route("10.0.1.0/24")),
            "f.toml:7: domain[0]: domain blue: route 10.0.1.0/24: it leads to port a, which is not in this domain",
        ),
        (
            domain(&format!("{port}{}", route("10.0.1.1/24"))),
            "f.toml:15: domain[0].route[0].prefix: \"10.0.1.1/24\" has bits set behind its prefix length",
        ),
        (
            domain("mtu = 3\n"),
            "f.toml:10: domain[0].mtu: unknown field `mtu`, expected one of `name`, `gateways`, `port`, `route`",
        ),
        (
            domain("[[domain.port]]\nport = \"z\"\n"),
            "f.toml:7: domain[0]: domain blue: port z: there is no such port",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(refusal(&text), expected);
    }
}

#[test]
fn of_two_ports_that_collide_the_second_is_named() {
    let twice = format!("{MEMIF}{MEMIF}");
    assert_eq!(refusal(&twice), "f.toml:7: port[1]: port a is there twice");
    let other = MEMIF.replace("name = \"a\"", "name = \"b\"");
    let expected = "f.toml:7: port[1]: ports a and b both want memif /run/vwire/a.sock id 0";
    assert_eq!(refusal(&format!("{MEMIF}{other}")), expected);
}

#[test]
fn a_byte_order_mark_and_crlf_are_no_obstacle() {
    let text = format!("\u{feff}{}", MEMIF.replace('\n', "\r\n"));
    assert_eq!(parse(&text).unwrap().state.ports().len(), 1);
}

#[test]
fn a_file_that_cannot_be_read_is_refused_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    let said = |path: &Path| Config::load(path).unwrap_err().to_string();
    assert_eq!(said(&path), format!("{}: No such file or directory (os error 2)", path.display()));
    assert_eq!(said(dir.path()), format!("{}: is not a plain file", dir.path().display()));
    std::fs::write(&path, vec![b'#'; 10 << 20]).unwrap();
    assert!(said(&path).ends_with("has 10485760 bytes; at most 4194304 are read"));
    std::fs::write(&path, b"[log]\nfilter = \"\xff\"\n").unwrap();
    assert!(said(&path).ends_with("is not UTF-8 (line 2)"));
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert!(said(&fifo).ends_with("is not a plain file"), "and nobody waits for a writer");
}

#[test]
fn thousands_of_ports_are_read_and_one_too_many_is_refused() {
    let port = |i| {
        format!("[[port]]\nname = \"p{i}\"\nkind = \"memif\"\nrole = \"server\"\nsocket = \"@s\"\nid = {i}\n")
    };
    let text: String = (0..State::MAX_PORTS).map(port).collect();
    assert_eq!(parse(&text).unwrap().state.ports().len(), State::MAX_PORTS);
    let said = refusal(&format!("{text}{}", port(9999)));
    assert!(said.ends_with("4001 ports are too many; the limit is 4000"), "{said}");
}

proptest::proptest! {
    #[test]
    fn no_text_panics(text in "[\\[\\]a-z=\"{}., \n0-9_]{0,200}") {
        let _ = parse(&text);
    }
}

#[test]
fn an_underlay_is_a_port_with_addresses_and_its_exception_a_cross_connect() {
    let port = |name: &str| format!("[[port]]\nname = \"{name}\"\nkind = \"pipe\"\npipe = \"{name}\"\n");
    let tunnel = "[[port]]\nname = \"t\"\nkind = \"vxlan\"\nvni = 1\nlocal = \"192.0.2.1\"\nremote = \"192.0.2.2\"\nunderlay = \"nic\"\n";
    let ports = [port("nic"), port("host"), tunnel.to_owned()].concat();
    let underlay = "[[underlay]]\nport = \"nic\"\naddresses = [\"192.0.2.1/24\"]\ngateways = [\"192.0.2.254\"]\nmtu = 9000\n\
                    mac = \"02:00:00:00:00:07\"\nexception = \"host\"\n";
    let state = parse(&format!("{ports}{underlay}")).unwrap().state;
    let spec = &state.underlays()[&"nic".parse().unwrap()];
    assert_eq!((spec.mtu.get(), spec.mac.unwrap().to_string()), (9000, "02:00:00:00:00:07".to_owned()));
    assert_eq!(state.xconnects().iter().map(ToString::to_string).collect::<Vec<_>>(), ["host - nic"]);

    let refused = |edit: &dyn Fn(String) -> String| refusal(&edit(format!("{ports}{underlay}")));
    assert_eq!(
        refused(&|text| text.replace("local = \"192.0.2.1\"", "local = \"192.0.2.9\"")),
        "f.toml:9: port[2]: port t: local: 192.0.2.9 is not an address of underlay nic, which has 192.0.2.1/24"
    );
    assert_eq!(
        refused(&|text| text.replace("underlay]]\nport = \"nic\"", "underlay]]\nport = \"gone\"")),
        "f.toml:16: underlay[0]: xconnect gone - host: there is no port gone"
    );
    assert_eq!(
        refused(&|text| text.replace("underlay = \"nic\"", "underlay = \"host\"")),
        "f.toml:9: port[2]: port t: underlay: port host is no underlay; describe it as one, with its addresses"
    );
    assert_eq!(
        refused(&|text| text.replace("exception = \"host\"", "exception = \"nic\"")),
        "f.toml:16: underlay[0]: exception: port nic can't be cross-connected with itself"
    );
    assert!(refused(&|text| format!("{text}{underlay}")).contains("port: nic has two underlays"));
    assert!(refused(&|text| text.replace("mtu = 9000", "mtu = 100")).contains("576 to 65535"));
}
