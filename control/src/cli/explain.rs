//! `vwire explain SERVICE`: which endpoints would serve a client with these labels, and why not the others.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::table::Table;
use super::{Output, VerbError, from_now, print, print_json};
use crate::api::labels::shown;
use crate::api::matching::{Explanation, explain};
use crate::api::registry::{Match, NetworkService, NetworkServiceEndpoint};
use crate::config::{self, Labels, Maybe};
use crate::identity::{Identity, TokenSource};
use crate::registry::remote::Remote;
use crate::registry::{RegistryCall, find};
use crate::transport::{Dialling, Pool, Target};

/// How long the Workload API and the registry have, each.
const PATIENCE: Duration = Duration::from_secs(5);

/// `vwire explain`
#[derive(Debug, Clone, clap::Args)]
pub struct ExplainArgs {
    /// The network service.
    service: String,
    /// The client's: key=value,key=value.
    #[arg(long, value_name = "LABELS", default_value = "")]
    labels: Labels,
    /// The manager that the client would ask, or a registry.
    #[arg(
        long,
        env = "NSM_CONNECT_TO",
        value_name = "URL",
        default_value = "unix:///var/lib/networkservicemesh/nsm.io.sock"
    )]
    connect_to: Target,
    /// The Workload API that says who we are.
    #[arg(long, env = "SPIFFE_ENDPOINT_SOCKET", value_name = "URL", default_value = "")]
    spiffe_endpoint_socket: Maybe<Target>,
    /// Asks without TLS.
    #[arg(long, env = "VWIRE_INSECURE", value_name = "BOOL", default_value = "false", value_parser = config::boolean,
          action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    insecure: bool,
    /// table or json.
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Output,
}

/// A choice, with its reasons.
#[derive(Debug, Serialize)]
struct Choice {
    service: String,
    payload: String,
    labels: String,
    matches: Vec<MatchLine>,
    candidates: Vec<Candidate>,
    /// What a Request would be told; none if it would be served.
    refusal: Option<String>,
}

#[derive(Debug, Serialize)]
struct MatchLine {
    index: usize,
    /// What a client's labels must be.
    source: String,
    /// What an endpoint's labels must be, as the registry has it: templates are not filled in.
    routes: Vec<String>,
    fallthrough: bool,
    result: String,
}

#[derive(Debug, Serialize)]
struct Candidate {
    name: String,
    labels: String,
    url: String,
    expires: Option<i64>,
    /// Its place in the order in which endpoints are tried, from 0.
    place: Option<usize>,
    result: String,
}

impl ExplainArgs {
    /// Asks for the service and its endpoints, chooses as a manager would, and prints every step.
    ///
    /// # Errors
    /// [`VerbError`].
    pub async fn run(&self) -> Result<(), VerbError> {
        let registry = Remote::new(Arc::new(self.pool().await?), self.connect_to.clone());
        let refused = |status: tonic::Status| {
            VerbError::Which(format!("{}: {:?}: {}", self.connect_to, status.code(), status.message()))
        };
        let mut call = RegistryCall::internal("vwire explain", PATIENCE);
        let service = find::service(&registry, &mut call, &self.service).await.map_err(refused)?;
        let query = NetworkServiceEndpoint {
            network_service_names: vec![self.service.clone()],
            ..NetworkServiceEndpoint::default()
        };
        let mut call = RegistryCall::internal("vwire explain", PATIENCE);
        let found = find::endpoints(&registry, &mut call, query).await.map_err(refused)?;
        let endpoints: Vec<Arc<NetworkServiceEndpoint>> =
            found.into_iter().map(|event| event.endpoint).collect();
        let labels = self.labels.0.clone().into_iter().collect();
        let choice = choice(&service, &endpoints, &explain(&labels, &service, &endpoints));
        match self.output {
            Output::Json => print_json(&choice),
            Output::Table => print(&text(&choice)),
        }
    }

    async fn pool(&self) -> Result<Pool, VerbError> {
        let identity = match &self.spiffe_endpoint_socket.0 {
            _ if self.insecure => Identity::insecure(),
            None => {
                return Err(VerbError::Which(
                    "SPIFFE_ENDPOINT_SOCKET: not set; the mesh wants to know who asks (or --insecure)"
                        .to_owned(),
                ));
            }
            Some(endpoint) => {
                let identity = tokio::time::timeout(PATIENCE, Identity::from_workload_api(endpoint)).await;
                let late = |_| VerbError::Which(format!("{endpoint}: no SVID within {PATIENCE:?}"));
                identity.map_err(late)?.map_err(|error| VerbError::Which(error.to_string()))?
            }
        };
        let tokens = TokenSource::new(identity.clone(), Duration::from_secs(600));
        Ok(Pool::new(identity, tokens, Dialling { timeout: PATIENCE, ..Dialling::default() }))
    }
}

fn choice(service: &NetworkService, endpoints: &[Arc<NetworkServiceEndpoint>], why: &Explanation) -> Choice {
    let line = |(index, one): (usize, &Match)| {
        let route = |route: &crate::api::registry::Destination| {
            let weight = if route.weight == 0 { String::new() } else { format!(" weight {}", route.weight) };
            format!("{}{weight}", any(&route.destination_selector))
        };
        let result = match why.matches.iter().find(|result| result.index == index) {
            None => "not looked at: an earlier match decided".to_owned(),
            Some(result) => match (&result.not_for_client, result.fell_through) {
                (Some(reason), _) => format!("not for this client: {reason}"),
                (None, true) => "chose none; falls through to the next".to_owned(),
                (None, false) => format!("chose {}", result.chosen),
            },
        };
        MatchLine {
            index,
            source: any(&one.source_selector),
            routes: one.routes.iter().map(route).collect(),
            fallthrough: one.fallthrough,
            result,
        }
    };
    let candidate = |(index, endpoint): (usize, &Arc<NetworkServiceEndpoint>)| {
        let place = why.chosen.iter().position(|chosen| chosen.index == index);
        let refusal = why.refused.iter().find(|refusal| refusal.endpoint == endpoint.name);
        let result = match (place, refusal) {
            (Some(place), _) => match why.chosen[place].weight {
                0 => "chosen".to_owned(),
                weight => format!("chosen, weight {weight}"),
            },
            (None, Some(refusal)) => format!("refused: {}", refusal.reason),
            (None, None) => "refused".to_owned(),
        };
        let labels = endpoint.network_service_labels.get(&service.name);
        Candidate {
            name: endpoint.name.clone(),
            labels: labels.map(|labels| shown(&labels.labels)).unwrap_or_default(),
            url: endpoint.url.clone(),
            expires: endpoint.expiration_time.as_ref().map(|end| end.seconds),
            place,
            result,
        }
    };
    let mut candidates: Vec<Candidate> = endpoints.iter().enumerate().map(candidate).collect();
    candidates.sort_by_key(|candidate| candidate.place.unwrap_or(usize::MAX));
    Choice {
        service: service.name.clone(),
        payload: service.payload.clone(),
        labels: shown(&why.labels),
        matches: service.matches.iter().enumerate().map(line).collect(),
        candidates,
        refusal: why.chosen.is_empty().then(|| why.to_string()),
    }
}

/// Labels to be had, or `any`.
fn any(labels: &crate::api::labels::Labels) -> String {
    if labels.is_empty() { "any".to_owned() } else { shown(labels) }
}

fn text(choice: &Choice) -> String {
    let mut text =
        format!("service {}  payload {}  client {}\n\n", choice.service, choice.payload, choice.labels);
    if choice.matches.is_empty() {
        text += "no matches: every endpoint may serve every client\n";
    } else {
        let mut table = Table::new(&["MATCH", "CLIENT", "ENDPOINT", "FALLTHROUGH", "RESULT"]);
        for line in &choice.matches {
            table.row([
                line.index.to_string(),
                line.source.clone(),
                line.routes.join(" | "),
                if line.fallthrough { "yes" } else { "no" }.to_owned(),
                line.result.clone(),
            ]);
        }
        text += &table.text();
    }
    text += "\n";
    let mut table = Table::new(&["CANDIDATE", "LABELS", "URL", "EXPIRES", "RESULT"]);
    for candidate in &choice.candidates {
        table.row([
            candidate.name.clone(),
            candidate.labels.clone(),
            candidate.url.clone(),
            candidate.expires.map(from_now).unwrap_or_default(),
            candidate.result.clone(),
        ]);
    }
    text += &table.text();
    if let Some(refusal) = &choice.refusal {
        text += &format!("\na Request would be refused: {refusal}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::registry::{Destination, NetworkServiceLabels};

    fn labels(pairs: &[(&str, &str)]) -> crate::api::labels::Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn endpoint(name: &str, app: &str) -> Arc<NetworkServiceEndpoint> {
        let labels = NetworkServiceLabels { labels: labels(&[("app", app)]) };
        Arc::new(NetworkServiceEndpoint {
            name: name.to_owned(),
            network_service_labels: [("s".to_owned(), labels)].into(),
            ..NetworkServiceEndpoint::default()
        })
    }

    fn to(app: &str) -> Destination {
        Destination { destination_selector: labels(&[("app", app)]), weight: 3 }
    }

    #[test]
    fn every_match_and_every_candidate_has_its_reason() {
        let service = NetworkService {
            name: "s".to_owned(),
            payload: "IP".to_owned(),
            matches: vec![
                Match {
                    source_selector: labels(&[("tier", "back")]),
                    routes: vec![to("a")],
                    ..Match::default()
                },
                Match { routes: vec![to("b")], fallthrough: true, ..Match::default() },
                Match { routes: vec![to("c")], ..Match::default() },
                Match::default(),
            ],
            ..NetworkService::default()
        };
        let endpoints = [endpoint("e-a", "a"), endpoint("e-c", "c")];
        let why = explain(&labels(&[("tier", "front")]), &service, &endpoints);
        let choice = choice(&service, &endpoints, &why);
        let results: Vec<&str> = choice.matches.iter().map(|line| line.result.as_str()).collect();
        assert!(results[0].starts_with("not for this client: "), "{results:?}");
        assert_eq!(
            results[1..],
            ["chose none; falls through to the next", "chose 1", "not looked at: an earlier match decided"]
        );
        let shown = text(&choice);
        assert_eq!(
            (choice.candidates[0].name.as_str(), choice.candidates[0].result.as_str()),
            ("e-c", "chosen, weight 3")
        );
        assert!(choice.candidates[1].result.starts_with("refused: "), "{shown}");
        assert!(choice.refusal.is_none() && shown.contains("tier=front"), "{shown}");
    }

    #[test]
    fn who_would_be_refused_is_told_as_a_request_would_be() {
        let service = NetworkService {
            name: "s".to_owned(),
            matches: vec![Match { routes: vec![to("x")], ..Match::default() }],
            ..NetworkService::default()
        };
        let endpoints = [endpoint("e-a", "a")];
        let why = explain(&labels(&[]), &service, &endpoints);
        let choice = choice(&service, &endpoints, &why);
        assert_eq!(choice.refusal, Some(why.to_string()));
        assert!(text(&choice).contains("a Request would be refused: no endpoint of `s` matches"));
    }
}
