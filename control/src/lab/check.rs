//! `lab check`: whether what the file says is so.

use std::fs;
use std::time::{Duration, Instant};

use super::process;
use super::spec::{Check, Client, Leg};
use super::{Lab, LabError, Layout, facts, pings, reach, roles};
use crate::cli::AdminClient;
use crate::obs::{ConnectionView, Status};

/// Port of the TCP transfer.
const TRANSFER_PORT: u16 = 5201;
/// How long a transfer may take.
const TRANSFER_TIME: Duration = Duration::from_secs(60);
/// How long a client's pings may take.
const PING_TIME: Duration = Duration::from_secs(20);
/// Between looks.
const LOOK: Duration = Duration::from_millis(50);

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Outcome {
    /// What was looked at.
    pub check: String,
    /// Why it is not so; None if it is.
    pub failed: Option<String>,
    /// Figures.
    pub seen: String,
}

/// Runs one check of a lab.
///
/// # Errors
/// [`LabError::Failed`] if it could not be run.
pub async fn check(lab: &Lab, check: &Check) -> Result<Vec<Outcome>, LabError> {
    match check {
        Check::Ping { from, service, count, sizes } => {
            let mut outcomes = Vec::new();
            for view in connections(lab, from, service.as_deref()).await? {
                for size in sizes {
                    outcomes.extend(ping(lab, from, &view, *count, *size).await?);
                }
            }
            Ok(outcomes)
        }
        Check::Path { from, service, hops } => {
            let views = connections(lab, from, service.as_deref()).await?;
            Ok(views.iter().map(|view| facts::path(from, view, *hops)).collect())
        }
        Check::Counters { from, service, rx_packets_at_least } => {
            let views = connections(lab, from, service.as_deref()).await?;
            Ok(views.iter().map(|view| facts::counters(from, view, *rx_packets_at_least)).collect())
        }
        Check::Addresses { from, service, ipv4, ipv6 } => {
            let views = connections(lab, from, service.as_deref()).await?;
            Ok(views.iter().map(|view| facts::addresses(from, view, *ipv4, *ipv6)).collect())
        }
        Check::Tunnel { from, service, between } => {
            let mut outcomes = Vec::new();
            for view in connections(lab, from, service.as_deref()).await? {
                outcomes.push(facts::tunnel(lab, from, &view, *between).await?);
            }
            Ok(outcomes)
        }
        Check::Transfer { from, service, megabytes } => transfer(lab, from, service, *megabytes).await,
        Check::Peers { of, count } => Ok(vec![reach::peers(lab, of, *count).await?]),
        Check::Reach { between, count, sizes } => reach::reach(lab, between, *count, sizes).await,
        Check::NoSecretsInLogs {} => Ok(vec![no_secrets(lab)?]),
    }
}

/// A client's connections, to one service or to all.
pub(super) async fn connections(
    lab: &Lab,
    client: &str,
    service: Option<&str>,
) -> Result<Vec<ConnectionView>, LabError> {
    let admin = AdminClient(lab.layout().admin(&roles::client(client)));
    let all: Result<Vec<ConnectionView>, _> = admin.get("/connections").await;
    let mut all = all.map_err(|error| LabError::failed(format!("connections of {client}"), error))?;
    all.retain(|view| service.is_none_or(|service| view.service == service));
    if all.is_empty() {
        let what = service.map_or_else(String::new, |service| format!(" to {service}"));
        return Err(LabError::failed(format!("connections of {client}"), format!("none{what}")));
    }
    Ok(all)
}

/// How a client's leg to a service is carried, by what the file says.
pub(super) fn leg(lab: &Lab, client: &str, service: &str) -> Option<Leg> {
    let (_, client) = lab.spec().clients().find(|(_, one)| one.name == client)?;
    let asked = |url: &&String| Client::service(url).as_deref() == Some(service);
    Client::leg(client.services.iter().find(asked)?)
}

/// An address without its prefix length.
pub(super) fn bare(address: &str) -> String {
    address.split('/').next().unwrap_or_default().to_owned()
}

/// A client with memif pings all the time; this waits for as many of them as are wanted.
async fn memif_ping(lab: &Lab, from: &str, view: &ConnectionView, count: u32) -> Result<Outcome, LabError> {
    let check = format!("{from} → {}: {count} pings by memif, none lost", view.service);
    let admin = AdminClient(lab.layout().admin(&roles::client(from)));
    let figures = async || -> Result<(u64, u64), LabError> {
        let status: Result<Status, _> = admin.get("/status").await;
        let status = status.map_err(|error| LabError::failed(&check, error))?;
        let sessions = status.reports.get("sessions").cloned().unwrap_or_default();
        let pings = &sessions[view.id.as_str()]["pings"];
        Ok((pings["sent"].as_u64().unwrap_or_default(), pings["answered"].as_u64().unwrap_or_default()))
    };
    let before = figures().await?;
    let deadline = Instant::now() + PING_TIME;
    loop {
        let now = figures().await?;
        let (sent, answered) = (now.0 - before.0, now.1 - before.1);
        let seen = format!("{sent} sent, {answered} answered");
        // One may be under way at either end.
        let lost = sent.saturating_sub(answered) > 1;
        if lost || Instant::now() > deadline {
            return Ok(Outcome { check, failed: Some(seen.clone()), seen });
        }
        if answered >= u64::from(count) {
            return Ok(Outcome { check, failed: None, seen });
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Pings each address of the endpoint; a client with memif pings all of them at once.
async fn ping(
    lab: &Lab,
    from: &str,
    view: &ConnectionView,
    count: u32,
    size: u16,
) -> Result<Vec<Outcome>, LabError> {
    let what = format!("{from} → {}: {count} pings of {size} bytes", view.service);
    if view.endpoint_addresses.is_empty() {
        let failed = Some("the endpoint has no address".into());
        return Ok(vec![Outcome { check: what, failed, seen: String::new() }]);
    }
    if leg(lab, from, &view.service) == Some(Leg::Memif) {
        return Ok(vec![memif_ping(lab, from, view, count).await?]);
    }
    let mut outcomes = Vec::new();
    for address in view.endpoint_addresses.iter().map(|address| bare(address)) {
        let mut words = pings::arguments(count);
        words.extend(["-s", &size.to_string(), "-M", "do", &address].map(str::to_owned));
        let (_, said) = process::run(lab.layout(), from, "ping", &words).await?;
        let line = said.lines().find(|line| line.contains("packets transmitted")).unwrap_or(said.trim());
        let lost = pings::lost(&said, count);
        outcomes.push(Outcome {
            check: format!("{what} to {address}, none lost"),
            failed: (!lost.is_empty()).then(|| format!("no answer to {lost:?}: {said}")),
            seen: line.to_owned(),
        });
    }
    Ok(outcomes)
}

async fn transfer(lab: &Lab, from: &str, service: &str, megabytes: u32) -> Result<Vec<Outcome>, LabError> {
    let check = format!("{from} → {service}: {megabytes} MB by TCP");
    let outcome =
        |failed: Option<String>, seen: String| Ok(vec![Outcome { check: check.clone(), failed, seen }]);
    let view = connections(lab, from, Some(service)).await?.remove(0);
    let Some((_, endpoint)) =
        lab.spec().endpoints().find(|(_, endpoint)| endpoint.service == crate::domain::target(service))
    else {
        return outcome(Some("no endpoint of this service in the file".into()), String::new());
    };
    let Some(address) = view.endpoint_addresses.first().map(|address| bare(address)) else {
        return outcome(Some("the endpoint has no address".into()), String::new());
    };
    if std::process::Command::new("iperf3").arg("--version").output().is_err() {
        return outcome(None, "skipped: iperf3 is not installed".into());
    }
    // How fast is not asked: a machine may be busy with other things.
    let (mut bytes, mut seconds) = (0.0, 0.0);
    let deadline = Instant::now() + TRANSFER_TIME;
    while bytes < f64::from(megabytes) * 1e6 {
        if Instant::now() > deadline {
            return outcome(Some(format!("{:.1} MB in {TRANSFER_TIME:?}", bytes / 1e6)), String::new());
        }
        let report = transfer_once(lab, from, &endpoint.name, &address).await?;
        if let Some(error) = report["error"].as_str() {
            return outcome(Some(format!("iperf3: {error}")), String::new());
        }
        let received = &report["end"]["sum_received"];
        bytes += received["bytes"].as_f64().unwrap_or_default();
        seconds += received["seconds"].as_f64().unwrap_or_default();
    }
    outcome(None, format!("{:.1} MB at {:.0} Mbit/s", bytes / 1e6, bytes * 8e-6 / seconds.max(1e-3)))
}

/// A transfer of a second; iperf3's report.
async fn transfer_once(
    lab: &Lab,
    from: &str,
    endpoint: &str,
    address: &str,
) -> Result<serde_json::Value, LabError> {
    let port = TRANSFER_PORT.to_string();
    // It ends after its one client, or by itself if none came through.
    let server: Vec<String> = ["30", "iperf3", "-s", "-1", "-p", &port].map(str::to_owned).into();
    let layout = lab.layout().clone();
    let part = endpoint.to_owned();
    let server = tokio::spawn(async move { process::run(&layout, &part, "timeout", &server).await });
    let client = [
        "-c",
        address,
        "-p",
        &port,
        "-t",
        // Not a number of bytes: those are sent before a fast link's receiver has counted any.
        "1",
        "-J",
        "--connect-timeout",
        "2000",
    ];
    let client: Vec<String> = client.map(str::to_owned).into();
    let mut report = iperf3(lab.layout(), from, &client).await?;
    for _ in 0..100 {
        // The server may not listen yet.
        if !report["error"].as_str().is_some_and(|error| error.contains("refused")) {
            break;
        }
        tokio::time::sleep(LOOK).await;
        report = iperf3(lab.layout(), from, &client).await?;
    }
    if report["error"].is_null() {
        let _ = server.await;
    } else {
        server.abort();
    }
    Ok(report)
}

/// One run of iperf3's client. It ends with 0 and an `error` in its report if it was refused, so the report decides.
async fn iperf3(layout: &Layout, part: &str, args: &[String]) -> Result<serde_json::Value, LabError> {
    let (_, said) = process::run(layout, part, "iperf3", args).await?;
    Ok(serde_json::from_str(&said).unwrap_or_else(|_| serde_json::json!({ "error": said })))
}

fn no_secrets(lab: &Lab) -> Result<Outcome, LabError> {
    let check = "no token and no key in any log".to_owned();
    let directory = lab.layout().directory().join("log");
    let failed = |error| LabError::failed(directory.display().to_string(), error);
    let (mut files, mut bytes) = (0, 0);
    for entry in fs::read_dir(&directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let text = fs::read(&path).map_err(failed)?;
        files += 1;
        bytes += text.len();
        for secret in ["eyJ", "PRIVATE KEY"] {
            if text.windows(secret.len()).any(|window| window == secret.as_bytes()) {
                let reason = format!("{} holds {secret:?}", path.display());
                return Ok(Outcome { check, failed: Some(reason), seen: String::new() });
            }
        }
    }
    Ok(Outcome { check, failed: None, seen: format!("{bytes} bytes in {files} logs") })
}
