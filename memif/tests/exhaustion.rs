//! What happens when a process may open no more. The only test of its process, whose limit it changes.

mod support;

use std::os::fd::AsFd;
use std::time::Duration;

use memif::{Dialer, Event};
use rustix::process::{Resource, Rlimit};
use support::raw::*;
use support::*;

#[test]
fn without_descriptors_only_newcomers_suffer_and_only_as_long() {
    let place = Place::new();
    let mut listener = listener(&place.socket());
    listener.add_interface(1, interface());
    let mut dialer = Dialer::new(place.socket(), dialer_config()).expect("a dialer");
    let (mut server, mut client) = connect(&mut listener, &mut dialer);

    let newcomer = Raw::connect(&place.socket());
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let open = highest_descriptor() + 1;
    let set = |current| {
        rustix::process::setrlimit(Resource::Nofile, Rlimit { current, ..limit }).expect("setrlimit")
    };
    set(Some(open));
    // Fill the holes below the highest too.
    let filler: Vec<_> =
        std::iter::from_fn(|| rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).ok()).collect();
    let reason = until_event(&mut listener, "the complaint", |event| match event {
        Event::Refused { id: None, peer: None, reason } => Some(reason.to_string()),
        other => panic!("{other:?}"),
    });
    assert!(reason.contains("accept: Too many open files"), "{reason}");
    // The waiting connection does not keep the listener busy: its descriptor is not readable meanwhile.
    assert!(!wait_readable(&[listener.as_fd()], Duration::ZERO));
    assert_traffic(&mut server, &mut client);

    // Room for the connection and not for the region that it brings.
    set(Some(open + 1));
    until("HELLO", || {
        wait_readable(&[listener.as_fd()], Duration::from_millis(10));
        listener.process();
        matches!(newcomer.hear(), Heard::Message(_)).then_some(())
    });
    let second = memif::message::Init { id: 1, ..init() };
    newcomer.say(&memif::message::Message::Init(second));
    drop(filler);
    let memory = memory(REGION);
    let filler: Vec<_> =
        std::iter::from_fn(|| rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).ok()).collect();
    newcomer.say_with(&add_region(0, REGION), &memory);
    let reason = until_event(&mut listener, "the refusal", |event| match event {
        Event::Refused { id: Some(1), reason, .. } => Some(reason.to_string()),
        other => panic!("{other:?}"),
    });
    assert_eq!(reason, "ADD_REGION with more file descriptors than one, or than this process may open");
    assert_traffic(&mut server, &mut client);

    drop((filler, memory, newcomer));
    set(limit.current);
    let mut config = dialer_config();
    config.id = 1;
    let mut another = Dialer::new(place.socket(), config).expect("a dialer");
    let (mut server_1, mut client_1) = connect(&mut listener, &mut another);
    assert_traffic(&mut server_1, &mut client_1);
    assert_traffic(&mut server, &mut client);
}

fn highest_descriptor() -> u64 {
    let number = |entry: std::io::Result<std::fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
    std::fs::read_dir("/proc/self/fd").expect("/proc").filter_map(number).max().expect("some")
}
