//! What the API is told by those who mean ill or know no better: refused with the right code and a reason,
//! and nothing changes.

mod support;

use std::io::Write;
use std::time::Duration;

use support::*;
use tonic::Code;
use vwire_proto::dataplane::v1 as pb;

#[test]
fn bad_requests_are_refused_with_the_field_and_change_nothing() {
    run(async {
        let mut rig = Rig::new().await;
        rig.apply(vec![set(pipe("a", "pa")), set(pipe("b", "pb")), join("a", "b")]).await.unwrap();
        let before = rig.snapshot().await;
        let nothing = pb::Op { op: None };
        let kindless = set(pb::Port { name: "x".into(), kind: None, ..Default::default() });
        let nul = set(pipe("x\0y", "p"));
        let long = set(pipe(&"x".repeat(64 << 10), "p"));
        let cases = vec![
            (vec![nothing], Code::InvalidArgument, "ops[0]: says nothing to do"),
            (
                vec![kindless],
                Code::InvalidArgument,
                "ops[0].set_port.kind: is needed: memif, kernel, af_xdp, vxlan, pipe or dpdk",
            ),
            (
                vec![set(pipe("c", "pc")), nul],
                Code::InvalidArgument,
                "ops[1].set_port.name: a port's name has 1 to 63 bytes of A-Z a-z 0-9 . _ -; \"x\\0y\" does not",
            ),
            (vec![remove("zz")], Code::NotFound, "there is no port zz"),
            (
                vec![remove("../a")],
                Code::InvalidArgument,
                "ops[0].remove_port: a port's name has 1 to 63 bytes of A-Z a-z 0-9 . _ -; \"../a\" does not",
            ),
            (vec![remove("a")], Code::InvalidArgument, "xconnect a - b: there is no port a"),
            (vec![part("a", "zz")], Code::NotFound, "there is no xconnect a - zz"),
            (
                vec![set(pipe("c", "pc")), join("c", "zz")],
                Code::InvalidArgument,
                "xconnect c - zz: there is no port zz",
            ),
            (
                vec![join("a", "a")],
                Code::InvalidArgument,
                "ops[0].add_xconnect.b: port a can't be cross-connected with itself",
            ),
            (
                vec![set(pipe("c", "pc")), join("a", "c")],
                Code::InvalidArgument,
                "port a can be in one xconnect, not in both a - b and a - c",
            ),
            (vec![remove("a"); 5000], Code::InvalidArgument, "ops: at most 4096 are possible, not 5000"),
        ];
        for (ops, code, message) in cases {
            refused(rig.apply(ops).await, code, message);
        }
        let status = rig.apply(vec![long]).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().len() < 400, "a long name is cut in the answer");
        let none = pb::ReplaceRequest { base_generation: None, state: None };
        refused(
            rig.client.replace(none).await,
            Code::InvalidArgument,
            "state: is needed, if only an empty one",
        );
        assert_eq!(rig.snapshot().await, before);
    });
}

#[test]
fn more_than_the_limits_is_refused() {
    run(async {
        let mut rig = Rig::new().await;
        let ports = (0..4001).map(|i| pipe(&format!("p{i}"), &format!("p{i}"))).collect();
        let state = pb::State { ports, ..Default::default() };
        let status = rig.replace(state).await.unwrap_err();
        assert_eq!(status.message(), "state: 4001 ports are too many; the limit is 4000");
        let huge = pipe(&"x".repeat(41 << 20), "p");
        let status = rig.apply(vec![set(huge)]).await.unwrap_err();
        assert!(matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted), "{status:?}");
        assert_eq!(rig.snapshot().await.state.unwrap().ports.len(), 0);
    });
}

#[test]
fn a_system_that_says_no_is_quoted() {
    run(async {
        let mut rig = Rig::new().await;
        let vxlan = |local: &str| {
            let vxlan = pb::Vxlan {
                vni: 1,
                local: local.into(),
                remote: "198.51.100.2".into(),
                ..Default::default()
            };
            set(pb::Port { name: "t".into(), kind: Some(pb::port::Kind::Vxlan(vxlan)), ..Default::default() })
        };
        let status = rig.apply(vec![vxlan("198.51.100.1")]).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        let begin = "port t: underlay 198.51.100.1:4789: no interface here has this address";
        assert!(status.message().starts_with(begin), "{}", status.message());
        std::fs::write(rig.path("file"), "precious").unwrap();
        let file = rig.path("file").display().to_string();
        let status =
            rig.apply(vec![set(memif("m", pb::memif::Role::Server, file.clone()))]).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains("it is left alone"), "{}", status.message());
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
        let missing = memif("m", pb::memif::Role::Server, "fd:987654");
        let message = "port m: fd:987654 is not open; start the engine with that descriptor";
        refused(rig.apply(vec![set(missing)]).await, Code::InvalidArgument, message);
    });
}

#[test]
fn noise_on_the_socket_disturbs_nobody() {
    run(async {
        let mut rig = Rig::new().await;
        let mut silent = Vec::new();
        for i in 0..100u8 {
            let mut stream = std::os::unix::net::UnixStream::connect(rig.path("api.sock")).unwrap();
            let _ = stream.write_all(&[i; 300]);
            silent.push(stream);
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
        rig.apply(vec![set(pipe("a", "pa"))]).await.unwrap();
        drop(silent);
        assert_eq!(rig.snapshot().await.state.unwrap().ports.len(), 1);
    });
}
