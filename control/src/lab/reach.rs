//! Checks of virtual networks: which endpoints are linked, and which clients reach each other.

use std::time::{Duration, Instant};

use super::check::{Outcome, bare, connections, leg};
use super::spec::Leg;
use super::{Lab, LabError, pings, process, roles};
use crate::cli::AdminClient;
use crate::obs::Status;

/// How long endpoints may take to find each other: one that should dial may be waited for.
const LINKED: Duration = Duration::from_secs(30);
/// How long a first ping may take to come through, after all endpoints say that they are linked.
const THROUGH: Duration = Duration::from_secs(20);
/// Between looks.
const LOOK: Duration = Duration::from_millis(100);

/// Whether an endpoint is linked with so many others, as soon as it is.
pub(super) async fn peers(lab: &Lab, of: &str, count: usize) -> Result<Outcome, LabError> {
    let check = format!("{of} is linked with {count} others");
    let admin = AdminClient(lab.layout().admin(&roles::vl3(of)));
    let deadline = Instant::now() + LINKED;
    loop {
        let status: Result<Status, _> = admin.get("/status").await;
        let status = status.map_err(|error| LabError::failed(&check, error))?;
        let peers =
            status.reports.get("peers").and_then(|peers| peers.as_array().cloned()).unwrap_or_default();
        let linked: Vec<&str> = peers
            .iter()
            .filter(|peer| peer["state"] == "linked")
            .filter_map(|peer| peer["name"].as_str())
            .collect();
        let seen = linked.join(", ");
        if linked.len() == count {
            return Ok(Outcome { check, failed: None, seen });
        }
        if Instant::now() > deadline {
            let failed = Some(format!("{} after {LINKED:?}: {peers:?}", linked.len()));
            return Ok(Outcome { check, failed, seen });
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A client's namespace, what it asks for, and its addresses.
struct Host {
    name: String,
    kernel: bool,
    addresses: Vec<String>,
}

/// Pings every client from every other that has a kernel interface.
pub(super) async fn reach(
    lab: &Lab,
    between: &[String],
    count: u32,
    sizes: &[u16],
) -> Result<Vec<Outcome>, LabError> {
    let mut hosts = Vec::new();
    for (_, client) in lab.spec().clients() {
        if !between.is_empty() && !between.contains(&client.name) {
            continue;
        }
        let views = connections(lab, &client.name, None).await?;
        let kernel = views.iter().all(|view| leg(lab, &client.name, &view.service) == Some(Leg::Kernel));
        let addresses = views.iter().flat_map(|view| view.client_addresses.iter().map(|one| bare(one)));
        hosts.push(Host { name: client.name.clone(), kernel, addresses: addresses.collect() });
    }
    let mut outcomes = Vec::new();
    for from in hosts.iter().filter(|host| host.kernel) {
        for to in hosts.iter().filter(|to| to.name != from.name) {
            for address in &to.addresses {
                for size in sizes {
                    outcomes.push(pair(lab, from, to, address, count, *size).await?);
                }
            }
        }
    }
    Ok(outcomes)
}

async fn pair(
    lab: &Lab,
    from: &Host,
    to: &Host,
    address: &str,
    count: u32,
    size: u16,
) -> Result<Outcome, LabError> {
    let check = format!("{} → {} at {address}: {count} pings of {size} bytes, none lost", from.name, to.name);
    let deadline = Instant::now() + THROUGH;
    // Both ends of a path have their routes from different processes: the first ping is waited for.
    loop {
        let first = ["-n", "-c", "1", "-W", "1", address].map(str::to_owned);
        let (_, said) = process::run(lab.layout(), &from.name, "ping", &first).await?;
        if pings::lost(&said, 1).is_empty() {
            break;
        }
        if Instant::now() > deadline {
            let failed = Some(format!("nothing came through within {THROUGH:?}: {said}"));
            return Ok(Outcome { check, failed, seen: String::new() });
        }
        tokio::time::sleep(LOOK).await;
    }
    let mut words = pings::arguments(count);
    words.extend(["-s", &size.to_string(), "-M", "do", address].map(str::to_owned));
    let (_, said) = process::run(lab.layout(), &from.name, "ping", &words).await?;
    let lost = pings::lost(&said, count);
    let line = said.lines().find(|line| line.contains("packets transmitted")).unwrap_or(said.trim());
    let failed = (!lost.is_empty()).then(|| format!("no answer to {lost:?}: {said}"));
    Ok(Outcome { check, failed, seen: line.to_owned() })
}
