//! The admin port, as curl and Prometheus see it.

mod support;

use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The answer's status line and body.
async fn get(rig: &Rig, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(rig.dataplane.admin_address().unwrap()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

const OK: &str = "HTTP/1.1 200 OK";

#[test]
fn metrics_tell_every_port_and_reason() {
    run(async {
        let mut rig = Rig::with("[[port]]\nname = \"a\"\nkind = \"pipe\"\npipe = \"pa\"\n").await;
        let mut a = rig.far_end("pa");
        (0..3).for_each(|i| assert!(a.inject(&frame(i))));
        rig.wait_stats("a", |stats| stats.drops.get("no_egress") == Some(&3)).await;
        let (status, body) = get(&rig, "/metrics").await;
        assert_eq!(status, OK);
        for line in [
            "vwire_port_up{port=\"a\",kind=\"pipe\"} 1",
            "vwire_port_rx_packets_total{port=\"a\",kind=\"pipe\"} 3",
            "vwire_port_rx_bytes_total{port=\"a\",kind=\"pipe\"} 183",
            "vwire_port_drops_total{port=\"a\",kind=\"pipe\",reason=\"no_egress\"} 3",
            "vwire_workers 1",
            "vwire_workers_dead 0",
        ] {
            assert!(body.lines().any(|l| l == line), "{line} is missing in\n{body}");
        }
        let generation = rig.snapshot().await.generation;
        assert!(body.contains(&format!("vwire_generation {generation}\n")));
    });
}

#[test]
fn it_is_live_and_ready_and_knows_no_other_paths() {
    run(async {
        let rig = Rig::new().await;
        assert_eq!(get(&rig, "/live").await, (OK.to_owned(), "live\n".to_owned()));
        assert_eq!(get(&rig, "/ready").await, (OK.to_owned(), "ready\n".to_owned()));
        assert_eq!(get(&rig, "/etc/passwd").await.0, "HTTP/1.1 404 Not Found");
        let cases = [
            ("/capture", "HTTP/1.1 400 Bad Request"),
            ("/capture?port=zz", "HTTP/1.1 404 Not Found"),
            ("/capture?port=a%2Fb", "HTTP/1.1 400 Bad Request"),
            ("/capture?port=zz&snap_len=1", "HTTP/1.1 400 Bad Request"),
            ("/capture?port=zz&colour=red", "HTTP/1.1 400 Bad Request"),
        ];
        for (path, status) in cases {
            assert_eq!(get(&rig, path).await.0, status, "{path}");
        }
    });
}

#[test]
fn a_capture_streams_until_the_port_is_removed() {
    run(async {
        let mut rig = Rig::with("[[port]]\nname = \"a\"\nkind = \"pipe\"\npipe = \"pa\"\n").await;
        let mut stream = TcpStream::connect(rig.dataplane.admin_address().unwrap()).await.unwrap();
        stream
            .write_all(b"GET /capture?port=a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = vec![0; 1 << 16];
        let mut len = stream.read(&mut answer).await.unwrap();
        let mut a = rig.far_end("pa");
        let sent = frame(7);
        assert!(a.inject(&sent));
        while !answer[..len].windows(sent.len()).any(|window| window == sent) {
            let read =
                tokio::time::timeout(PATIENCE, stream.read(&mut answer[len..])).await.unwrap().unwrap();
            assert!(read > 0, "the stream ended early");
            len += read;
        }
        rig.apply(vec![remove("a")]).await.unwrap();
        let mut rest = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap().unwrap();
    });
}

#[test]
fn those_who_hold_connections_open_keep_nobody_from_the_api() {
    run(async {
        let mut rig = Rig::new().await;
        let before = open_descriptors();
        let mut idle = Vec::new();
        // Fewer than places and backlog together, as connecting would wait otherwise.
        for _ in 0..150 {
            idle.push(std::net::TcpStream::connect(rig.dataplane.admin_address().unwrap()).unwrap());
            tokio::task::yield_now().await;
        }
        rig.apply(vec![set(pipe("a", "pa"))]).await.unwrap();
        // Ours and the engine's are in one process, and other tests hold some as well, but not as many as 150
        // twice.
        assert!(open_descriptors() < before + 150 + 64 + 60, "{before} and then {}", open_descriptors());
        drop(idle);
        assert_eq!(get(&rig, "/live").await.0, OK);
    });
}
