//! An engine that has run out of descriptors: newcomers are turned away with a reason, those who are there notice nothing, and it
//! recovers by itself.

mod adversity_support;

use adversity_support::*;
use vwire_proto::dataplane::v1 as pb;

/// Leaves the engine exactly `spare` descriptors to open.
fn leave(engine: &Engine, spare: u64) {
    let place = format!("/proc/{}/fd", engine.pid());
    let number = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.unwrap().file_name().to_str().and_then(|name| name.parse::<u64>().ok()).unwrap()
    };
    let used: Vec<u64> = std::fs::read_dir(place).unwrap().map(number).collect();
    // The lowest numbers are given out first, and the limit is on the number.
    let free_below = |limit: u64| limit - used.iter().filter(|fd| **fd < limit).count() as u64;
    let limit = (0..).find(|limit| free_below(*limit) == spare).unwrap();
    set_limit(engine, limit);
}

fn set_limit(engine: &Engine, number: u64) {
    let limit = libc::rlimit { rlim_cur: number, rlim_max: 4096 };
    // SAFETY: prlimit reads one rlimit at the address given, and writes none.
    let done =
        unsafe { libc::prlimit(engine.pid() as i32, libc::RLIMIT_NOFILE, &limit, std::ptr::null_mut()) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// A client that keeps trying, until it was told `reason`.
fn is_told(client: &mut Client, reason: &str) {
    until(&format!("the client being told {reason:?}"), || {
        client.tend();
        assert!(client.link.is_none(), "it was not refused");
        client.told.iter().any(|told| told.contains(reason)).then_some(())
    });
}

#[test]
fn an_engine_without_descriptors_refuses_newcomers_only_and_recovers() {
    let ports = wire("x", "y") + &wire("n1", "n2");
    let mut engine = Engine::start(&ports);
    let neighbour = Neighbour::start(&mut engine);
    let before = engine.holdings();

    // A link takes its control socket, its region while it is mapped, and the interrupt of each of its two rings.
    let mut x = {
        leave(&engine, 0);
        let mut x = Client::new(&engine.socket("x"));
        x.tend();
        let reason = engine.wait_reason("x", "Too many open files");
        assert!(reason.contains("accept"), "{reason}");
        assert!(
            engine.log().contains("nobody can connect: "),
            "and the log says it to those who only read that"
        );
        x
    };
    neighbour.carries(500);
    for (spare, reason) in [
        (1, "ADD_REGION with more file descriptors than one, or than this process may open"),
        (2, "ADD_RING with more file descriptors than one, or than this process may open"),
        (3, "ADD_RING with more file descriptors than one, or than this process may open"),
    ] {
        leave(&engine, spare);
        is_told(&mut x, reason);
        x = Client::new(&engine.socket("x"));
        neighbour.carries(500);
    }
    drop(x);
    engine.wait_up("x", false);
    wait_until("the refused to have gone", || engine.holdings().descriptors == before.descriptors);

    // What needs more than there is fails as a whole, and by name.
    leave(&engine, 0);
    let socket = engine.path("new.sock").display().to_string();
    let memif = pb::Memif { role: pb::memif::Role::Server.into(), socket, ..Default::default() };
    let port =
        pb::Port { name: "new".into(), kind: Some(pb::port::Kind::Memif(memif)), ..Default::default() };
    let refused = engine.try_apply(vec![pb::Op { op: Some(pb::op::Op::SetPort(port.clone())) }]).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused:?}");
    assert!(refused.message().starts_with("port new: ") && refused.message().contains("Too many open files"));
    assert_eq!(engine.holdings().descriptors, before.descriptors);

    // Just enough, and those who waited get it without being asked again.
    let mut x = Client::new(&engine.socket("x"));
    x.tend();
    engine.wait_reason("x", "Too many open files");
    leave(&engine, 4);
    x.wait();
    let mut y = Client::new(&engine.socket("y"));
    y.tend();
    engine.wait_reason("y", "Too many open files");
    set_limit(&engine, 4096);
    y.wait();
    engine.wait_up("x", true);
    engine.wait_up("y", true);
    exchange(&mut x, &mut y, 0xaa00, 1000);
    engine.try_apply(vec![pb::Op { op: Some(pb::op::Op::SetPort(port)) }]).unwrap();
    neighbour.finish(&engine);
}
