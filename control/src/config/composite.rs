//! The configuration of the first composite endpoints (`universal-cnf`'s `config.yaml`), as settings of the roles that do their work.
//!
//! ```yaml
//! endpoints:
//!   - name: vl3-service              # the network service
//!     labels: {app: vl3-nse}
//!     ipam:
//!       prefixpool: 10.60.0.0/16
//!       prefixlength: 24             # of what one vL3 endpoint gets
//!       routes: [172.16.0.0/12]      # what clients reach by way of the endpoint
//!     ifname: endpoint0              # has no meaning here: each connection has an interface of its own
//! initactions:
//!   - client: {name: icmp-responder, ifname: client0, labels: {app: ucnf-client}}
//!   - command: {name: vppctl, args: [show, version]}     # is not run: there is no VPP
//! ```
//!
//! Keys are taken in any case, and the address part also under `vl3:`, as later versions had it. The file may be the Kubernetes `ConfigMap`
//! that it came in. What would be lost silently, such as packet filters, is refused.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value};

mod fields;
mod settings;

use fields::Fields;

/// What a file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Composite {
    /// What is offered. All of it by one process: they differ in their names only.
    pub endpoints: Vec<Endpoint>,
    /// What is asked for.
    pub clients: Vec<Client>,
}

/// One endpoint of a network service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// The service.
    pub service: String,
    /// The endpoint's own name.
    pub name: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Where addresses are assigned from.
    pub pool: Option<IpNet>,
    /// The length of what one vL3 endpoint has of it.
    pub length: Option<u8>,
    /// What clients reach by way of it.
    pub routes: Vec<IpNet>,
    /// Who hands out prefixes.
    pub server: Option<String>,
    /// Name servers for clients.
    pub name_servers: Vec<IpAddr>,
}

impl Endpoint {
    /// The first field, other than the service's name, in which another one differs: its place in the file, what the other has, and
    /// what this one has.
    fn differs(&self, other: &Self) -> Option<(&'static str, String, String)> {
        fn one<T: ToString>(value: &Option<T>) -> String {
            value.as_ref().map_or("nothing".to_owned(), ToString::to_string)
        }
        fn all<T: ToString>(values: &[T]) -> String {
            if values.is_empty() { "nothing".to_owned() } else { list(values).unwrap_or_default() }
        }
        let labels = |endpoint: &Self| {
            if endpoint.labels.is_empty() { "nothing".to_owned() } else { pairs(&endpoint.labels) }
        };
        let fields = [
            ("nsename", one(&other.name), one(&self.name)),
            ("labels", labels(other), labels(self)),
            ("ipam.prefixpool", one(&other.pool), one(&self.pool)),
            ("ipam.prefixlength", one(&other.length), one(&self.length)),
            ("ipam.routes", all(&other.routes), all(&self.routes)),
            ("ipam.serveraddress", one(&other.server), one(&self.server)),
            ("nameservers", all(&other.name_servers), all(&self.name_servers)),
        ];
        fields.into_iter().find(|(_, here, first)| here != first)
    }
}

/// One network service that is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Client {
    /// The service.
    pub service: String,
    /// The interface.
    pub interface: String,
    /// The client's labels.
    pub labels: BTreeMap<String, String>,
}

/// Reads a file if it is one of these; none if it is something else, such as a file of settings.
///
/// # Errors
/// The field, and what is wrong with it.
pub fn read(yaml: &str) -> Result<Option<Composite>, String> {
    for document in serde_yaml_ng::Deserializer::from_str(yaml) {
        let fields = match Value::deserialize(document) {
            Ok(Value::Object(fields)) => fields,
            Ok(_) => continue,
            // Whoever reads it as something else says what is wrong.
            Err(_) => break,
        };
        if let Some(inner) = of_config_map(&fields) {
            let fields =
                serde_yaml_ng::from_str(inner).map_err(|error| format!("data.config.yaml: {error}"))?;
            return composite(fields).map(Some);
        }
        if is_composite(&fields) {
            return composite(fields).map(Some);
        }
    }
    Ok(None)
}

/// Neither is a setting of any role.
fn is_composite(fields: &Map<String, Value>) -> bool {
    fields.keys().any(|key| ["endpoints", "initactions"].contains(&key.to_ascii_lowercase().as_str()))
}

fn of_config_map(fields: &Map<String, Value>) -> Option<&str> {
    let is_map = fields.get("kind").and_then(Value::as_str) == Some("ConfigMap");
    fields.get("data").filter(|_| is_map)?.get("config.yaml")?.as_str()
}

fn composite(fields: Map<String, Value>) -> Result<Composite, String> {
    let mut fields = Fields::new("", fields)?;
    let endpoints = fields.list("endpoints")?.into_iter().map(endpoint).collect::<Result<Vec<_>, _>>()?;
    let actions = fields.list("initactions")?.into_iter().map(client).collect::<Result<Vec<_>, _>>()?;
    fields.end()?;
    for (number, other) in endpoints.iter().enumerate().skip(1) {
        if let Some((field, here, first)) = endpoints[0].differs(other) {
            return Err(format!(
                "endpoints[{number}].{field}: {here}, and endpoints[0] has {first}: one process is one endpoint, and all that it offers \
                 under several names has to be equal; give {:?} a file and a process of its own, or both the same {field}",
                other.service
            ));
        }
    }
    Ok(Composite { endpoints, clients: actions.into_iter().flatten().collect() })
}

fn endpoint(mut fields: Fields) -> Result<Endpoint, String> {
    let mut endpoint = Endpoint {
        service: fields
            .word("name")?
            .ok_or_else(|| format!("{}name: missing; it is the network service", fields.at))?,
        name: fields.word("nsename")?,
        labels: fields.labels()?,
        ..Endpoint::default()
    };
    addresses(&mut fields, &mut endpoint)?;
    if let Some(mut later) = fields.object("vl3")? {
        addresses(&mut later, &mut endpoint)?;
        later.end()?;
    }
    fields.end()?;
    Ok(endpoint)
}

/// What stood in the endpoint itself first, and under `vl3` later.
fn addresses(fields: &mut Fields, endpoint: &mut Endpoint) -> Result<(), String> {
    // Interfaces are named by the mesh.
    fields.word("ifname")?;
    endpoint.name_servers.extend(fields.values::<IpAddr>("nameservers", "an address")?);
    let Some(mut ipam) = fields.object("ipam")? else { return Ok(()) };
    for key in ["prefixpool", "defaultprefixpool"] {
        endpoint.pool = ipam.value(key, "a prefix such as 10.60.0.0/16")?.or(endpoint.pool);
    }
    endpoint.length = ipam.value("prefixlength", "a length such as 24")?.or(endpoint.length);
    endpoint.routes.extend(ipam.values::<IpNet>("routes", "a prefix such as 10.60.0.0/16")?);
    endpoint.server = ipam.word("serveraddress")?.or(endpoint.server.take());
    ipam.end()
}

fn client(mut fields: Fields) -> Result<Option<Client>, String> {
    // There is no VPP that it could talk to.
    drop(fields.take("command"));
    let asked = fields.object("client")?;
    fields.end()?;
    let Some(mut asked) = asked else { return Ok(None) };
    let service =
        asked.word("name")?.ok_or_else(|| format!("{}name: missing; it is the network service", asked.at))?;
    let interface = asked.word("ifname")?.unwrap_or_default();
    let labels = asked.labels()?;
    asked.end()?;
    Ok(Some(Client { service, interface, labels }))
}

fn pairs(labels: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = labels.iter().map(|(key, value)| format!("{key}:{value}")).collect();
    pairs.join(",")
}

fn list<T: ToString>(items: &[T]) -> Option<String> {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    (!items.is_empty()).then(|| items.join(","))
}

#[cfg(test)]
mod tests;
