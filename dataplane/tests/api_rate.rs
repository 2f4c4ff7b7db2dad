//! How long a transaction takes beside thousands of ports. Prints figures and checks only that all went well: run it by name,
//! with `--ignored --nocapture`.

mod kernel_support;
mod support;

use std::time::{Duration, Instant};

use kernel_support::Netns;
use support::*;
use vwire_proto::dataplane::v1 as pb;

/// A connection: two ports and what joins them, with a note as a control process would leave it.
fn connection(i: usize, first: pb::Port, second: pb::Port) -> Vec<pb::Op> {
    let note = vec![b'n'; 500];
    let (a, b) = (format!("a{i:05}"), format!("b{i:05}"));
    let first = pb::Port { name: a.clone(), note: note.clone(), ..first };
    let second = pb::Port { name: b.clone(), note, ..second };
    vec![set(first), set(second), join(&a, &b)]
}

fn removal(i: usize) -> Vec<pb::Op> {
    let (a, b) = (format!("a{i:05}"), format!("b{i:05}"));
    vec![part(&a, &b), remove(&a), remove(&b)]
}

fn server(socket: &str, i: usize) -> pb::Port {
    let mut port = memif("m", pb::memif::Role::Server, socket);
    if let Some(pb::port::Kind::Memif(memif)) = &mut port.kind {
        memif.id = i as u32;
    }
    port
}

fn median(mut times: Vec<Duration>) -> String {
    times.sort();
    let (half, most) = (times[times.len() / 2], times[times.len() - 1]);
    format!("median {half:>9.1?} longest {most:>9.1?}")
}

/// Grows to each size in turn, and says what one connection more, and its end, take there.
async fn grow(what: &str, sizes: &[usize], connect: impl Fn(&Rig, usize) -> Vec<pb::Op>) {
    let mut rig = Rig::new().await;
    let mut there = 0;
    for size in sizes {
        let begin = Instant::now();
        for i in there..*size {
            let ops = connect(&rig, i);
            rig.apply(ops).await.unwrap();
        }
        let each = begin.elapsed() / (size - there).max(1) as u32;
        there = *size;
        let (mut made, mut removed) = (Vec::new(), Vec::new());
        for _ in 0..50 {
            let ops = connect(&rig, there);
            let begin = Instant::now();
            rig.apply(ops).await.unwrap();
            made.push(begin.elapsed());
            let begin = Instant::now();
            rig.apply(removal(there)).await.unwrap();
            removed.push(begin.elapsed());
        }
        let (made, removed) = (median(made), median(removed));
        println!(
            "{what}: {:>5} ports: set {made}, remove {removed}; growing, {each:.1?} each; {}",
            2 * size,
            rss()
        );
    }
    assert_eq!(rig.snapshot().await.links.len(), 2 * there);
}

fn rss() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default().to_owned()
}

#[test]
#[ignore = "figures, for people"]
fn transactions_beside_many_ports() {
    // Without the patience of other tests: this one measures.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        grow("pipe + memif", &[5, 500, 1000, 1900], |rig, i| {
            let socket = rig.path("m.sock").display().to_string();
            connection(i, pipe("p", &format!("p{i}")), server(&socket, i))
        })
        .await;
    });
}

#[test]
#[ignore = "figures, for people"]
fn transactions_beside_many_interfaces() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let netns = Netns::new();
        let path = format!("/run/netns/{}", netns.name);
        grow("kernel + memif", &[5, 500, 1000], |rig, i| {
            let socket = rig.path("m.sock").display().to_string();
            connection(i, kernel("k", &format!("i{i}"), path.clone()), server(&socket, i))
        })
        .await;
    });
}
