//! How soon a node, or two domains, serve again after one of their components was killed: packets of a vWire that was there, and new Requests.
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

/// A lab whose components are killed, while a client's packets flow and another asks for connections. The client's liveness check is as
/// it is by default; other labs wait longer.
pub struct Scene {
    /// The file, with NAME in place of the lab's name.
    lab: &'static str,
    /// The client that is there all the time; the other one asks from its place.
    client: &'static str,
    /// What both ask for.
    service: &'static str,
    /// What is killed, and how the lab calls it.
    components: &'static [(&'static str, &'static str)],
}

/// One node: a client with a kernel interface, whose endpoint has memif; so the endpoint and the engine each carry its packets.
pub const NODE: Scene = Scene {
    lab: r#"
name: NAME
log_level: WARN
domains:
  - name: one
    nodes:
      - name: node-1
        split: true
        endpoints: [{name: nse, service: icmp-memif, mechanism: memif, cidr: 10.77.0.0/20}]
        clients: [{name: nsc, services: ["kernel://icmp-memif/nsm-1"], env: {NSM_LIVENESS_CHECK_TIMEOUT: 1s}}]
"#,
    client: "nsc",
    service: "icmp-memif",
    components: &[
        ("nsmgr", "nsmgr-node-1"),
        ("forwarder", "forwarder-node-1"),
        ("registry", "registry-one"),
        ("endpoint", "nse-nse"),
        ("engine", "node-1.engine"),
    ],
};

/// Two domains with a name server between them; the client in one, the endpoint in the other.
pub const DOMAINS: Scene = Scene {
    lab: r#"
name: NAME
log_level: WARN
dns: nsd
domains:
  - name: far
    proxy: true
    nodes:
      - name: node-1
        split: true
        endpoints: [{name: nse, service: icmp-memif, mechanism: memif, cidr: 10.77.0.0/20}]
  - name: near
    proxy: true
    nodes:
      - name: node-2
        split: true
        clients: [{name: nsc, services: ["kernel://icmp-memif@far.test/nsm-1"], env: {NSM_LIVENESS_CHECK_TIMEOUT: 1s}}]
"#,
    client: "nsc",
    service: "icmp-memif@far.test",
    components: &[
        ("client's nsmgr", "nsmgr-node-2"),
        ("client's forwarder", "forwarder-node-2"),
        ("client's registry", "registry-near"),
        ("client's proxy", "proxy-near"),
        ("name server", "dns"),
        ("endpoint's proxy", "proxy-far"),
        ("endpoint's registry", "registry-far"),
        ("endpoint's nsmgr", "nsmgr-node-1"),
        ("endpoint's forwarder", "forwarder-node-1"),
        ("endpoint", "nse-nse"),
    ],
};

/// How long healing may take.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(5);

/// Kills each component `kills` times.
pub async fn run(programs: &Programs, scene: &Scene, kills: usize, table: &mut Tables) -> Result<(), String> {
    table.about("Healing: from the kill of a component");
    let spec = scene.lab.replace("NAME", &format!("heal-{}", std::process::id()));
    let file = tempfile::NamedTempFile::with_suffix(".yaml").map_err(text)?;
    std::fs::write(file.path(), spec).map_err(text)?;
    let spec = Spec::load(file.path()).map_err(text)?;
    let programs = LabPrograms::beside(&programs.vwire).map_err(text)?;
    let run = tempfile::tempdir().map_err(text)?;
    let mut lab = Lab::up(&spec, run.path(), &programs, &Silent).await.map_err(text)?;
    let done = kill_all(&mut lab, scene, kills, table).await;
    lab.down(&Silent).await.map_err(text)?;
    done
}

async fn kill_all(lab: &mut Lab, scene: &Scene, kills: usize, table: &mut Tables) -> Result<(), String> {
    let namespace = Namespace::open(Path::new(&lab.layout().namespace_file(scene.client))).map_err(text)?;
    let watch = Watch { pinger: Pinger::start(&namespace, endpoint(lab, scene).await?)?, scene };
    let probe = probe(lab, scene, namespace).await?;
    for (name, process) in scene.components {
        let (mut packets, mut requests) = (Vec::new(), Vec::new());
        for n in 0..kills {
            watch.settle(lab).await?;
            let (traffic, served) = kill(lab, process, &watch, &probe, n)
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
async fn endpoint(lab: &Lab, scene: &Scene) -> Result<Ipv4Addr, String> {
    let admin = AdminClient(lab.layout().admin(&format!("nsc-{}", scene.client)));
    let all: Vec<ConnectionView> = admin.get("/connections").await.map_err(text)?;
    let address = all.iter().flat_map(|view| &view.endpoint_addresses).next().ok_or("no address")?;
    let address = address.split('/').next().unwrap_or_default();
    address.parse().map_err(|error| format!("{address}: {error}"))
}

/// A client that asks for a connection of its own, in the same namespace.
async fn probe(lab: &Lab, scene: &Scene, namespace: Namespace) -> Result<Client, String> {
    let place = lab.spec().clients().find(|(_, client)| client.name == scene.client);
    let (node, _) = place.ok_or("no such client")?;
    let common = Common {
        workload_api: lab.layout().workload_api(&format!("nsc-{}", scene.client)),
        connect_to: lab.layout().manager(node),
    };
    let member = Member::new(&common).await?;
    Ok(Client::new(member.pool(), &common.connect_to, scene.service, namespace))
}

/// What is seen of a client's packets.
struct Watch<'a> {
    pinger: Pinger,
    scene: &'a Scene,
}

impl Watch<'_> {
    /// Waits until packets flow for some time.
    async fn settle(&self, lab: &Lab) -> Result<(), String> {
        self.pinger.clear();
        self.flows(lab, Instant::now()).await.map(drop)
    }

    /// Waits until packets flow, to the address that the client now has of its endpoint; returns how long they did not.
    async fn flows(&self, lab: &Lab, since: Instant) -> Result<Duration, String> {
        let end = Instant::now() + PATIENCE;
        loop {
            // None while there is no endpoint.
            if let Ok(address) = endpoint(lab, self.scene).await {
                self.pinger.aim(address);
            }
            match self.pinger.outage(since) {
                Some(outage) => return Ok(outage),
                None if Instant::now() > end => return Err("packets do not flow".to_owned()),
                None => tokio::time::sleep(LOOK).await,
            }
        }
    }
}

async fn kill(
    lab: &mut Lab,
    process: &str,
    watch: &Watch<'_>,
    probe: &Client,
    n: usize,
) -> Result<(Duration, Duration), String> {
    let began = Instant::now();
    lab.kill(process).await.map_err(text)?;
    let (restarted, served) = tokio::join!(lab.restart(process), serves(probe, n, began));
    restarted.map_err(text)?;
    let (connection, served) = served?;
    let traffic = watch.flows(lab, began).await?;
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
