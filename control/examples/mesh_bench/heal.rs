//! How soon a node serves again after one of its components was killed: packets of a vWire that was there, and new Requests.
//!
//! The component is started again at once, as a supervisor would.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use vwire_control::api::connection::Connection;
use vwire_control::cli::AdminClient;
use vwire_control::client::Namespace;
use vwire_control::lab::{Lab, Programs as LabPrograms, Silent, Spec};
use vwire_control::obs::ConnectionView;

use crate::figures::Figures;
use crate::load::Client;
use crate::mesh::{Programs, Side};
use crate::ping::Pinger;
use crate::table::{Better, Tables};
use crate::{Common, Member, text};

/// One node: a client with a kernel interface, whose endpoint has memif; so the endpoint and the engine each carry its packets.
const LAB: &str = r#"
name: NAME
log_level: WARN
domains:
  - name: one
    nodes:
      - name: node-1
        split: true
        endpoints: [{name: nse, service: icmp-memif, mechanism: memif, cidr: 10.77.0.0/20}]
        clients: [{name: nsc, services: ["kernel://icmp-memif/nsm-1"]}]
"#;
const SERVICE: &str = "icmp-memif";
const CLIENT: &str = "nsc-nsc";
/// What is killed, as the lab calls it.
const COMPONENTS: [(&str, &str); 5] = [
    ("nsmgr", "nsmgr-node-1"),
    ("forwarder", "forwarder-node-1"),
    ("registry", "registry-one"),
    ("endpoint", "nse-nse"),
    ("engine", "node-1.engine"),
];
/// How long healing may take.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(5);

/// Kills each component `kills` times.
pub async fn run(programs: &Programs, kills: usize, table: &mut Tables) -> Result<(), String> {
    table.about("Healing: from the kill of a component");
    let spec = LAB.replace("NAME", &format!("heal-{}", std::process::id()));
    let file = tempfile::NamedTempFile::with_suffix(".yaml").map_err(text)?;
    std::fs::write(file.path(), spec).map_err(text)?;
    let spec = Spec::load(file.path()).map_err(text)?;
    let programs = LabPrograms::beside(&programs.vwire).map_err(text)?;
    let run = tempfile::tempdir().map_err(text)?;
    let mut lab = Lab::up(&spec, run.path(), &programs, &Silent).await.map_err(text)?;
    let done = kill_all(&mut lab, kills, table).await;
    lab.down(&Silent).await.map_err(text)?;
    done
}

async fn kill_all(lab: &mut Lab, kills: usize, table: &mut Tables) -> Result<(), String> {
    let namespace = Namespace::open(Path::new(&lab.layout().namespace_file("nsc"))).map_err(text)?;
    let pinger = Pinger::start(&namespace, endpoint(lab).await?)?;
    let probe = probe(lab, namespace).await?;
    for (name, process) in COMPONENTS {
        let (mut packets, mut requests) = (Vec::new(), Vec::new());
        for n in 0..kills {
            settle(lab, &pinger).await?;
            let (traffic, served) = kill(lab, process, &pinger, &probe, n)
                .await
                .map_err(|error| format!("kill {n} of {name}: {error}"))?;
            eprintln!("   {name} {n}: packets {traffic:?}, Requests {served:?}");
            packets.push(traffic);
            requests.push(served);
        }
        for (what, times) in [("a vWire's packets", packets), ("new Requests", requests)] {
            let figures = Figures::of(what, 1, times, Duration::from_secs(1));
            let row = |quantile| format!("{name} killed: {what} {quantile} ms ({kills} kills)");
            table.note(row("p50"), Better::Less, Side::Vwire, figures.p50_ms);
            table.note(row("p99"), Better::Less, Side::Vwire, figures.p99_ms);
        }
    }
    Ok(())
}

/// The endpoint's address, as its client has it.
async fn endpoint(lab: &Lab) -> Result<Ipv4Addr, String> {
    let admin = AdminClient(lab.layout().admin(CLIENT));
    let all: Vec<ConnectionView> = admin.get("/connections").await.map_err(text)?;
    let address = all.iter().flat_map(|view| &view.endpoint_addresses).next().ok_or("no address")?;
    let address = address.split('/').next().unwrap_or_default();
    address.parse().map_err(|error| format!("{address}: {error}"))
}

/// A client that asks for a connection of its own, in the same namespace.
async fn probe(lab: &Lab, namespace: Namespace) -> Result<Client, String> {
    let (domain, node) = lab.spec().nodes().next().ok_or("no node")?;
    let _ = domain;
    let common =
        Common { workload_api: lab.layout().workload_api(CLIENT), connect_to: lab.layout().manager(node) };
    let member = Member::new(&common).await?;
    Ok(Client::new(member.pool(), &common.connect_to, SERVICE, namespace))
}

/// Waits until packets flow for some time.
async fn settle(lab: &Lab, pinger: &Pinger) -> Result<(), String> {
    pinger.clear();
    flows(lab, pinger, Instant::now()).await.map(drop)
}

async fn kill(
    lab: &mut Lab,
    process: &str,
    pinger: &Pinger,
    probe: &Client,
    n: usize,
) -> Result<(Duration, Duration), String> {
    let began = Instant::now();
    lab.kill(process).await.map_err(text)?;
    let (restarted, served) = tokio::join!(lab.restart(process), serves(probe, n, began));
    restarted.map_err(text)?;
    let (connection, served) = served?;
    let traffic = flows(lab, pinger, began).await?;
    probe.close(connection).await?;
    Ok((traffic, served))
}

/// Asks until there is an answer.
async fn serves(probe: &Client, n: usize, began: Instant) -> Result<(Connection, Duration), String> {
    loop {
        // A name of its own each time: an interface of the one before may be there still.
        match probe.request(probe.new_connection(n), 1_000 + n).await {
            Ok(connection) => return Ok((connection, began.elapsed())),
            Err(error) if began.elapsed() > PATIENCE => return Err(format!("no Request is served: {error}")),
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

/// Waits until packets flow, to the address that the client now has of its endpoint; returns how long they did not.
async fn flows(lab: &Lab, pinger: &Pinger, since: Instant) -> Result<Duration, String> {
    let end = Instant::now() + PATIENCE;
    loop {
        // None while there is no endpoint.
        if let Ok(address) = endpoint(lab).await {
            pinger.aim(address);
        }
        match pinger.outage(since) {
            Some(outage) => return Ok(outage),
            None if Instant::now() > end => return Err("packets do not flow".to_owned()),
            None => tokio::time::sleep(LOOK).await,
        }
    }
}
