//! What sessions say of name servers.

use std::str::FromStr;
use std::sync::Arc;

use tokio::sync::watch;

use super::{Dns, Names};
use crate::client::{Phase, SessionStatus};
use crate::config;

/// Whether a client has a name server (`NSM_LOCAL_DNS_SERVER_ENABLED`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// As the Go client has it by default, in a pod; not on a host, whose `/etc/resolv.conf` is everybody's.
    Auto,
    /// In any case.
    On,
    /// In none.
    Off,
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            text => match config::boolean(text) {
                Ok(true) => Ok(Self::On),
                Ok(false) => Ok(Self::Off),
                Err(_) => Err("write true, false or auto".to_owned()),
            },
        }
    }
}

impl Choice {
    /// What it means here: Kubernetes tells each container where its API is.
    pub fn is_on(self) -> bool {
        match self {
            Self::Auto => std::env::var_os("KUBERNETES_SERVICE_HOST").is_some(),
            Self::On => true,
            Self::Off => false,
        }
    }
}

impl Dns {
    /// Knows what this session's connection says, as long as the session lives.
    pub fn follow(&self, id: &str, status: watch::Receiver<SessionStatus>) {
        tokio::spawn(follow(Arc::clone(&self.names), id.to_owned(), status));
    }
}

async fn follow(names: Arc<Names>, id: String, mut status: watch::Receiver<SessionStatus>) {
    loop {
        let (phase, configs) = {
            let status = status.borrow_and_update();
            let context = status.connection.as_ref().and_then(|connection| connection.context.as_ref());
            let dns = context.and_then(|context| context.dns_context.as_ref());
            (status.phase, dns.map(|dns| dns.configs.clone()).unwrap_or_default())
        };
        if matches!(phase, Phase::Closing | Phase::Closed) {
            break;
        }
        names.put(&id, &configs);
        if status.changed().await.is_err() {
            break;
        }
    }
    names.remove(&id);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sessions_name_servers_come_and_go_with_it() {
        use vwire_proto::nsm::connection::Connection;
        use vwire_proto::nsm::connectioncontext::{ConnectionContext, DnsConfig, DnsContext};

        let any = "127.0.0.1:0".parse().unwrap();
        let dns = Dns::start(any, crate::client::Namespace::own().unwrap(), None).await.unwrap();
        let (set, status) = watch::channel(SessionStatus::new());
        dns.follow("nsc-0", status);
        let configs = vec![DnsConfig { dns_server_ips: vec!["172.16.0.53".into()], search_domains: vec![] }];
        let context = ConnectionContext { dns_context: Some(DnsContext { configs }), ..Default::default() };
        set.send_modify(|status| {
            status.phase = Phase::Up;
            status.connection = Some(Connection { context: Some(context), ..Default::default() });
        });
        let knows = |servers: usize| {
            let names = Arc::clone(&dns.names);
            async move {
                while names.configs().iter().map(|config| config.servers.len()).sum::<usize>() != servers {
                    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
                }
            }
        };
        let patience = std::time::Duration::from_secs(10);
        tokio::time::timeout(patience, knows(1)).await.expect("while it is up");
        set.send_modify(|status| status.phase = Phase::Closing);
        tokio::time::timeout(patience, knows(0)).await.expect("no more");
    }

    #[test]
    fn on_a_host_nothing_is_touched_unless_told() {
        assert_eq!("auto".parse(), Ok(Choice::Auto));
        assert!("true".parse::<Choice>().unwrap().is_on() && !"false".parse::<Choice>().unwrap().is_on());
        assert!("maybe".parse::<Choice>().unwrap_err().contains("auto"));
    }
}
