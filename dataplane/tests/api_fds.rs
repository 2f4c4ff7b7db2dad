//! File descriptors beside the API's stream: namespaces, sockets and taps from elsewhere, and what is
//! refused.

mod support;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::time::Instant;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use support::*;
use tonic::Code;
use vwire_proto::dataplane::v1 as pb;

/// A network namespace that is gone with this.
struct Netns(String);

impl Netns {
    fn new(name: &str) -> Self {
        let name = format!("vw-{name}-{}", std::process::id());
        ip(&["netns", "add", &name]);
        Self(name)
    }

    fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }

    fn links(&self) -> String {
        ip(&["-n", &self.0, "-o", "address"])
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn ip(args: &[&str]) -> String {
    let output = Command::new("ip").args(args).output().unwrap();
    assert!(output.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn kernel_at(netns: &str) -> pb::Op {
    let mut port = kernel("k", "nsm-1", netns);
    if let Some(pb::port::Kind::Kernel(kernel)) = &mut port.kind {
        kernel.addresses = vec!["10.60.1.2/30".into(), "2001:db8::2/64".into()];
        kernel.mtu = 1450;
    }
    set(port)
}

#[test]
fn an_interface_is_made_in_a_namespace_that_came_as_a_descriptor() {
    run(async {
        let mut rig = Rig::new().await;
        let netns = Netns::new("fd");
        // As Go's components do: opened without the right to do anything with it.
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let path_only = rustix::fs::open(netns.path(), flags, rustix::fs::Mode::empty()).unwrap();
        let inode = rig.fds.send(&path_only).unwrap().to_string();
        rig.apply(vec![kernel_at(&inode)]).await.unwrap();
        let links = netns.links();
        assert!(
            links.contains("nsm-1") && links.contains("10.60.1.2/30") && links.contains("2001:db8::2/64"),
            "{links}"
        );
        let generation = rig.snapshot().await.generation;
        assert_eq!(
            rig.apply(vec![kernel_at(&inode)]).await.unwrap(),
            generation,
            "what agrees needs no descriptor"
        );
        rig.apply(vec![remove("k")]).await.unwrap();
        assert!(!netns.links().contains("nsm-1"), "the interface goes with the port");
    });
}

#[test]
fn an_interface_is_made_in_a_namespace_given_by_path() {
    run(async {
        let mut rig = Rig::new().await;
        let netns = Netns::new("path");
        rig.apply(vec![kernel_at(&netns.path())]).await.unwrap();
        assert!(netns.links().contains("nsm-1"));
        let second = kernel("other", "nsm-1", netns.path());
        let status = rig.apply(vec![set(second)]).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(
            status.message().contains("ports k and other both want interface nsm-1"),
            "{}",
            status.message()
        );
    });
}

#[test]
fn descriptors_of_the_wrong_kind_are_refused() {
    run(async {
        let mut rig = Rig::new().await;
        let cases = [
            ("/dev/null", "is not a namespace"),
            ("/proc/self/ns/uts", "is a namespace, but not a network namespace"),
            ("/proc/self/ns/net", "is the engine's own; leave netns out to mean that one"),
        ];
        for (path, what) in cases {
            let inode = rig.fds.send(File::open(path).unwrap()).unwrap().to_string();
            let message = format!("port k: netns {inode} {what}");
            refused(rig.apply(vec![kernel_at(&inode)]).await, Code::InvalidArgument, &message);
        }
        let inode = rig.fds.send(File::open("/dev/null").unwrap()).unwrap().to_string();
        let status = rig.apply(vec![set(memif("m", pb::memif::Role::Server, inode))]).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(
            status.message().starts_with("port m: the file descriptor handed over is no"),
            "{}",
            status.message()
        );
        assert_eq!(rig.snapshot().await.links, []);
    });
}

#[test]
fn a_descriptor_that_never_came_is_missed_within_its_time() {
    run(async {
        let mut rig = Rig::new().await;
        let begin = Instant::now();
        let message = "port k: no file descriptor for inode://4/99 came with this request; send it on the same connection first";
        refused(rig.apply(vec![kernel_at("inode://4/99")]).await, Code::FailedPrecondition, message);
        assert!(begin.elapsed() < PATIENCE / 2, "{:?}", begin.elapsed());
        for bad in ["inode://4", "inode://x/y", "inode://4/-1", "file:///proc/1/ns/net", "../ns"] {
            let status = rig.apply(vec![kernel_at(bad)]).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument);
            assert!(status.message().starts_with("ops[0].set_port.kernel.netns: "), "{}", status.message());
        }
    });
}

#[test]
fn a_descriptor_is_taken_by_the_request_that_names_it() {
    run(async {
        let mut rig = Rig::new().await;
        let netns = Netns::new("once");
        let inode = rig.fds.send(File::open(netns.path()).unwrap()).unwrap().to_string();
        rig.apply(vec![kernel_at(&inode)]).await.unwrap();
        rig.apply(vec![remove("k")]).await.unwrap();
        let status = rig.apply(vec![kernel_at(&inode)]).await.unwrap_err();
        assert!(status.message().contains("no file descriptor for"), "{}", status.message());
        rig.fds.send(File::open(netns.path()).unwrap()).unwrap();
        rig.apply(vec![kernel_at(&inode)]).await.unwrap();
    });
}

#[test]
fn a_port_made_of_a_descriptor_is_restored_when_its_successor_fails() {
    run(async {
        let mut rig = Rig::new().await;
        let netns = Netns::new("undo");
        let path = rig.path("their.sock");
        let listening = seqpacket();
        rustix::net::bind(&listening, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listening, 8).unwrap();
        let socket = rig.fds.send(&listening).unwrap().to_string();
        let inode = rig.fds.send(File::open(netns.path()).unwrap()).unwrap().to_string();
        rig.apply(vec![kernel_at(&inode), set(memif("m", pb::memif::Role::Server, socket))]).await.unwrap();
        let before = rig.snapshot().await;
        let elsewhere = memif("m", pb::memif::Role::Server, rig.path("m.sock").display().to_string());
        let status = rig.apply(vec![set(elsewhere), kernel_at("/run/netns/vw-no-such")]).await.unwrap_err();
        assert!(
            status.message().starts_with("port k: network namespace /run/netns/vw-no-such"),
            "{}",
            status.message()
        );
        assert_eq!(rig.snapshot().await, before);
        assert!(netns.links().contains("nsm-1") && netns.links().contains("10.60.1.2/30"));
        rig.apply(vec![set(memif("c", pb::memif::Role::Client, path.display().to_string()))]).await.unwrap();
        rig.wait_link("m", true).await;
    });
}

#[test]
fn a_missing_descriptor_is_noticed_before_anything_is_touched() {
    run(async {
        let mut rig = Rig::new().await;
        let netns = Netns::new("early");
        rig.apply(vec![kernel_at(&netns.path())]).await.unwrap();
        let mut links = rig.client.watch_links(pb::WatchLinksRequest {}).await.unwrap().into_inner();
        links.message().await.unwrap().unwrap();
        let status = rig.apply(vec![kernel_at("inode://4/99")]).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        rig.apply(vec![set(pipe("a", "pa"))]).await.unwrap();
        let event = links.message().await.unwrap().unwrap().event.unwrap();
        let pb::watch_links_response::Event::Changed(link) = event else { panic!("{event:?}") };
        assert_eq!(link.port, "a", "the link of k never changed");
    });
}

fn seqpacket() -> OwnedFd {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

#[test]
fn a_memif_listens_on_a_socket_that_another_process_opened() {
    run(async {
        let mut rig = Rig::new().await;
        let path = rig.path("their.sock");
        let listening = seqpacket();
        rustix::net::bind(&listening, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listening, 8).unwrap();
        let inode = rig.fds.send(&listening).unwrap().to_string();
        drop(listening);
        rig.apply(vec![set(memif("m", pb::memif::Role::Server, inode))]).await.unwrap();
        rig.apply(vec![set(memif("c", pb::memif::Role::Client, path.display().to_string()))]).await.unwrap();
        rig.wait_link("m", true).await;
        rig.apply(vec![remove("m")]).await.unwrap();
        assert!(path.exists(), "a socket that somebody else made is not removed");
    });
}

#[test]
fn a_memif_client_uses_a_connection_that_another_process_made() {
    run(async {
        let mut rig = Rig::new().await;
        let path = rig.path("m.sock");
        rig.apply(vec![set(memif("m", pb::memif::Role::Server, path.display().to_string()))]).await.unwrap();
        let connected = seqpacket();
        rustix::net::connect(&connected, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        let inode = rig.fds.send(&connected).unwrap().to_string();
        drop(connected);
        rig.apply(vec![
            set(memif("c", pb::memif::Role::Client, inode)),
            set(pipe("a", "pa")),
            set(pipe("b", "pb")),
        ])
        .await
        .unwrap();
        rig.wait_link("c", true).await;
        rig.apply(vec![join("a", "c"), join("m", "b")]).await.unwrap();
        rig.wait_link("m", true).await;
        let (mut a, mut b) = (rig.far_end("pa"), rig.far_end("pb"));
        passes(&mut a, &mut b, 10).await;
    });
}

#[test]
fn a_tap_that_another_process_made_becomes_a_port() {
    run(async {
        let mut rig = Rig::new().await;
        let netns = Netns::new("tap");
        let ns = File::open(netns.path()).unwrap();
        let spec = vwire_dataplane::port::kernel::KernelSpec {
            netns: Some(ns.into()),
            ..vwire_dataplane::port::kernel::KernelSpec::new("theirs")
        };
        let (parts, theirs) =
            vwire_dataplane::port::kernel::open(vwire_dataplane::port::PortIndex(0), &spec).unwrap();
        drop(parts);
        let device = rig.fds.send(theirs.queue().as_fd()).unwrap().to_string();
        let port = |ifname: &str, device: &str| {
            let kernel = pb::Kernel { ifname: ifname.into(), device: device.into(), ..Default::default() };
            set(pb::Port {
                name: "k".into(),
                kind: Some(pb::port::Kind::Kernel(kernel)),
                ..Default::default()
            })
        };
        let message = "port k: the descriptor is of interface theirs, not of mine";
        refused(rig.apply(vec![port("mine", &device)]).await, Code::InvalidArgument, message);
        rig.fds.send(theirs.queue().as_fd()).unwrap();
        rig.apply(vec![port("theirs", &device), set(pipe("a", "pa")), join("a", "k")]).await.unwrap();
        drop(theirs);
        let mut a = rig.far_end("pa");
        assert!(a.inject(&frame(1)));
        rig.wait_stats("k", |stats| stats.tx_packets > 0).await;
        rig.apply(vec![part("a", "k"), remove("k")]).await.unwrap();
        assert!(!netns.links().contains("theirs"), "nobody has it open any more");
    });
}
