//! In front of a real name server.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use hickory_resolver::proto::op::{MessageType, OpCode, Query};
use hickory_resolver::proto::rr::RecordType;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// nsd with the zone `mesh.test`; ends with this.
struct Nsd {
    process: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Drop for Nsd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Nsd {
    async fn start() -> Self {
        let address = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (at, ip, port) = (folder.path().display(), address.ip(), address.port());
        let config = format!(
            "server:\n  username: \"\"\n  ip-address: {ip}@{port}\n  zonesdir: \"{at}\"\n  zonelistfile: \"{at}/zone.list\"\n  \
             xfrdfile: \"{at}/xfrd.state\"\n  xfrdir: \"{at}\"\n  database: \"\"\n  pidfile: \"{at}/nsd.pid\"\n  server-count: 1\n\
             remote-control:\n  control-enable: no\nzone:\n  name: mesh.test\n  zonefile: mesh.test.zone\n"
        );
        let texts: String = (0..40).map(|n| format!("large TXT \"{n:0>100}\"\n")).collect();
        let zone = format!(
            "$ORIGIN mesh.test.\n$TTL 60\n@ SOA ns hostmaster 1 60 60 60 60\n@ NS ns\nns A 127.0.0.1\ndb A 172.16.0.7\n{texts}"
        );
        std::fs::write(folder.path().join("nsd.conf"), config).unwrap();
        std::fs::write(folder.path().join("mesh.test.zone"), zone).unwrap();
        let file = folder.path().join("nsd.conf");
        let process = Command::new("nsd")
            .arg("-d")
            .arg("-c")
            .arg(file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nsd, of the Debian package nsd");
        let nsd = Self { process, address, _folder: folder };
        let up = async {
            while !by_tcp(nsd.address, "db.mesh.test.", RecordType::A)
                .await
                .is_ok_and(|a| !a.answers.is_empty())
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), up).await.expect("nsd answers");
        nsd
    }

    fn config(&self) -> DnsConfig {
        DnsConfig { dns_server_ips: vec![self.address.to_string()], search_domains: vec!["mesh.test".into()] }
    }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut question = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(name.parse().unwrap(), kind));
    question
}

async fn by_udp(server: SocketAddr, name: &str, kind: RecordType) -> Message {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let question = question(name, kind);
    socket.send_to(&question.to_vec().unwrap(), server).await.unwrap();
    let mut buffer = [0; 4096];
    let length =
        tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut buffer)).await.unwrap().unwrap();
    let answer = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!((answer.metadata.id, &answer.queries), (question.metadata.id, &question.queries));
    answer
}

async fn by_tcp(server: SocketAddr, name: &str, kind: RecordType) -> io::Result<Message> {
    let mut stream = tokio::net::TcpStream::connect(server).await?;
    let bytes = question(name, kind).to_vec().unwrap();
    stream.write_all(&[&(bytes.len() as u16).to_be_bytes()[..], &bytes].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Message::from_vec(&answer).map_err(io::Error::other)
}

fn addresses(answer: &Message) -> Vec<String> {
    let address = |record: &Record| match &record.data {
        RData::A(address) => Some(address.to_string()),
        _ => None,
    };
    answer.answers.iter().filter_map(address).collect()
}

async fn start(resolv_conf: Option<&Path>) -> Dns {
    let any = "127.0.0.1:0".parse().unwrap();
    Dns::start(any, Namespace::own().unwrap(), resolv_conf).await.unwrap()
}

#[tokio::test]
async fn names_of_a_connection_are_answered_by_its_server_until_it_is_closed() {
    let nsd = Nsd::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("resolv.conf");
    let before = "nameserver 192.0.2.1\n";
    // Nobody is asked there: a port that is closed answers faster than one that is far away.
    std::fs::write(&file, before.replace("192.0.2.1", "127.0.0.2")).unwrap();
    let before = std::fs::read_to_string(&file).unwrap();
    let dns = start(Some(&file)).await;
    assert!(std::fs::read_to_string(&file).unwrap().contains("\nnameserver 127.0.0.1\n"));
    dns.put("nsc-0", &[nsd.config()]);

    let whole = by_udp(dns.address(), "db.mesh.test.", RecordType::A).await;
    assert_eq!(addresses(&whole), ["172.16.0.7"]);
    let short = by_udp(dns.address(), "db.", RecordType::A).await;
    assert_eq!(addresses(&short), ["172.16.0.7"]);
    let alias = &short.answers[0];
    assert_eq!((alias.name.to_string().as_str(), alias.record_type()), ("db.", RecordType::CNAME));
    let none = by_udp(dns.address(), "nobody.mesh.test.", RecordType::A).await;
    assert_eq!(none.metadata.response_code, ResponseCode::NXDomain);
    let tcp = by_tcp(dns.address(), "db.", RecordType::A).await.unwrap();
    assert_eq!(addresses(&tcp), ["172.16.0.7"]);

    // More than fits into a datagram: the client is told, and gets it by TCP.
    let cut = by_udp(dns.address(), "large.mesh.test.", RecordType::TXT).await;
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    let all = by_tcp(dns.address(), "large.mesh.test.", RecordType::TXT).await.unwrap();
    assert_eq!(all.answers.len(), 40);

    dns.remove("nsc-0");
    let gone = by_udp(dns.address(), "db.mesh.test.", RecordType::A).await;
    assert_eq!(gone.metadata.response_code, ResponseCode::ServFail);
    drop(dns);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), before);
}

#[tokio::test]
async fn a_server_that_does_not_know_a_name_leaves_it_to_another() {
    let (one, other) = (Nsd::start().await, Nsd::start().await);
    let dns = start(None).await;
    // Two connections; the first's server refuses the other's domain.
    dns.put("nsc-0", &[DnsConfig { search_domains: vec!["else.test".into()], ..one.config() }]);
    dns.put("nsc-1", &[other.config()]);
    assert_eq!(addresses(&by_udp(dns.address(), "db.mesh.test.", RecordType::A).await), ["172.16.0.7"]);
    assert_eq!(addresses(&by_udp(dns.address(), "db.", RecordType::A).await), ["172.16.0.7"]);
}

#[tokio::test]
async fn what_is_no_question_harms_nobody() {
    let dns = start(None).await;
    dns.put(
        "nsc-0",
        &[DnsConfig {
            dns_server_ips: vec!["nonsense".into(), dns.address().to_string()],
            search_domains: vec!["..".into(), String::new()],
        }],
    );
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for bytes in [&b""[..], b"x", &[0xff; 600]] {
        socket.send_to(bytes, dns.address()).await.unwrap();
    }
    let mut two = question("a.test.", RecordType::A);
    two.add_query(Query::query("b.test.".parse().unwrap(), RecordType::A));
    socket.send_to(&two.to_vec().unwrap(), dns.address()).await.unwrap();
    let mut buffer = [0; 512];
    let length =
        tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut buffer)).await.unwrap().unwrap();
    let answer = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::FormErr);
    // Nobody is left to ask: it does not ask itself.
    let nobody = by_udp(dns.address(), "a.test.", RecordType::A).await;
    assert_eq!(nobody.metadata.response_code, ResponseCode::ServFail);
}
