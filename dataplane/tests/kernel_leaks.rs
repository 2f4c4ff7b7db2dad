//! Interfaces come and go without a trace. A program of its own, because it counts the process's descriptors. Needs root.

use vwire_dataplane::port::PortIndex;
use vwire_dataplane::port::kernel;

mod kernel_support;
use kernel_support::{Netns, spec};

/// Most of the time of making or deleting an interface the kernel waits for RCU, so threads do it at the same time.
const THREADS: usize = 10;
const EACH: usize = 100;

fn entries(directory: &str) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

fn come_and_go(netns: &Netns, name: &str, times: usize) {
    let wanted = spec(netns, name, &["10.60.1.2/30", "fd60::2/64"]);
    for _ in 0..times {
        let (parts, device) = kernel::open(PortIndex(0), &wanted).unwrap();
        drop((parts, device));
    }
}

#[test]
fn a_thousand_interfaces_leave_no_descriptor_thread_or_interface() {
    let netns = Netns::new();
    come_and_go(&netns, "nsm-first", 1); // makes the namespace that all the others are made in
    let count = || (entries("/proc/self/fd"), entries("/proc/self/task"));
    let before = count();
    std::thread::scope(|scope| {
        let netns = &netns;
        for thread in 0..THREADS {
            scope.spawn(move || come_and_go(netns, &format!("nsm-{thread}"), EACH));
        }
    });
    kernel_support::wait_until("as many descriptors and threads as before", || count() == before);
    assert!(netns.interfaces().is_empty());
}
