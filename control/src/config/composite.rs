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
use std::env::VarError;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value};

/// The last part of an endpoint's prefix, as the first vL3 was told it where there was no prefix service.
const UNIQUE_OCTET: &str = "NSE_IPAM_UNIQUE_OCTET";

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

impl Composite {
    /// The settings of a role that do what the file asks of it, by their keys.
    ///
    /// # Errors
    /// If there is nothing in the file for this role, or something that it can't do.
    pub fn settings(&self, role: &str) -> Result<BTreeMap<String, String>, String> {
        let octet = match std::env::var(UNIQUE_OCTET) {
            Ok(text) => Some(text),
            Err(VarError::NotPresent) => None,
            Err(error) => return Err(format!("{UNIQUE_OCTET}: {error}")),
        };
        self.settings_with(role, octet.as_deref())
    }

    fn settings_with(&self, role: &str, octet: Option<&str>) -> Result<BTreeMap<String, String>, String> {
        let first = || self.endpoints.first().ok_or_else(|| "endpoints: there is none".to_owned());
        let mut settings = BTreeMap::new();
        let mut set = |key: &str, value: Option<String>| {
            drop(value.map(|value| settings.insert(key.to_owned(), value)))
        };
        match role {
            "nse" | "vl3" => {
                let endpoint = first()?;
                let services: Vec<&str> =
                    self.endpoints.iter().map(|endpoint| endpoint.service.as_str()).collect();
                set("service_names", Some(services.join(",")));
                set("name", endpoint.name.clone());
                set("labels", Some(pairs(&endpoint.labels)));
                if role == "nse" {
                    set("cidr_prefix", endpoint.pool.map(|pool| pool.to_string()));
                    set("routes", list(&endpoint.routes));
                    set("dns_configs", name_servers(&endpoint.name_servers));
                } else {
                    refuse(
                        !endpoint.routes.is_empty(),
                        "ipam.routes: a vL3 endpoint leads to its network only",
                    )?;
                    refuse(
                        !endpoint.name_servers.is_empty(),
                        "nameservers: a vL3 endpoint is the name server of its clients",
                    )?;
                    set("prefix_server_url", endpoint.server.clone());
                    if let Some(octet) = octet {
                        set("vl3_prefix", Some(own_prefix(endpoint, octet)?.to_string()));
                    }
                }
            }
            "vl3-ipam" => {
                let endpoint = first()?;
                let pool = endpoint
                    .pool
                    .ok_or("endpoints[0].ipam.prefixpool: missing; it is what prefixes are handed out of")?;
                set("prefix", Some(pool.to_string()));
                set("client_prefix_len", endpoint.length.map(|length| length.to_string()));
            }
            "nsc" => {
                if self.clients.is_empty() {
                    return Err("initactions: no client is among them".to_owned());
                }
                let urls: Vec<String> = self.clients.iter().map(Client::url).collect();
                set("network_services", Some(urls.join(",")));
            }
            other => {
                return Err(format!(
                    "endpoints: `vwire {other}` is none; nse, vl3, vl3-ipam and nsc read such a file"
                ));
            }
        }
        Ok(settings)
    }
}

impl Client {
    /// As `NSM_NETWORK_SERVICES` has it.
    fn url(&self) -> String {
        let mut url = format!("kernel://{}/{}", self.service, self.interface);
        for (number, (key, value)) in self.labels.iter().enumerate() {
            url += &format!("{}{key}={value}", if number == 0 { '?' } else { '&' });
        }
        url
    }
}

fn refuse(bad: bool, told: &str) -> Result<(), String> {
    if bad { Err(format!("endpoints[0].{told}")) } else { Ok(()) }
}

/// The /24 with this third part, as the first vL3 took it from its pool of 16 bits.
fn own_prefix(endpoint: &Endpoint, octet: &str) -> Result<IpNet, String> {
    let number: u8 =
        octet.trim().parse().map_err(|_| format!("{UNIQUE_OCTET}: {octet:?}: a number from 0 to 255"))?;
    match endpoint.pool {
        Some(IpNet::V4(pool)) if pool.prefix_len() == 16 => {
            let [a, b, ..] = pool.network().octets();
            Ok(IpNet::from(ipnet::Ipv4Net::new_assert([a, b, number, 0].into(), 24)))
        }
        Some(pool) => Err(format!(
            "endpoints[0].ipam.prefixpool: {pool}: {UNIQUE_OCTET} is the third part of a prefix of 16 bits"
        )),
        None => Err(format!("endpoints[0].ipam.prefixpool: missing; {UNIQUE_OCTET} is a part of it")),
    }
}

fn pairs(labels: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = labels.iter().map(|(key, value)| format!("{key}:{value}")).collect();
    pairs.join(",")
}

fn list<T: ToString>(items: &[T]) -> Option<String> {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    (!items.is_empty()).then(|| items.join(","))
}

fn name_servers(servers: &[IpAddr]) -> Option<String> {
    let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
    (!servers.is_empty()).then(|| serde_json::json!([{ "dns_server_ips": servers }]).to_string())
}

/// The fields of one object, taken one by one; what nobody takes is an error.
struct Fields {
    /// Where it is: `endpoints[0].ipam.`.
    at: String,
    fields: Map<String, Value>,
}

impl Fields {
    fn new(at: impl Into<String>, fields: Map<String, Value>) -> Result<Self, String> {
        let at = at.into();
        let mut lower = Map::new();
        for (key, value) in fields {
            if lower.insert(key.to_ascii_lowercase(), value).is_some() {
                return Err(format!("{at}{}: there twice", key.to_ascii_lowercase()));
            }
        }
        Ok(Self { at, fields: lower })
    }

    /// A field's value; what is null is not there.
    fn take(&mut self, key: &str) -> Option<Value> {
        self.fields.remove(key).filter(|value| !value.is_null())
    }

    /// Text that can stand in a list or a URL.
    fn word(&mut self, key: &str) -> Result<Option<String>, String> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let text = text(&value).ok_or_else(|| format!("{}{key}: not a text", self.at))?;
        let plain = |c: char| !c.is_whitespace() && !c.is_control() && !",[]?&=#".contains(c);
        if !text.chars().all(plain) {
            return Err(format!("{}{key}: {text:?}: has a blank or one of , [ ] ? & = #", self.at));
        }
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    fn value<T: std::str::FromStr>(&mut self, key: &str, what: &str) -> Result<Option<T>, String> {
        let at = format!("{}{key}", self.at);
        let Some(word) = self.word(key)? else { return Ok(None) };
        word.parse().map(Some).map_err(|_| format!("{at}: {word:?} is not {what}"))
    }

    fn values<T: std::str::FromStr>(&mut self, key: &str, what: &str) -> Result<Vec<T>, String> {
        let at = format!("{}{key}", self.at);
        let items = match self.take(key) {
            None => Vec::new(),
            Some(Value::Array(items)) => items,
            Some(_) => return Err(format!("{at}: not a list")),
        };
        let item = |item: &Value| {
            let read = text(item).and_then(|text| text.parse().ok());
            read.ok_or_else(|| format!("{at}: {item} is not {what}"))
        };
        items.iter().map(item).collect()
    }

    fn object(&mut self, key: &str) -> Result<Option<Self>, String> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Object(fields)) => Self::new(format!("{}{key}.", self.at), fields).map(Some),
            Some(_) => Err(format!("{}{key}: not a list of keys with values", self.at)),
        }
    }

    fn list(&mut self, key: &str) -> Result<Vec<Self>, String> {
        let items = match self.take(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(items)) => items,
            Some(_) => return Err(format!("{}{key}: not a list", self.at)),
        };
        let item = |(number, item)| match item {
            Value::Object(fields) => Self::new(format!("{}{key}[{number}].", self.at), fields),
            _ => Err(format!("{}{key}[{number}]: not a list of keys with values", self.at)),
        };
        items.into_iter().enumerate().map(item).collect()
    }

    fn labels(&mut self) -> Result<BTreeMap<String, String>, String> {
        let mut labels = BTreeMap::new();
        let fields = match self.take("labels") {
            None => return Ok(labels),
            Some(Value::Object(fields)) => fields,
            Some(_) => return Err(format!("{}labels: not a list of keys with values", self.at)),
        };
        for (key, value) in fields {
            let at = format!("{}labels.{key}", self.at);
            let value = text(&value).ok_or_else(|| format!("{at}: not a text"))?;
            let fits = |text: &str| !text.contains([':', '=', ',', '&', '?', '#']) && text.trim() == text;
            if key.is_empty() || !fits(&key) || !fits(&value) {
                return Err(format!(
                    "{at}: {value:?}: a label has no blanks around it, and none of : = , & ? #"
                ));
            }
            labels.insert(key, value);
        }
        Ok(labels)
    }

    /// Nothing may be left.
    fn end(self) -> Result<(), String> {
        let Some(key) = self.fields.keys().next() else { return Ok(()) };
        let told = if key == "action" {
            "nothing of it can be done here, and it must not be lost"
        } else {
            "nobody knows it"
        };
        Err(format!("{}{key}: {told}", self.at))
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(value) => Some(value.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
