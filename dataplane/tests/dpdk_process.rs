//! The process with DPDK: a start that can't be says why, huge pages are given back, and the shipped example is sound.
#![cfg(feature = "dpdk")]

mod dpdk_support;

use dpdk_support::{Process, dpdk, pair};

fn two_nulls() -> String {
    pair("a", &dpdk("net_null0"), "b", &dpdk("net_null1"))
}

#[test]
fn an_eal_that_does_not_start_ends_the_start_with_what_it_said() {
    let process = Process::new(None);
    for (settings, expected) in [
        ("eal_args = [\"--nonsense\"]", "DPDK's EAL did not start: "),
        ("eal_args = [\"--vdev=net_nonsense0\"]", "net_nonsense"),
        ("huge_pages = false\nmemory = 64\nbuffers = 1000000", "no memory for a pool of 1000000 buffers"),
        ("eal_args = [\"-l\", \"0\"]", "the workers are vwire's own threads"),
        ("memory = 1", "dpdk.memory is 32 to 1048576, not 1"),
    ] {
        let said = process.refuses(&format!("[dpdk]\n{settings}\n{}", two_nulls()));
        assert!(said.contains(expected), "{settings}: {said}");
        assert!(said.lines().any(|line| line.contains("vwire.toml")), "{settings}: {said}");
    }
}

fn free_huge_pages() -> u64 {
    let read = |kind: &str| std::fs::read_to_string(format!("/proc/sys/vm/{kind}")).unwrap();
    assert!(read("nr_hugepages").trim() != "0", "the tests need huge pages (scripts/test.sh reserves some)");
    let info = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = info.lines().find_map(|line| line.strip_prefix("HugePages_Free:")).unwrap();
    line.trim().parse().unwrap()
}

#[test]
fn with_huge_pages_frames_move_and_a_killed_engine_leaves_no_page_and_no_file() {
    let mut process = Process::new(None);
    let files = || std::fs::read_dir("/dev/hugepages").map_or(0, |files| files.count());
    let before = files();
    for _ in 0..3 {
        process.start(&format!("[dpdk]\nmemory = 32\nbuffers = 4096\n{}", two_nulls()));
        let stats = process.wait_stats("a", |stats| stats.tx_packets > 10_000);
        assert_eq!(stats.device["vwire_tx_copied_bytes"], 0);
        process.kill();
    }
    assert_eq!(files(), before);
    assert!(free_huge_pages() > 0);
}

/// Which processors each thread of the process may run on, by the thread's name.
fn affinities(pid: u32) -> Vec<(String, String)> {
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let about = |thread: std::path::PathBuf| {
        let status = read(thread.join("status"));
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or("");
        (read(thread.join("comm")).trim().to_owned(), allowed.trim().to_owned())
    };
    threads.map(|thread| about(thread.unwrap().path())).collect()
}

#[test]
fn the_eal_takes_no_thread_off_its_processors() {
    let plain = "[dpdk]\nhuge_pages = false\nmemory = 128\nbuffers = 8192\n";
    let process = Process::started(None, &format!("[workers]\ncores = [0]\n{plain}{}", two_nulls()));
    let all = affinities(std::process::id());
    let ours = affinities(process.pid());
    let of = |name: &str| ours.iter().find(|(thread, _)| thread == name).map(|(_, allowed)| allowed.clone());
    assert_eq!(of("worker-0").as_deref(), Some("0"), "{ours:?}");
    assert_eq!(of("vwire-dataplane").as_ref(), Some(&all[0].1), "{ours:?}");
}

#[test]
fn the_shipped_example_starts() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/dpdk.toml");
    let text = std::fs::read_to_string(file).unwrap();
    // Its sockets are this test's; its devices are virtual and need nothing.
    let kept: String = text
        .split("\n\n")
        .filter(|part| !part.starts_with("[api]") && !part.starts_with("[stats]"))
        .map(|part| format!("{part}\n\n"))
        .collect();
    let mut process = Process::started(None, &kept);
    process.wait_stats("left", |stats| stats.tx_packets > 0);
}
