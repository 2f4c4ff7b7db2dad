//! What is refused, with what to do about it, and that nothing is left of a port. A program of its own, because it counts the process's
//! descriptors and pinned memory. Needs root.
#![cfg(feature = "af_xdp")]

mod af_xdp_support;

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use af_xdp_support::{Netns, refusal, run, spec, veth, wait_until};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use vwire_dataplane::port::PortIndex;
use vwire_dataplane::port::af_xdp::{self, AfXdpError, AfXdpSpec, CopyMode, QueueChoice, Steering};

static TURN: Mutex<()> = Mutex::new(());

fn pair() -> (Netns, Netns) {
    let (host, nics) = (Netns::new(), Netns::new());
    veth((&host, "eth0"), (&nics, "nic0"), &[], &[]);
    (host, nics)
}

/// Asserts what an error says, besides its kind.
fn says(error: &AfXdpError, words: &[&str]) {
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

#[test]
fn what_is_wrong_with_the_settings_is_said() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let base = || AfXdpSpec::new("nic0");
    for (spec, words) in [
        (AfXdpSpec { frame_size: 3000, ..base() }, ["frame_size", "2048 or 4096", "3000"]),
        (AfXdpSpec { ring_size: 1000, ..base() }, ["ring_size", "power of two", "1000"]),
        (AfXdpSpec { ring_size: 32, ..base() }, ["ring_size", "64 to 32768", "32"]),
        (AfXdpSpec { queues: QueueChoice::These(vec![]), ..base() }, ["queues", "1 to 64", "0"]),
        (AfXdpSpec { queues: QueueChoice::These(vec![1, 1]), ..base() }, ["queue", "1", "twice"]),
    ] {
        let error = refusal(&spec);
        assert!(matches!(error, AfXdpError::Setting(_)), "{error:?}");
        says(&error, &words);
    }
}

#[test]
fn an_interface_that_will_not_do_is_refused_with_the_alternative() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (_host, nics) = pair();
    let error = refusal(&spec(&nics, "nic7"));
    assert!(matches!(error, AfXdpError::NoInterface { .. }), "{error:?}");
    let error = refusal(&spec(&nics, "lo"));
    assert!(matches!(error, AfXdpError::Unsuitable { .. }), "{error:?}");
    says(&error, &["loopback", "kind = \"kernel\""]);
    nics.ip(&["tuntap", "add", "tun0", "mode", "tun"]);
    let error = refusal(&spec(&nics, "tun0"));
    assert!(matches!(error, AfXdpError::Unsuitable { .. }), "{error:?}");
    says(&error, &["not Ethernet"]);
    let error = refusal(&AfXdpSpec { queues: QueueChoice::These(vec![0, 5]), ..spec(&nics, "nic0") });
    assert!(matches!(error, AfXdpError::NoQueue { queue: 5, queues: 1, .. }), "{error:?}");
    says(&error, &["ethtool -l nic0"]);
    let error = refusal(&AfXdpSpec { workers: 3, ..spec(&nics, "nic0") });
    assert!(matches!(error, AfXdpError::TooFewQueues { workers: 3, queues: 1, .. }), "{error}");
    let error = refusal(&AfXdpSpec { mode: CopyMode::ZeroCopy, ..spec(&nics, "nic0") });
    assert!(matches!(error, AfXdpError::NoZeroCopy { .. }), "{error:?}");
    says(&error, &["mode = \"auto\""]);
    // None of them left anything that keeps the next from it.
    af_xdp::open(&spec(&nics, "nic0"), PortIndex(0)).unwrap();
}

#[test]
fn what_others_have_is_not_taken_from_them() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (_host, nics) = pair();
    let (device, parts) = af_xdp::open(&spec(&nics, "nic0"), PortIndex(0)).unwrap();
    let error = refusal(&spec(&nics, "nic0"));
    assert!(matches!(error, AfXdpError::ProgramAttached { .. }), "{error:?}");
    says(&error, &["ip -d link show nic0", "kind = \"kernel\""]);
    let error = refusal(&AfXdpSpec { mode: CopyMode::Generic, ..spec(&nics, "nic0") });
    assert!(matches!(error, AfXdpError::ProgramAttached { .. }), "{error:?}");
    // Its program is gone, but its socket has the queue.
    drop(device);
    let error = refusal(&spec(&nics, "nic0"));
    assert!(matches!(error, AfXdpError::QueueTaken { queue: 0, .. }), "{error:?}");
    drop(parts);
    af_xdp::open(&spec(&nics, "nic0"), PortIndex(0)).unwrap();
}

/// Runs `work` inside `netns` on a thread that lacks some capabilities.
fn without<T: Send>(netns: &Netns, lacking: CapabilitySet, work: impl FnOnce() -> T + Send) -> T {
    netns.inside(|| {
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(lacking);
        sets.permitted.remove(lacking);
        set_capabilities(None, sets).unwrap();
        work()
    })
}

#[test]
fn a_process_that_may_not_is_told_what_it_needs() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (_host, nics) = pair();
    let here = || AfXdpSpec { netns: None, ..spec(&nics, "nic0") };
    let bpf = CapabilitySet::BPF | CapabilitySet::SYS_ADMIN;
    // CAP_SYS_ADMIN stands in for most others.
    let admin = CapabilitySet::NET_ADMIN | CapabilitySet::SYS_ADMIN;
    for lacking in [bpf, admin, CapabilitySet::NET_RAW] {
        let error = without(&nics, lacking, || refusal(&here()));
        assert!(matches!(error, AfXdpError::NotPermitted { .. }), "without {lacking:?}: {error:?}");
        says(&error, &["CAP_NET_RAW", "CAP_NET_ADMIN", "CAP_BPF", "kind = \"kernel\""]);
    }
    let large = || AfXdpSpec { ring_size: 32_768, ..here() };
    let error = without(&nics, CapabilitySet::IPC_LOCK, || refusal(&large()));
    assert!(matches!(error, AfXdpError::Memory { .. }), "{error:?}");
    says(&error, &["ring_size", "LimitMEMLOCK="]);
}

/// One of the numbers of /proc/self/status, in kB.
fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// BPF objects live as long as a descriptor, or a link, program or pool that has one.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// `VWIRE_AF_XDP_ROUNDS` sets another number of rounds.
#[test]
fn ports_come_and_go_without_a_trace() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let rounds =
        std::env::var("VWIRE_AF_XDP_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(300);
    let (_host, nics) = pair();
    let round = |i: usize| {
        let steering = match i % 2 {
            0 => Steering::All,
            _ => Steering::Datagrams(vec!["10.70.0.2:4789".parse().unwrap()]),
        };
        let spec = AfXdpSpec { ring_size: 64, steering, ..spec(&nics, "nic0") };
        drop(af_xdp::open(&spec, PortIndex(0)).unwrap());
    };
    (0..20).for_each(round);
    let count = || (descriptors(), std::fs::read_dir("/proc/self/task").unwrap().count());
    wait_until("pinned memory is given back", || status("VmPin:") == 0);
    let (before, memory, start) = (count(), status("VmRSS:"), Instant::now());
    (0..rounds).for_each(round);
    let each = start.elapsed() / rounds as u32;
    wait_until("as many descriptors and threads as before", || count() == before);
    wait_until("pinned memory is given back", || status("VmPin:") == 0);
    let grown = status("VmRSS:").saturating_sub(memory);
    println!("{rounds} rounds of {each:?}; {grown} kB more resident");
    assert!(grown < 4096, "{grown} kB more after {rounds} rounds");
    assert!(!run(&nics, &["ip", "-d", "link", "show", "nic0"]).contains("prog/xdp"));
}
