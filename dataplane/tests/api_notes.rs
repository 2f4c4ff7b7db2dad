//! What a control process leaves with a port: it comes back unchanged, and never disturbs the port.

mod support;

use support::*;
use tonic::Code;
use vwire_proto::dataplane::v1 as pb;

fn noted(port: pb::Port, note: &[u8]) -> pb::Port {
    pb::Port { note: note.to_vec(), ..port }
}

fn set_note(port: &str, note: &[u8]) -> pb::Op {
    pb::Op { op: Some(pb::op::Op::SetNote(pb::SetNote { port: port.into(), note: note.to_vec() })) }
}

async fn notes(rig: &mut Rig) -> Vec<(String, Vec<u8>)> {
    rig.snapshot().await.state.unwrap().ports.into_iter().map(|port| (port.name, port.note)).collect()
}

#[test]
fn a_note_changes_and_its_port_is_not_touched() {
    run(async {
        let mut rig = Rig::new().await;
        let made = rig.apply(vec![set(noted(pipe("a", "pa"), b"one")), set(pipe("b", "pb")), join("a", "b")]);
        let made = made.await.unwrap();
        let (mut a, mut b) = (rig.far_end("pa"), rig.far_end("pb"));
        passes(&mut a, &mut b, 10).await;
        assert_eq!(rig.apply(vec![set_note("a", b"two \0\xff")]).await.unwrap(), made + 1);
        assert_eq!(notes(&mut rig).await, [("a".into(), b"two \0\xff".to_vec()), ("b".into(), vec![])]);
        // The same by setting the port, and by replacing the state.
        rig.apply(vec![set(noted(pipe("a", "pa"), b"three"))]).await.unwrap();
        let mut state = two_pipes();
        state.ports[1].note = b"four".to_vec();
        let replaced = rig.replace(state.clone()).await.unwrap();
        assert_eq!(
            (replaced.generation, replaced.changes),
            (made + 3, vec!["note a".into(), "note b".into()])
        );
        assert_eq!(notes(&mut rig).await, [("a".into(), vec![]), ("b".into(), b"four".to_vec())]);
        assert_eq!(rig.replace(state).await.unwrap().generation, made + 3, "nothing had to change");
        passes(&mut a, &mut b, 10).await;
        assert_eq!(rig.stats("a").await.rx_packets, 20, "the port is the one that it was");
    });
}

#[test]
fn a_note_goes_with_its_port_and_a_failed_change_leaves_it() {
    run(async {
        let mut rig = Rig::new().await;
        rig.apply(vec![set(noted(pipe("a", "pa"), b"one"))]).await.unwrap();
        let missing = rig.apply(vec![set_note("a", b"two"), set_note("z", b"x")]).await;
        refused(missing, Code::NotFound, "there is no port z");
        let impossible = memif("m", pb::memif::Role::Server, "/dev/null/x.sock");
        rig.apply(vec![set_note("a", b"two"), set(impossible)]).await.unwrap_err();
        assert_eq!(notes(&mut rig).await, [("a".into(), b"one".to_vec())]);
        rig.apply(vec![remove("a")]).await.unwrap();
        rig.apply(vec![set(pipe("a", "pa"))]).await.unwrap();
        assert_eq!(notes(&mut rig).await, [("a".into(), vec![])]);
    });
}

#[test]
fn notes_have_limits_that_are_said() {
    run(async {
        let mut rig = Rig::new().await;
        let long = rig.apply(vec![set(noted(pipe("a", "pa"), &[0; 16_385]))]).await;
        let why = "a note has at most 16384 bytes; this one has 16385";
        refused(long, Code::InvalidArgument, &format!("ops[0].set_port.note: {why}"));
        rig.apply(vec![set(pipe("a", "pa"))]).await.unwrap();
        let long = rig.apply(vec![set_note("a", &[0; 16_385])]).await;
        refused(long, Code::InvalidArgument, &format!("ops[0].set_note.note: {why}"));
        // One byte more than all ports may have together, over two requests.
        let socket = rig.path("m.sock").display().to_string();
        let server = |i: u32| {
            let mut port = memif(&format!("p{i}"), pb::memif::Role::Server, socket.clone());
            if let Some(pb::port::Kind::Memif(memif)) = &mut port.kind {
                memif.id = i;
            }
            noted(port, &[7; 16_384])
        };
        let ports = (0..2048).map(server).chain([pipe("a", "pa")]).collect();
        rig.replace(pb::State { ports, ..Default::default() }).await.unwrap();
        let limit = "33554433 bytes of notes are too many; the limit is 33554432 for all ports together";
        refused(rig.apply(vec![set_note("a", b"x")]).await, Code::ResourceExhausted, limit);
        rig.apply(vec![set_note("p0", b""), set_note("a", b"x")]).await.unwrap();
        assert_eq!(
            notes(&mut rig).await.iter().map(|(_, note)| note.len()).sum::<usize>(),
            2047 * 16_384 + 1
        );
    });
}

#[test]
fn each_engine_has_an_identity_of_its_own() {
    run(async {
        let (mut one, mut other) = (Rig::new().await, Rig::new().await);
        let id = one.snapshot().await.instance;
        one.apply(vec![set(pipe("a", "pa"))]).await.unwrap();
        assert_eq!(one.snapshot().await.instance, id);
        assert_ne!((id, other.snapshot().await.instance), (0, id));
        assert_ne!(other.snapshot().await.instance, id);
    });
}
