//! What a file asks of each role, as that role's settings.

use std::collections::BTreeMap;
use std::env::VarError;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Client, Composite, Endpoint, list, pairs};

/// The last part of an endpoint's prefix, as the first vL3 was told it where there was no prefix service.
const UNIQUE_OCTET: &str = "NSE_IPAM_UNIQUE_OCTET";

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

    pub(super) fn settings_with(
        &self,
        role: &str,
        octet: Option<&str>,
    ) -> Result<BTreeMap<String, String>, String> {
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

fn name_servers(servers: &[IpAddr]) -> Option<String> {
    let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
    (!servers.is_empty()).then(|| serde_json::json!([{ "dns_server_ips": servers }]).to_string())
}
