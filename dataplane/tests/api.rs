//! The gRPC API over its unix socket: transactions, reconciliation, links, counters, captures.

mod support;

use std::process::Command;
use std::time::{Duration, Instant};

use support::*;
use tonic::Code;
use vwire_proto::dataplane::v1 as pb;
use vwire_proto::dataplane::v1::watch_links_response::Event;

#[test]
fn a_transaction_makes_ports_that_frames_flow_through() {
    run(async {
        let mut rig = Rig::new().await;
        let before = rig.snapshot().await.generation;
        let ops = vec![set(pipe("a", "pa")), set(pipe("b", "pb")), join("b", "a")];
        assert_eq!(rig.apply(ops).await.unwrap(), before + 1);
        let (mut a, mut b) = (rig.far_end("pa"), rig.far_end("pb"));
        passes(&mut a, &mut b, 40).await;
        passes(&mut b, &mut a, 40).await;
        let bytes: u64 = (0..40).map(|i| frame(i).len() as u64).sum();
        let stats = rig.stats("a").await;
        assert_eq!(
            (stats.rx_packets, stats.rx_bytes, stats.tx_packets, stats.tx_bytes),
            (40, bytes, 40, bytes)
        );
        assert_eq!((stats.kind.as_str(), stats.up, stats.drops.len()), ("pipe", true, 0));
        let snapshot = rig.snapshot().await;
        assert_eq!((snapshot.state, snapshot.generation), (Some(two_pipes()), before + 1));
        assert!(snapshot.links.iter().all(|link| link.up && link.reason.is_empty()));
    });
}

#[test]
fn a_transaction_on_a_stale_generation_changes_nothing() {
    run(async {
        let mut rig = Rig::new().await;
        let first = rig.snapshot().await.generation;
        let request = |base, port| pb::ApplyRequest { base_generation: Some(base), ops: vec![set(port)] };
        let second = rig.client.apply(request(first, pipe("a", "pa"))).await.unwrap().into_inner().generation;
        let message = format!(
            "the request is based on generation {first}, but the current one is {second}; read the state again"
        );
        let stale = rig.client.apply(request(first, pipe("b", "pb"))).await;
        refused(stale, Code::FailedPrecondition, &message);
        let replace = pb::ReplaceRequest { base_generation: Some(first), state: Some(pb::State::default()) };
        refused(rig.client.replace(replace).await, Code::FailedPrecondition, &message);
        let snapshot = rig.snapshot().await;
        assert_eq!((snapshot.generation, snapshot.state.unwrap().ports.len()), (second, 1));
    });
}

#[test]
fn replacing_a_state_by_itself_does_nothing() {
    run(async {
        let mut rig = Rig::new().await;
        let made = rig.replace(two_pipes()).await.unwrap();
        assert_eq!(made.changes, ["attach a", "attach b", "publish [a - b]"]);
        let again = rig.replace(two_pipes()).await.unwrap();
        assert_eq!(again, pb::ReplaceResponse { generation: made.generation, changes: vec![] });
    });
}

#[test]
fn a_replacement_touches_only_what_differs_and_loses_nothing() {
    run(async {
        let mut rig = Rig::new().await;
        rig.replace(two_pipes()).await.unwrap();
        let (mut a, mut b) = (rig.far_end("pa"), rig.far_end("pb"));
        passes(&mut a, &mut b, 10).await;
        let mut wanted = two_pipes();
        wanted.ports.extend([pipe("c", "pc"), pipe("d", "pd")]);
        wanted.xconnects.push(xconnect("c", "d"));
        for i in 0..30 {
            assert!(a.inject(&frame(i)));
            let state = if i % 2 == 0 { wanted.clone() } else { two_pipes() };
            let changes = rig.replace(state).await.unwrap().changes;
            assert!(
                changes.iter().all(|change| !change.ends_with(" a") && !change.ends_with(" b")),
                "{changes:?}"
            );
        }
        assert_eq!(collect(&mut b, 30).await, (0..30).map(frame).collect::<Vec<_>>());
        assert_eq!(rig.stats("a").await.rx_packets, 40, "its counters were never reset");
        assert_eq!(rig.stats("a").await.drops.len(), 0);
    });
}

#[test]
fn a_cross_connect_moves_to_another_port() {
    run(async {
        let mut rig = Rig::new().await;
        rig.replace(two_pipes()).await.unwrap();
        rig.apply(vec![part("a", "b"), remove("b"), set(pipe("c", "pc")), join("a", "c")]).await.unwrap();
        let (mut a, mut c) = (rig.far_end("pa"), rig.far_end("pc"));
        passes(&mut a, &mut c, 5).await;
        assert_eq!(rig.snapshot().await.state.unwrap().xconnects, [xconnect("a", "c")]);
    });
}

#[test]
fn a_port_that_made_room_in_vain_is_made_again() {
    run(async {
        let mut rig = Rig::new().await;
        let socket = rig.path("m.sock").display().to_string();
        rig.apply(vec![set(memif("old", pb::memif::Role::Server, socket.clone()))]).await.unwrap();
        let before = rig.snapshot().await;
        // `new` wants the socket of `old`, so both are closed and opened after each other; `nope` has no
        // directory to be in.
        let nope = memif("nope", pb::memif::Role::Server, "/dev/null/x.sock");
        let ops = vec![remove("old"), set(memif("new", pb::memif::Role::Server, socket.clone())), set(nope)];
        let status = rig.apply(ops).await.unwrap_err();
        assert!(status.message().starts_with("port nope: "), "{}", status.message());
        assert_eq!(rig.snapshot().await, before);
        let client = memif("peer", pb::memif::Role::Client, socket);
        rig.apply(vec![set(client)]).await.unwrap();
        assert_eq!(
            rig.wait_link("old", true).await.peer,
            format!("vwire-dataplane peer (process {})", std::process::id())
        );
    });
}

#[test]
fn memif_ports_of_one_engine_join_over_their_socket_and_pass_frames() {
    run(async {
        let mut rig = Rig::new().await;
        let socket = rig.path("m.sock").display().to_string();
        let mut client = memif("mc", pb::memif::Role::Client, socket.clone());
        let mut server = memif("ms", pb::memif::Role::Server, socket);
        for port in [&mut client, &mut server] {
            if let Some(pb::port::Kind::Memif(memif)) = &mut port.kind {
                (memif.secret, memif.queues, memif.ring_size) = ("open sesame".into(), 2, 256);
            }
        }
        let ops = vec![
            set(server),
            set(client),
            set(pipe("a", "pa")),
            set(pipe("b", "pb")),
            join("a", "mc"),
            join("ms", "b"),
        ];
        rig.apply(ops).await.unwrap();
        rig.wait_link("ms", true).await;
        rig.wait_link("mc", true).await;
        let (mut a, mut b) = (rig.far_end("pa"), rig.far_end("pb"));
        passes(&mut a, &mut b, 50).await;
        passes(&mut b, &mut a, 50).await;
        rig.wait_stats("mc", |stats| stats.tx_packets == 50).await;
        let state = format!("{:?}", rig.snapshot().await.state);
        assert!(!state.contains("sesame"), "a secret is not given back");
    });
}

#[test]
fn watchers_see_all_links_and_then_every_change() {
    run(async {
        let mut rig = Rig::new().await;
        let socket = rig.path("m.sock").display().to_string();
        rig.apply(vec![set(memif("m", pb::memif::Role::Server, socket.clone()))]).await.unwrap();
        let mut links = rig.client.watch_links(pb::WatchLinksRequest {}).await.unwrap().into_inner();
        let mut next = async || links.message().await.unwrap().unwrap().event.unwrap();
        let down =
            pb::Link { port: "m".into(), up: false, reason: "no peer yet".into(), peer: String::new() };
        assert_eq!(next().await, Event::Initial(pb::Links { links: vec![down] }));
        rig.apply(vec![set(memif("c", pb::memif::Role::Client, socket))]).await.unwrap();
        assert!(matches!(next().await, Event::Changed(link) if link.port == "c" && !link.up));
        let (first, second) = (next().await, next().await);
        for port in ["c", "m"] {
            let is_up = |event: &Event| matches!(event, Event::Changed(link) if link.port == port && link.up);
            assert!(is_up(&first) || is_up(&second), "{port}: {first:?} {second:?}");
        }
        rig.apply(vec![remove("c")]).await.unwrap();
        assert_eq!(next().await, Event::Removed("c".into()));
        let Event::Changed(link) = next().await else { panic!("m must be told to be down") };
        assert_eq!((link.port.as_str(), link.up), ("m", false));
        assert_eq!(link.reason, "peer disconnected: the port was removed");
    });
}

#[test]
fn lost_frames_are_counted_under_their_reason() {
    run(async {
        let mut rig = Rig::new().await;
        let socket = rig.path("m.sock").display().to_string();
        let ops = vec![
            set(pipe("a", "pa")),
            set(pipe("b", "pb")),
            set(memif("m", pb::memif::Role::Server, socket)),
            join("b", "m"),
        ];
        rig.apply(ops).await.unwrap();
        for (port, far, reason) in [("a", "pa", "no_egress"), ("b", "pb", "egress_down")] {
            let mut far = rig.far_end(far);
            (0..7).for_each(|i| assert!(far.inject(&frame(i))));
            let stats = rig.wait_stats(port, |stats| stats.drops.get(reason) == Some(&7)).await;
            assert_eq!(stats.drops.len(), 1);
        }
        let all = rig.client.get_stats(pb::GetStatsRequest::default()).await.unwrap().into_inner().ports;
        assert_eq!(all.iter().map(|p| p.port.as_str()).collect::<Vec<_>>(), ["a", "b", "m"]);
        let unknown = pb::GetStatsRequest { ports: vec!["a".into(), "zz".into()] };
        refused(rig.client.get_stats(unknown).await, Code::NotFound, "there is no port \"zz\"");
    });
}

#[test]
fn a_capture_is_a_pcapng_file_with_directions_and_drop_reasons() {
    run(async {
        let mut rig = Rig::new().await;
        rig.replace(two_pipes()).await.unwrap();
        let (mut a, mut b) = (rig.far_end("pa"), rig.far_end("pb"));
        let request = pb::StreamCaptureRequest { port: "a".into(), snap_len: 60, ring_bytes: 1 << 16 };
        let mut pieces = rig.client.stream_capture(request).await.unwrap().into_inner();
        let mut file = pieces.message().await.unwrap().unwrap().pcapng;
        passes(&mut a, &mut b, 3).await;
        passes(&mut b, &mut a, 2).await;
        rig.apply(vec![part("a", "b")]).await.unwrap();
        assert!(a.inject(&frame(500)));
        let path = rig.path("c.pcapng");
        let (mut lines, deadline) = (String::new(), Instant::now() + PATIENCE);
        while lines.lines().count() < 6 {
            assert!(Instant::now() < deadline, "{lines}");
            let piece = tokio::time::timeout(Duration::from_millis(100), pieces.message()).await;
            file.extend(piece.into_iter().flat_map(|piece| piece.unwrap().unwrap().pcapng));
            std::fs::write(&path, &file).unwrap();
            let args = [
                "-e",
                "frame.packet_flags_direction",
                "-e",
                "frame.len",
                "-e",
                "frame.cap_len",
                "-e",
                "frame.comment",
            ];
            let output = Command::new("tshark")
                .arg("-r")
                .arg(&path)
                .args(["-T", "fields"])
                .args(args)
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            lines = String::from_utf8(output.stdout).unwrap();
        }
        let expected = "0x00000001\t60\t60\t\n0x00000001\t61\t60\t\n0x00000001\t62\t60\t\n0x00000002\t60\t60\t\n\
                        0x00000002\t61\t60\t\n0x00000001\t560\t60\tdropped: no_egress\n";
        assert_eq!(lines, expected);
        rig.apply(vec![remove("a")]).await.unwrap();
        while let Some(piece) = pieces.message().await.unwrap() {
            assert!(piece.pcapng.len() < 1000, "the stream ends with the port");
        }
    });
}

#[test]
fn a_capture_waits_for_a_link_that_is_down() {
    run(async {
        let mut rig = Rig::new().await;
        let socket = rig.path("m.sock").display().to_string();
        let ops = vec![
            set(memif("m", pb::memif::Role::Server, socket.clone())),
            set(pipe("a", "pa")),
            join("a", "m"),
        ];
        rig.apply(ops).await.unwrap();
        let request = pb::StreamCaptureRequest { port: "m".into(), ..Default::default() };
        let mut pieces = rig.client.stream_capture(request).await.unwrap().into_inner();
        assert!(!pieces.message().await.unwrap().unwrap().pcapng.is_empty());
        rig.apply(vec![set(memif("c", pb::memif::Role::Client, socket))]).await.unwrap();
        rig.wait_link("m", true).await;
        let mut a = rig.far_end("pa");
        assert!(a.inject(&frame(1)));
        let piece = tokio::time::timeout(PATIENCE, pieces.message()).await.unwrap().unwrap().unwrap();
        let sent = frame(1);
        assert!(piece.pcapng.windows(sent.len()).any(|window| window == sent));
    });
}

#[test]
fn captures_that_cannot_be_are_refused() {
    run(async {
        let mut rig = Rig::new().await;
        rig.replace(two_pipes()).await.unwrap();
        let request = |port: &str, snap_len, ring_bytes| pb::StreamCaptureRequest {
            port: port.into(),
            snap_len,
            ring_bytes,
        };
        let cases = [
            (request("zz", 0, 0), Code::NotFound, "there is no port zz"),
            (request("a", 13, 0), Code::InvalidArgument, "snap_len can be 14 to 65600 bytes, not 13"),
            (
                request("a", 0, u32::MAX),
                Code::InvalidArgument,
                "ring_bytes can be up to 67108864, not 4294967295",
            ),
        ];
        for (request, code, message) in cases {
            refused(rig.client.stream_capture(request).await, code, message);
        }
        let mut running = Vec::new();
        loop {
            match rig.client.stream_capture(request("a", 0, 4096)).await {
                Ok(stream) => running.push(stream),
                Err(status) => {
                    assert_eq!(status.code(), Code::ResourceExhausted);
                    break assert_eq!(status.message(), "16 captures are running; end one");
                }
            }
            assert!(running.len() <= 16);
        }
        drop(running);
        let deadline = Instant::now() + PATIENCE;
        while rig.client.stream_capture(request("a", 0, 4096)).await.is_err() {
            assert!(Instant::now() < deadline, "who hangs up frees a place");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn the_server_tells_its_health_and_what_it_serves() {
    run(async {
        let rig = Rig::new().await;
        let (channel, _) = vwire_dataplane::fdpass::connect(&rig.path("api.sock")).await.unwrap();
        let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
        for service in ["", "vwire.dataplane.v1.Dataplane"] {
            let request = tonic_health::pb::HealthCheckRequest { service: service.into() };
            assert_eq!(health.check(request).await.unwrap().into_inner().status, 1, "{service:?} is SERVING");
        }
        use tonic_reflection::pb::v1::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let list = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut reflection = ServerReflectionClient::new(channel);
        let mut answers =
            reflection.server_reflection_info(tokio_stream::once(list)).await.unwrap().into_inner();
        let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
        let MessageResponse::ListServicesResponse(list) = answer else { panic!("services were asked for") };
        let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
        assert!(names.contains(&"vwire.dataplane.v1.Dataplane".to_owned()), "{names:?}");
    });
}
