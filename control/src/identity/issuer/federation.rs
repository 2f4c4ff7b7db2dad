//! Which other trust domains an issuer's workloads believe: bundles in files, looked at again and again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::bundle::{self, Authorities};
use super::endpoint::Endpoint;
use super::store::{at, write_new};
use super::{IssuerError, read_bundle};
use crate::identity::{Bundles, TrustDomain};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// By which endings a folder's bundles are known.
const ENDINGS: [&str; 2] = ["pem", "json"];
/// By which ending it is known where a domain publishes its bundle.
const ENDPOINT: &str = "endpoint";

/// A folder with a bundle of each trust domain that is believed: `<trust domain>.pem` or `<trust domain>.json`. Where
/// `<trust domain>.endpoint` says where the domain publishes its bundle, the bundle is followed from there.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

impl Folder {
    /// The folder, made if it is not there.
    ///
    /// # Errors
    /// [`IssuerError::File`].
    pub fn open(path: &Path) -> Result<Self, IssuerError> {
        fs::create_dir_all(path).map_err(at(path))?;
        Ok(Self(path.to_owned()))
    }

    /// Its bundles' files.
    fn files(&self) -> Vec<(TrustDomain, PathBuf)> {
        self.ending_in(&ENDINGS)
    }

    fn ending_in(&self, endings: &[&str]) -> Vec<(TrustDomain, PathBuf)> {
        let Ok(entries) = fs::read_dir(&self.0) else { return Vec::new() };
        let mut files: Vec<_> = entries
            .flatten()
            .filter_map(|entry| Some((named(&entry.path(), endings)?, entry.path())))
            .collect();
        files.sort_by(|a, b| a.1.cmp(&b.1));
        files
    }

    /// Where domains publish their bundles. One that can't be read is left out, with a line in the log.
    pub fn endpoints(&self) -> BTreeMap<TrustDomain, Endpoint> {
        let read = |(domain, file): (TrustDomain, PathBuf)| {
            let text = fs::read(&file).map_err(|error| error.to_string());
            match text.and_then(|text| Endpoint::parse(&text)) {
                Ok(endpoint) => Some((domain, endpoint)),
                Err(error) => {
                    tracing::debug!(%domain, %error, file = %file.display(), "no endpoint of a bundle");
                    None
                }
            }
        };
        self.ending_in(&[ENDPOINT]).into_iter().filter_map(read).collect()
    }

    /// The bundle of a domain, as it is now.
    ///
    /// # Errors
    /// [`IssuerError::File`] if it can't be read; that it is not there is none of them.
    pub fn bundle(&self, domain: &TrustDomain) -> Result<Option<Authorities>, IssuerError> {
        let file = self.files().into_iter().find(|(of, _)| of == domain);
        file.map(|(_, file)| read_bundle(&file)).transpose()
    }

    /// Says where a domain publishes its bundle, or, with none, that it is not followed.
    ///
    /// # Errors
    /// [`IssuerError::File`].
    pub fn put_endpoint(&self, domain: &TrustDomain, endpoint: Option<&Endpoint>) -> Result<(), IssuerError> {
        let file = self.0.join(format!("{domain}.{ENDPOINT}"));
        match endpoint {
            Some(endpoint) => write_new(&file, endpoint.text().as_bytes(), 0o644).map_err(at(&file)),
            None if file.exists() => fs::remove_file(&file).map_err(at(&file)),
            None => Ok(()),
        }
    }

    /// Puts a bundle there that was fetched from `endpoint`, unless the domain was taken away meanwhile. False if it was.
    ///
    /// # Errors
    /// [`IssuerError::File`].
    pub(super) fn put_followed(
        &self,
        domain: &TrustDomain,
        endpoint: &Endpoint,
        authorities: &Authorities,
    ) -> Result<bool, IssuerError> {
        let is_followed = || self.endpoints().get(domain) == Some(endpoint);
        if !is_followed() {
            return Ok(false);
        }
        self.put(domain, authorities)?;
        // Who takes a domain away removes the endpoint first. If that was just now, what we put is removed by us or by them.
        if is_followed() {
            return Ok(true);
        }
        self.remove_but(domain, None)?;
        Ok(false)
    }

    /// Puts a domain's bundle there, in place of one that is there.
    ///
    /// # Errors
    /// [`IssuerError::File`].
    pub fn put(&self, domain: &TrustDomain, authorities: &Authorities) -> Result<(), IssuerError> {
        let file = self.0.join(format!("{domain}.pem"));
        write_new(&file, bundle::to_pem(authorities).as_bytes(), 0o644).map_err(at(&file))?;
        // In another form it would be believed beside the new one.
        self.remove_but(domain, Some(&file)).map(drop)
    }

    /// Takes a domain's bundle away; false if there was none.
    ///
    /// # Errors
    /// [`IssuerError::File`].
    pub fn remove(&self, domain: &TrustDomain) -> Result<bool, IssuerError> {
        self.put_endpoint(domain, None)?;
        self.remove_but(domain, None)
    }

    fn remove_but(&self, domain: &TrustDomain, keep: Option<&Path>) -> Result<bool, IssuerError> {
        let mut any = false;
        for (of, file) in self.files() {
            if of == *domain && Some(file.as_path()) != keep {
                fs::remove_file(&file).map_err(at(&file))?;
                any = true;
            }
        }
        Ok(any)
    }
}

/// The trust domain that a bundle's file is named after.
fn named(file: &Path, endings: &[&str]) -> Option<TrustDomain> {
    let ending = file.extension()?.to_str()?;
    let domain = file.file_stem()?.to_str()?;
    endings.contains(&ending).then(|| TrustDomain::new(domain).ok()).flatten()
}

/// Where the bundles of other trust domains are.
#[derive(Debug, Clone, Default)]
pub struct Links {
    /// Files named one by one.
    pub files: Vec<(TrustDomain, PathBuf)>,
    /// All in a folder, as they come and go.
    pub folder: Option<Folder>,
}

impl Links {
    /// The bundles, followed until `shutdown`. A file that can't be read any more leaves its domain's last bundle in force; a file
    /// that was taken out of the folder ends it. A bundle of `own` is none of a link's business and is passed over.
    ///
    /// # Errors
    /// [`IssuerError::File`] if a file that was named can't be read now.
    pub fn follow(
        self,
        own: TrustDomain,
        shutdown: CancellationToken,
    ) -> Result<watch::Receiver<Bundles>, IssuerError> {
        for (_, file) in &self.files {
            read_bundle(file)?;
        }
        let mut known = Known { own, links: self, files: BTreeMap::new() };
        let (sender, receiver) = watch::channel(known.look());
        tokio::spawn(shutdown.run_until_cancelled_owned(async move {
            loop {
                tokio::time::sleep(LOOK).await;
                let now = known.look();
                sender.send_if_modified(|before| {
                    let changed = *before != now;
                    *before = now;
                    changed
                });
            }
        }));
        Ok(receiver)
    }
}

/// By what a file is seen to be another one.
type Stamp = Option<(SystemTime, u64, u64)>;

/// What was read so far.
struct Known {
    own: TrustDomain,
    links: Links,
    files: BTreeMap<PathBuf, (Stamp, Option<Authorities>)>,
}

impl Known {
    /// Reads what is new, forgets what went, and says what is believed now.
    fn look(&mut self) -> Bundles {
        let mut listed = self.links.files.clone();
        listed.extend(self.links.folder.iter().flat_map(Folder::files));
        self.files.retain(|file, _| {
            let stays = listed.iter().any(|(_, listed)| listed == file);
            if !stays {
                tracing::info!(file = %file.display(), "a bundle was taken away");
            }
            stays
        });
        let mut bundles = Bundles::new();
        for (domain, file) in listed {
            if let Some(authorities) = self.read(&domain, file) {
                bundles.entry(domain).or_default().extend(authorities);
            }
        }
        bundles
    }

    fn read(&mut self, domain: &TrustDomain, file: PathBuf) -> Option<Authorities> {
        let stamp = stamp(&file);
        let (seen, authorities) = self.files.entry(file.clone()).or_insert((None, None));
        if *seen == stamp && stamp.is_some() {
            return authorities.clone();
        }
        let first_failure = seen.is_some() || authorities.is_none();
        *seen = stamp;
        if *domain == self.own {
            // Several issuers may share a folder; each has its own authorities from elsewhere.
            tracing::debug!(%domain, file = %file.display(), "a bundle of our own trust domain is passed over");
            return None;
        }
        match read_bundle(&file) {
            Ok(new) => {
                tracing::info!(%domain, authorities = new.len(), file = %file.display(), "a bundle was read");
                *authorities = Some(new);
            }
            Err(error) if first_failure => {
                tracing::error!(%domain, %error, "a bundle can't be read; what was there stays in force");
            }
            Err(_) => {}
        }
        authorities.clone()
    }
}

fn stamp(file: &Path) -> Stamp {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(file).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::issuer::Authority;

    fn authority(name: &str) -> Authority {
        Authority::new(TrustDomain::new(name).unwrap()).unwrap()
    }

    fn known(folder: &Folder) -> Known {
        let own = TrustDomain::new("own.test").unwrap();
        let links = Links { files: Vec::new(), folder: Some(folder.clone()) };
        Known { own, links, files: BTreeMap::new() }
    }

    #[test]
    fn a_folder_says_whom_to_believe_in_either_form_and_bad_files_change_nothing() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(&place.path().join("links")).unwrap();
        let at = |name: &str| place.path().join("links").join(name);
        let (a, b) = (authority("a.test"), authority("b.test"));
        let mut known = known(&folder);
        assert!(known.look().is_empty());
        folder.put(a.domain(), &vec![a.certificate().clone()]).unwrap();
        fs::write(at("b.test.json"), bundle::to_json(&[b.certificate().clone()], 1, 300).unwrap()).unwrap();
        fs::write(at("own.test.pem"), bundle::to_pem(&[a.certificate().clone()])).unwrap();
        fs::write(at("README"), "no bundle").unwrap();
        let both: Bundles = a.bundles().into_iter().chain(b.bundles()).collect();
        assert_eq!(known.look(), both);

        fs::write(at("b.test.json"), "{ half").unwrap();
        assert_eq!(known.look(), both, "the last good one stays");
        let newer = authority("b.test");
        folder.put(newer.domain(), &vec![newer.certificate().clone()]).unwrap();
        assert_eq!(known.look()[b.domain()], [newer.certificate().clone()], "in its place, not beside it");

        assert!(folder.remove(b.domain()).unwrap());
        assert!(!folder.remove(b.domain()).unwrap());
        assert_eq!(known.look(), a.bundles());
        fs::remove_dir_all(at("")).unwrap();
        assert!(known.look().is_empty());
    }

    #[test]
    fn a_bundle_that_was_on_its_way_does_not_bring_back_a_domain_that_was_taken_away() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path()).unwrap();
        let b = authority("b.test");
        let bundle = vec![b.certificate().clone()];
        let endpoint = Endpoint::parse(br#"{"url": "https://192.0.2.1:8443/"}"#).unwrap();
        let elsewhere = Endpoint::parse(br#"{"url": "https://192.0.2.2:8443/"}"#).unwrap();
        folder.put_endpoint(b.domain(), Some(&endpoint)).unwrap();
        assert!(folder.put_followed(b.domain(), &endpoint, &bundle).unwrap());
        assert_eq!(folder.bundle(b.domain()).unwrap(), Some(bundle.clone()));
        assert!(!folder.put_followed(b.domain(), &elsewhere, &vec![]).unwrap(), "not where it is followed");
        assert!(folder.remove(b.domain()).unwrap());
        assert!(!folder.put_followed(b.domain(), &endpoint, &bundle).unwrap());
        assert_eq!(folder.bundle(b.domain()).unwrap(), None);
        assert!(fs::read_dir(place.path()).unwrap().next().is_none());
    }
}
