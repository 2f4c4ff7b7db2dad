//! How much is taken from one registrant, and altogether.

use tonic::Status;

use super::resource::Resource;

/// Limits of a store. A registration beyond one is refused with its name.
#[derive(Debug, Clone, clap::Args)]
#[group(skip)]
pub struct Limits {
    /// Longest name, bytes.
    #[arg(skip = Limits::default().name_bytes)]
    pub name_bytes: usize,
    /// Largest service or endpoint, bytes as encoded.
    #[arg(skip = Limits::default().object_bytes)]
    pub object_bytes: usize,
    /// Most services that one endpoint offers.
    #[arg(skip = Limits::default().services_per_endpoint)]
    pub services_per_endpoint: usize,
    /// Most labels and selectors of one service or endpoint.
    #[arg(skip = Limits::default().labels)]
    pub labels: usize,
    /// Most endpoints, and most services, of one identity.
    #[arg(id = "registry-per-identity", long = "registry-per-identity", alias = "per-identity", env = "VWIRE_REGISTRY_PER_IDENTITY", value_name = "COUNT", default_value_t = Limits::default().per_identity)]
    pub per_identity: usize,
    /// Most endpoints, and most services, in all.
    #[arg(id = "registry-total", long = "registry-total", alias = "total", env = "VWIRE_REGISTRY_TOTAL", value_name = "COUNT", default_value_t = Limits::default().total)]
    pub total: usize,
    /// Most watches of services, and of endpoints, at a time.
    #[arg(id = "registry-watches", long = "registry-watches", env = "VWIRE_REGISTRY_WATCHES", value_name = "COUNT", default_value_t = Limits::default().watches)]
    pub watches: usize,
    /// Most changes that wait for one slow watcher; one further behind is disconnected.
    #[arg(skip = Limits::default().watch_backlog)]
    pub watch_backlog: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            name_bytes: 1024,
            object_bytes: 64 << 10,
            services_per_endpoint: 64,
            labels: 1024,
            per_identity: 20_000,
            total: 200_000,
            watches: 50_000,
            watch_backlog: 16_384,
        }
    }
}

impl Limits {
    /// What is wrong with the thing itself.
    pub(super) fn check<T: Resource>(&self, item: &T) -> Result<(), Status> {
        let kind = T::KIND;
        if item.name().is_empty() {
            return Err(Status::invalid_argument(format!("name: a {kind} needs one")));
        }
        let too_much = |what: &str, is: usize, most: usize| match is > most {
            true => Err(Status::invalid_argument(format!(
                "{what}: {is} of {kind} `{:.64}`; this registry takes at most {most}",
                Short(item.name())
            ))),
            false => Ok(()),
        };
        too_much("name bytes", item.name().len(), self.name_bytes)?;
        too_much("network_service_names", item.services().count(), self.services_per_endpoint)?;
        too_much("labels", item.labels(), self.labels)?;
        too_much("encoded bytes", item.encoded_len(), self.object_bytes)
    }

    /// One more of what is there already.
    pub(super) fn check_counts<T: Resource>(&self, total: usize, of_owner: usize) -> Result<(), Status> {
        let full = |whose: &str, most: usize, setting: &str| {
            Err(Status::resource_exhausted(format!(
                "{whose} {most} {}s already: the limit of this registry ({setting})",
                T::KIND
            )))
        };
        if total >= self.total {
            return full("there are", self.total, "VWIRE_REGISTRY_TOTAL");
        }
        if of_owner >= self.per_identity {
            return full("the caller's identity has", self.per_identity, "VWIRE_REGISTRY_PER_IDENTITY");
        }
        Ok(())
    }
}

/// A text that `{:.n}` shortens at a character.
struct Short<'a>(&'a str);

impl std::fmt::Display for Short<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.0)
    }
}
