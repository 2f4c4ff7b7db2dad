//! Engines that are killed, told to stop, or started twice. Needs root, for kernel interfaces.

mod adversity_support;
mod kernel_support;

use std::time::{Duration, Instant};

use adversity_support::*;
use kernel_support::Netns;
use vwire_dataplane::stats::Counters;
use vwire_proto::dataplane::v1 as pb;

/// A memif vWire, a vWire between a memif `m` and the kernel interface `k0` (10.60.1.2) of `netns`, and the admin port.
fn config(netns: &Netns) -> String {
    let kernel = format!(
        "[[port]]\nname = \"k\"\nkind = \"kernel\"\nifname = \"k0\"\nnetns = \"/run/netns/{}\"\naddresses = [\"10.60.1.2/30\"]\n",
        netns.name
    );
    wire("a", "b") + &memif_server("m") + &kernel + &join("m", "k")
}

/// An answer to the kernel's question for 10.60.1.1, and a datagram that the kernel then sends there.
fn kernel_traffic(netns: &Netns, m: &mut Client, text: &[u8]) {
    let socket = netns.inside(|| std::net::UdpSocket::bind("10.60.1.2:0")).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let _ = socket.send_to(text, "10.60.1.1:9");
        std::thread::sleep(Duration::from_millis(5));
        for frame in m.receive() {
            if frame.windows(text.len()).any(|part| part == text) {
                return;
            }
            if frame[12..14] == [8, 6] && frame[38..42] == [10, 60, 1, 1] {
                m.send_surely(&arp_answer(&frame));
            }
        }
        assert!(Instant::now() < deadline, "nothing comes from the kernel interface");
    }
}

/// RFC 826: sender and target swapped, with our address in between.
fn arp_answer(question: &[u8]) -> Vec<u8> {
    let ours = [2, 0, 0, 0, 0, 9];
    let mut answer = [&question[6..12], &ours, &[8, 6], &question[14..20], &[0, 2]].concat();
    answer.extend_from_slice(&[&ours[..], &question[38..42], &question[22..32]].concat());
    answer.resize(60, 0);
    answer
}

/// Keeps `count` frames or more going from `a` to `b`; returns how many came.
fn pour(a: &mut Client, b: &mut Client, count: u64) -> u64 {
    let (mut sent, mut came) = (0, 0);
    until("frames", || {
        for _ in 0..32 {
            sent += u64::from(a.send(&frame(1, sent)));
        }
        let got = b.receive();
        for bytes in &got {
            check(bytes);
        }
        came += got.len() as u64;
        (came >= count).then_some(came)
    })
}

#[test]
fn an_engine_that_is_killed_leaves_its_counts_and_its_successor_finds_everybody_again() {
    let netns = Netns::new();
    let mut engine = Engine::start_with(&config(&netns), None);
    let ends = ["a", "b", "m"].map(|port| Client::connected(&engine.socket(port)));
    let [mut a, mut b, mut m] = ends;
    ["a", "b", "m"].iter().for_each(|port| engine.wait_up(port, true));
    kernel_traffic(&netns, &mut m, b"before the crash");
    for round in 0..5 {
        let before = engine.stats("b").tx.0;
        let came = pour(&mut a, &mut b, 5000);
        engine.kill();
        // Nothing of what it counted is lost, and all of that is said by anybody who looks.
        let counters = Counters::open(&engine.path("stats")).unwrap();
        let of = |port: &str| counters.port(find(&counters, port)).snapshot();
        let waiting = b.receive().len() as u64;
        // Except for the burst that it died in, which may have been shown before it was counted.
        let near = |a: u64, b: u64| a.abs_diff(b) <= 64;
        assert!(
            near(of("b").tx.0 - before, came + waiting),
            "round {round}: {came} and {waiting}, {:?}",
            of("b")
        );
        assert!(near(of("a").rx.0, of("b").tx.0 + of("b").dropped_in_all()));
        let looked = std::process::Command::new(env!("CARGO_BIN_EXE_vwire-dataplane"))
            .args(["stats", "--path"])
            .arg(engine.path("stats"))
            .output()
            .unwrap();
        let text = String::from_utf8(looked.stdout).unwrap();
        assert!(
            looked.status.success() && text.contains(&format!("process {}, gone", engine.pid())),
            "{text}"
        );
        assert!(text.contains(&format!(" {} ", of("b").tx.0)), "{text}");
        wait_until("the interface to be gone", || netns.interfaces().is_empty());
        assert!(engine.socket("a").exists(), "a killed process leaves its sockets");

        engine.restart();
        for client in [&mut a, &mut b, &mut m] {
            until("the client to notice", || {
                client.tend();
                (client.ups == round + 2 && client.link.is_some()).then_some(())
            });
            assert!(client.told.iter().any(|told| told == "peer closed the connection"), "{:?}", client.told);
        }
        ["a", "b", "m", "k"].iter().for_each(|port| engine.wait_up(port, true));
        exchange(&mut a, &mut b, 0x7700, 1000);
        assert_eq!(netns.interfaces(), ["k0"]);
        kernel_traffic(&netns, &mut m, format!("after crash {round}").as_bytes());
    }
}

#[test]
fn a_second_engine_on_the_same_configuration_is_refused_and_the_first_not_touched() {
    let netns = Netns::new();
    let mut engine = Engine::start_with(&config(&netns), None);
    let (mut a, mut b) = (Client::connected(&engine.socket("a")), Client::connected(&engine.socket("b")));
    engine.wait_up("a", true);
    engine.wait_up("b", true);
    let file = engine.path("node.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let dir = engine.dir.path().display().to_string();
    let mut refused = |text: &str, expected: &str| {
        std::fs::write(&file, text).unwrap();
        let (status, said) = engine.second();
        assert_eq!(status.code(), Some(1), "{said}");
        let last = said.lines().last().unwrap_or_default();
        assert!(last.starts_with(&file.display().to_string()) && last.ends_with(expected), "{said}");
        exchange(&mut a, &mut b, 0x8800, 200);
    };
    let api = "[api]\nsocket = \"$DIR/api.sock\"\n".replace("$DIR", &dir);
    let listens = "another process listens on it; it is left alone";
    refused(&text, &format!("api.socket: {dir}/api.sock: {listens}"));
    let pid = engine.pid();
    let counts = format!("process {pid} counts there; give each engine a [stats] path of its own");
    refused(&text.replace(&api, ""), &format!("stats.path: statistics segment {dir}/stats: {counts}"));
    // With nothing else in common, the ports are what is in use.
    let other = text.replace(&api, "").replace("/stats\"", "/stats2\"");
    refused(&other, &format!("port a: memif socket {dir}/a.sock: {listens}"));
    assert_eq!(engine.stats("a").rx.0, 600);
    assert_eq!(
        Counters::open(&engine.path("stats"))
            .unwrap()
            .header()
            .pid
            .load(std::sync::atomic::Ordering::Relaxed),
        pid
    );
    assert_eq!(netns.interfaces(), ["k0"]);
    engine.assert_alive();
}

#[test]
fn an_engine_that_is_told_to_stop_does_so_soon_and_takes_everything_with_it() {
    let netns = Netns::new();
    let admin = "[admin]\nlisten = \"127.0.0.1:0\"\n";
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut engine = Engine::start_with(&(admin.to_owned() + &config(&netns)), None);
        let (mut a, mut b) = (Client::connected(&engine.socket("a")), Client::connected(&engine.socket("b")));
        let mut m = Client::connected(&engine.socket("m"));
        kernel_traffic(&netns, &mut m, b"before the stop");
        // Calls without an end, and a connection that says nothing.
        let silent = std::os::unix::net::UnixStream::connect(engine.path("api.sock")).unwrap();
        let (runtime, mut api) = engine.api();
        let links = runtime.block_on(api.watch_links(pb::WatchLinksRequest {})).unwrap();
        let request = pb::StreamCaptureRequest { port: "a".into(), ..Default::default() };
        let capture = runtime.block_on(api.stream_capture(request)).unwrap();
        pour(&mut a, &mut b, 1000);
        let told = Instant::now();
        engine.signal(signal);
        let status = until("the engine's end", || {
            for number in 0..32 {
                a.send(&frame(1, number));
            }
            b.receive();
            engine.ended()
        });
        assert!(told.elapsed() < Duration::from_secs(5), "it took {:?}", told.elapsed());
        assert_eq!(status.code(), Some(0), "{}", engine.log());
        println!("stopped within {:.2?}", told.elapsed());
        let mut left: Vec<_> = std::fs::read_dir(engine.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["log", "node.toml", "stats"], "all sockets are gone; the counts stay");
        wait_until("the interface to be gone", || netns.interfaces().is_empty());
        a.tend();
        assert_eq!(a.told, ["peer disconnected: interface removed"], "and its peers were told");
        drop((links, capture, silent));
    }
}
