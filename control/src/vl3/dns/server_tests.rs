//! Against dig, of the Debian package bind9-dnsutils.

use std::process::Command;

use hickory_resolver::proto::rr::Name;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::directory::Naming;
use super::*;

struct Rig {
    directory: Arc<Directory>,
    own: watch::Sender<Option<IpAddr>>,
    server: Server,
    registry: Registry,
}

impl Rig {
    /// At 127.0.0.`n`, any port.
    async fn start(n: u8) -> Self {
        let directory = Arc::new(Directory::new(Naming {
            templates: vec![r#"{{ index .Labels "podName" }}.{{ .NetworkService }}."#.parse().unwrap()],
            services: vec!["vl3".into()],
            ttl: super::super::TTL,
        }));
        directory.set_prefixes(["172.16.0.0/16".parse().unwrap(), "fd00::/64".parse().unwrap()]);
        let (own, receiver) = watch::channel(None);
        let mut registry = Registry::default();
        let metrics = Arc::new(Metrics::new(&mut registry));
        let setup = Setup {
            directory: Arc::clone(&directory),
            own: receiver,
            namespace: Namespace::own().unwrap(),
            port: 0,
            metrics,
        };
        let rig = Self { directory, own, server: Server::start(setup), registry };
        rig.own.send_replace(Some(IpAddr::from([127, 0, 0, n])));
        rig.address().await;
        rig
    }

    async fn address(&self) -> SocketAddr {
        let mut listening = self.server.listening();
        let waited = listening.wait_for(Option::is_some);
        let patience = Duration::from_secs(30);
        tokio::time::timeout(patience, waited).await.expect("it listens").unwrap().unwrap()
    }

    fn set(&self, client: &str, addresses: &[&str]) {
        let name = Name::from_ascii(format!("{client}.vl3.")).unwrap();
        let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        self.directory.records.set(client, &[name], &addresses);
    }

    async fn dig(&self, arguments: &str) -> String {
        let address = self.address().await;
        let mut command = Command::new("dig");
        command.args([format!("@{}", address.ip()), "-p".into(), address.port().to_string()]);
        // Two tries of 10 s: the machine may be busy, and loopback loses nothing.
        command.args(["+tries=2", "+time=10"]).args(arguments.split_whitespace());
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap();
        String::from_utf8(output.expect("dig, of the Debian package bind9-dnsutils").stdout).unwrap()
    }

    /// The answers of `dig +short`, in the order of their text.
    async fn short(&self, arguments: &str) -> Vec<String> {
        let said = self.dig(&format!("+short {arguments}")).await;
        let mut lines: Vec<String> = said.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    /// `status: NXDOMAIN`, as dig calls it.
    async fn status(&self, arguments: &str) -> String {
        let said = self.dig(arguments).await;
        let status = said.split("status: ").nth(1).and_then(|rest| rest.split(',').next());
        status.unwrap_or_else(|| panic!("no answer: {said}")).to_owned()
    }

    fn counted(&self, outcome: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let line = format!("dns_questions_total{{outcome=\"{outcome}\"}} ");
        text.lines().find_map(|text| text.strip_prefix(&line)).map_or(0, |count| count.parse().unwrap())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dig_finds_clients_by_name_and_by_address_until_they_leave() {
    let rig = Rig::start(2).await;
    rig.set("pod-1", &["172.16.1.2", "fd00::2"]);
    assert_eq!(rig.short("pod-1.vl3 A").await, ["172.16.1.2"]);
    assert_eq!(rig.short("+tcp POD-1.VL3 AAAA").await, ["fd00::2"]);
    assert_eq!(rig.short("-x 172.16.1.2").await, ["pod-1.vl3."]);
    assert_eq!(rig.short("-x fd00::2").await, ["pod-1.vl3."]);
    assert_eq!(rig.short("+notcp pod-1.vl3 ANY").await, ["172.16.1.2", "fd00::2"]);
    let whole = rig.dig("pod-1.vl3 A").await;
    assert!(
        whole.contains("flags: qr aa rd ra")
            && whole.contains("EDNS: version: 0")
            && whole.contains("udp: 1232"),
        "{whole}"
    );
    assert!(whole.contains("\t60\tIN\tA\t172.16.1.2"), "{whole}");

    assert_eq!(rig.status("pod-1.vl3 MX").await, "NOERROR");
    assert_eq!(rig.short("pod-1.vl3 MX").await, Vec::<String>::new());
    assert_eq!(rig.status("vl3 A").await, "NOERROR");
    assert_eq!(rig.status("pod-2.vl3 A").await, "NXDOMAIN");
    assert_eq!(rig.status("-x 172.16.1.3").await, "NXDOMAIN");
    assert_eq!(rig.status("www.example. A").await, "REFUSED");
    assert_eq!(rig.status("+opcode=update pod-1.vl3 A").await, "NOTIMP");
    assert_eq!(rig.status("+edns=1 +noednsnegotiation pod-1.vl3 A").await, "BADVERS");
    assert!(rig.dig("vl3 AXFR").await.contains("Transfer failed"));

    rig.directory.records.remove("pod-1");
    assert_eq!(rig.status("pod-1.vl3 A").await, "NXDOMAIN");
    assert_eq!(rig.status("-x 172.16.1.2").await, "NXDOMAIN");
    assert!(rig.counted("answered") >= 6 && rig.counted("no_name") >= 4, "counted");
    assert!(rig.counted("no_data") >= 3 && rig.counted("refused") >= 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_into_a_datagram_comes_by_tcp() {
    let rig = Rig::start(2).await;
    let name = Name::from_ascii("many.vl3.").unwrap();
    for client in 0..4_u8 {
        let addresses: Vec<IpAddr> = (0..60).map(|n| IpAddr::from([172, 16, client, n])).collect();
        rig.directory.records.set(&format!("c{client}"), std::slice::from_ref(&name), &addresses);
    }
    let cut = rig.dig("+ignore many.vl3 A").await;
    assert!(cut.contains("flags: qr aa tc rd ra") && cut.contains("ANSWER: 0"), "{cut}");
    assert_eq!(rig.short("many.vl3 A").await.len(), 240);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_other_endpoints_are_asked_for_once() {
    let (one, other) = (Rig::start(2).await, Rig::start(3).await);
    // Each is the other's peer: a question that went round would never end.
    one.directory.set_peers("peers", [other.address().await]);
    other.directory.set_peers("peers", [one.address().await]);
    one.set("near", &["172.16.1.2"]);
    other.set("far", &["172.16.2.2", "fd00::2:2"]);
    assert_eq!(one.short("near.vl3 A").await, ["172.16.1.2"]);
    assert_eq!(one.short("far.vl3 A").await, ["172.16.2.2"]);
    assert_eq!(one.short("+tcp far.vl3 AAAA").await, ["fd00::2:2"]);
    assert_eq!(one.short("-x 172.16.2.2").await, ["far.vl3."]);
    assert_eq!(other.short("near.vl3 A").await, ["172.16.1.2"]);
    let whole = one.dig("far.vl3 A").await;
    assert!(whole.contains("flags: qr rd ra;"), "not ours to be sure of: {whole}");
    assert_eq!(one.status("far.vl3 TXT").await, "NOERROR");
    assert_eq!(one.status("none.vl3 A").await, "NXDOMAIN");
    assert_eq!(one.status("www.example A").await, "REFUSED");
    assert_eq!(one.status("+norecurse far.vl3 A").await, "NXDOMAIN", "only what it knows itself");
    let large: Vec<IpAddr> = (0..60).map(|n| IpAddr::from([172, 16, 3, n])).collect();
    for part in 0..3 {
        let name = Name::from_ascii("large.vl3.").unwrap();
        other.directory.records.set(&format!("l{part}"), &[name], &large[part * 20..][..20]);
    }
    let all = one.short("large.vl3 A").await;
    assert_eq!(all.len(), 60);
    // A peer that is silent may be the one that has the name; one that has it is enough.
    let dead = std::net::UdpSocket::bind("127.0.0.4:0").unwrap();
    one.directory.set_peers("peers", [other.address().await, dead.local_addr().unwrap()]);
    assert_eq!(one.short("far.vl3 A").await, ["172.16.2.2"]);
    assert_eq!(one.status("none.vl3 A").await, "SERVFAIL");
    other.directory.records.remove("far");
    one.directory.set_peers("peers", [other.address().await]);
    assert_eq!(one.status("far.vl3 A").await, "NXDOMAIN", "gone with its client");
}

#[tokio::test]
async fn what_is_no_question_is_counted_and_harms_nobody() {
    let rig = Rig::start(2).await;
    rig.set("pod-1", &["172.16.1.2"]);
    let address = rig.address().await;
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    // Nothing, too little, an answer, a header that promises a question.
    for bytes in [&b""[..], b"x", &[0xff; 600], &[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]] {
        socket.send_to(bytes, address).await.unwrap();
    }
    let mut buffer = [0; 512];
    let received = tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut buffer)).await;
    let length = received.expect("an answer to the last").unwrap();
    assert_eq!((&buffer[..2], buffer[3] & 0x0f, length), (&[0, 7][..], 1, 12), "FORMERR");
    assert_eq!((rig.counted("malformed"), rig.counted("no_question")), (1, 3));
    // By TCP, what is no question ends the connection.
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(&[0, 3, 1, 2, 3]).await.unwrap();
    assert_eq!(stream.read(&mut buffer).await.unwrap(), 0);
    // More connections than one may have: the further ones are closed, and others still answered by UDP.
    let mut streams = Vec::new();
    for _ in 0..40 {
        streams.push(tokio::net::TcpStream::connect(address).await.unwrap());
    }
    for stream in &mut streams[16..] {
        assert!(matches!(stream.read(&mut buffer).await, Ok(0) | Err(_)));
    }
    assert_eq!(rig.short("pod-1.vl3 A").await, ["172.16.1.2"]);
    assert_eq!(rig.counted("overload"), 24);
}

#[tokio::test]
async fn it_follows_its_address() {
    let rig = Rig::start(2).await;
    let before = rig.address().await;
    rig.own.send_replace(Some(IpAddr::from([127, 0, 0, 3])));
    let mut listening = rig.server.listening();
    let moved = listening.wait_for(|address| address.is_some_and(|address| address.ip() != before.ip()));
    let moved = tokio::time::timeout(Duration::from_secs(10), moved).await.unwrap().unwrap().unwrap();
    rig.set("pod-1", &["172.16.1.2"]);
    assert_eq!(
        (rig.short("pod-1.vl3 A").await, moved.ip()),
        (vec!["172.16.1.2".into()], [127, 0, 0, 3].into())
    );
    assert!(tokio::net::TcpStream::connect(before).await.is_err(), "nobody is there any more");
    rig.own.send_replace(None);
    let gone = rig.server.listening().wait_for(Option::is_none).await.is_ok();
    assert!(gone && tokio::net::TcpStream::connect(moved).await.is_err());
}
